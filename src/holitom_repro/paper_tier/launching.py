"""The command that starts several processes of ``python -m holitom_repro.paper_tier``, one GPU each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from holitom.errors import CannotRun

MODULE = "holitom_repro.paper_tier"


def command(processes: int, words: Sequence[str], *, gpus: bool) -> list[str]:
    """With GPUs: accelerate launch. Without: torchrun, which is what accelerate starts beneath; accelerate 1.15 itself
    starts one process only under ``--cpu --num_processes 2``, unless there is an MPI."""
    tail = ["-m", MODULE, *words]
    if processes == 1:
        return [sys.executable, *tail]
    if not gpus:
        return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), *_alone(), *tail]
    settings = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"]
    settings += ["--dynamo_backend", "no", "--main_process_port", "0"]
    return [sys.executable, "-m", "accelerate.commands.launch", *settings, *tail]


def _alone() -> list[str]:
    return ["--standalone", "--nnodes", "1"]


def run(processes: int, words: Sequence[str], *, gpus: bool) -> None:
    """Run it to its end, in the foreground. CannotRun when it fails: what failed stands above, in its own words."""
    environment = dict(os.environ)
    if not gpus:
        environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", "1")}
    done = subprocess.Popen(command(processes, words, gpus=gpus), env=environment)
    try:
        code = done.wait()
    except KeyboardInterrupt:
        done.wait()  # ctrl-C reached it as well: it stops and keeps what it has
        raise
    if code:
        raise CannotRun(
            f"the {processes} processes of the paper tier ended with exit code {code}; the reason stands above",
            fix="put it right and run the same command: finished cells and answered questions are kept",
        )
