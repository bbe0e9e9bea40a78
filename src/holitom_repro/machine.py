"""What this machine has, asked quickly: GPU, model hub, disk, memory, cores; and what a record says of it."""

import os
import platform
import shutil
import subprocess
from contextlib import suppress
from functools import cache
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from holitom.errors import CannotRun
from holitom_repro import paths


class Answer(NamedTuple):
    """Is it there, and in words what was found."""

    ok: bool
    found: str


@cache
def gpu() -> Answer:
    """One CUDA GPU that the installed torch can use. Imports torch only where an NVIDIA driver is present."""
    if not Path("/dev/nvidiactl").exists() and not shutil.which("nvidia-smi"):
        return Answer(False, "no NVIDIA GPU")
    import torch

    if not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        return Answer(False, f"an NVIDIA driver, but torch {torch.__version__} ({build}) sees no GPU")
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return Answer(True, "; ".join(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in found))


@cache
def hub() -> Answer:
    """Does the model hub (HF_ENDPOINT, else huggingface.co) answer? Whoever is offline by choice is not asked: what is
    needed is in the hub's cache, or told by name when it is not."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return Answer(True, "not asked (HF_HUB_OFFLINE is set): only its cache is read")
    given = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        urlopen(Request(given, method="HEAD"), timeout=2).close()
    except HTTPError:  # an answer all the same
        pass
    except (OSError, ValueError, HTTPException) as error:
        return Answer(False, f"{given} does not answer ({error})")
    return Answer(True, f"{given} answers")


def free_gib(folder: Path) -> float:
    """Free disk space where a folder is, or would be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 2**30


def available_gib() -> float:
    """Memory that is free for this process now: the machine's, or what a container's limit leaves when that is less."""
    import psutil

    free, group = psutil.virtual_memory().available, Path("/sys/fs/cgroup")
    try:
        limit, taken = (int((group / name).read_text(encoding="utf-8")) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
        free = min(free, limit - taken + int(stat["inactive_file"]))  # what files occupy is given back when needed
    except (OSError, ValueError, KeyError):  # no limit, or another kind of cgroup
        pass
    return max(0, free) / 2**30


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require(tier: str) -> None:
    """CannotRun, before any work, when this machine cannot serve the tier."""
    needs = {"tiny": {}, "speed": {"a CUDA GPU": gpu}, "paper": {"a CUDA GPU": gpu, "the model hub": hub}}[tier]
    missing = [f"{name} ({ask().found})" for name, ask in needs.items() if not ask().ok]
    if missing:
        raise CannotRun(
            f"the {tier} tier needs {' and '.join(missing)}",
            fix="run on a machine that has it, or use --tier tiny, which needs neither (./reproduce.sh doctor: more)",
        )


def provenance() -> dict[str, Any]:
    """Versions, python, processor, GPU, threads and git commit, as plain JSON; no host name, user or path.
    ``git.dirty``: tracked files under src/ or data/ differ from the commit. Without git, ``git`` is None."""
    import torch

    packages = ("torch", "transformers", "lmms-eval", "av", "numpy", "tokenizers")
    cpu = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: version(name) for name in packages},
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "gpus": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
        "git": _git(),
        "threads": torch.get_num_threads(),
    }


@cache
def version(package: str) -> str | None:
    """The installed version of a package, None where it is missing."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


@cache
def _git() -> dict[str, Any] | None:
    def ask(*words: str) -> str:
        command = ["git", "-c", "safe.directory=*", "-C", str(root), *words]  # also where another user has cloned it
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=20)
        return done.stdout.strip()

    try:
        root = paths.root()
        if not (root / ".git").exists():  # a download inside somebody else's repository is not that repository
            return None
        changed = ask("status", "--porcelain", "--untracked-files=no", "--", "src", "data")
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (CannotRun, OSError, subprocess.SubprocessError):
        return None
