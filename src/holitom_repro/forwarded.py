"""Targets that hand the rest of the line on: demo, training, benchmarks, report, JupyterLab, and the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module

from holitom_repro import caches, machine, paths
from holitom.errors import BadUsage, CannotRun

CLIP = ("videos", "three_shots.mp4")
START, EXPLORER = "00_start_here.ipynb", "explore.ipynb"


def run(name: str, words: list[str]) -> int:
    """Run one forwarded target with its own words; returns its exit code."""
    caches.keep_inside()
    targets = {
        "demo": demo,
        "convert": convert,
        "export-embeds": export_embeds,
        "train-tiny": train,
        "bench": bench,
        "report": report,
        "explore": explore,
        "lab": lab,
        "test": test,
    }
    return targets[name](words)


def demo(words: list[str]) -> int:
    """HoliTom on one video; without --video on the clip that is shipped."""
    from holitom_repro.demo import main

    if not any(word in ("-h", "--help", "--video") or word.startswith("--video=") for word in words):
        clip = paths.data(*CLIP)
        print(f"no --video given: showing {clip.relative_to(paths.root())}", file=sys.stderr)
        words = ["--video", str(clip), *words]
    return main(words) or 0


def convert(words: list[str]) -> int:
    """A checkpoint of the original LLaVA-NeXT repository for transformers' LLaVA-OneVision class."""
    from holitom_repro.convert import main

    return main(words) or 0


def export_embeds(words: list[str]) -> int:
    """A reduced prompt as embeddings, for an inference engine."""
    from holitom_repro.serving.command import main

    return main(words)


def train(words: list[str]) -> int:
    """Rebuild the tiny models."""
    from holitom_repro.tiny.train import main

    return main(words) or 0


BENCHES = {  # bench <name> -> its module and what it times
    "ops": ("holitom_repro.bench", "time and memory of every method, as ratios"),
    "latency": (
        "holitom_repro.latency.command",
        "time to the first token per stage, decode rate, memory of whole models",
    ),
    "released": ("holitom_repro.latency.released", "the released HoliTom code beside this kit's, on the same tensors"),
}


def bench(words: list[str]) -> int:
    """The benchmarks: ``bench ops``, ``bench latency``, ``bench released``."""
    if words[:1] in (["-h"], ["--help"]):
        print("usage: ./reproduce.sh bench {ops,latency,released} [options; --help after the name lists them]\n")
        print("\n".join(f"  {name:<10}{about}" for name, (_, about) in BENCHES.items()))
        return 0
    if not words or words[0] not in BENCHES:
        asked = f"bench {words[0]!r} is not known" if words else "bench needs to know what to time"
        raise BadUsage(asked, fix=f"use ./reproduce.sh bench {', bench '.join(BENCHES)}")
    return import_module(BENCHES[words[0]][0]).run(words[1:]) or 0


def report(words: list[str]) -> int:
    """The static site."""
    from holitom_repro.report.command import run as build_report

    return build_report(words)


def explore(words: list[str]) -> int:
    """JupyterLab, opened on the explorer."""
    if words[:1] in (["-h"], ["--help"]):
        print("usage: ./reproduce.sh explore [options of jupyter lab]\n\nOpens notebooks/explore.ipynb; run its cells.")
        return 0
    return lab(words, EXPLORER)


def lab(words: list[str], start: str = START) -> int:
    """JupyterLab, opened on the first notebook. Replaces this process, so that ctrl-C is JupyterLab's own."""
    notebook = paths.root() / "notebooks" / start
    if not notebook.is_file():
        raise CannotRun(f"{notebook} is missing", fix="restore it: git checkout -- notebooks")
    os.environ.pop("MPLBACKEND", None)  # the kernel chooses its inline backend
    command = [sys.executable, "-m", "jupyterlab", str(notebook), f"--ServerApp.root_dir={paths.root()}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # a container's only user; the server keeps its token either way
    sys.stdout.flush()
    os.execv(sys.executable, [*command, *words])


def test(words: list[str]) -> int:
    """Style, then every test; the last line is pytest's. Fails (exit 1) at the first step that fails."""
    root = paths.root()
    if words[:1] in (["-h"], ["--help"]):
        print("usage: ./reproduce.sh test [options of pytest]\n\nruff check, ruff format --check, then pytest.")
        return 0
    workers = [] if any(word.startswith(("-n", "--numprocesses")) for word in words) else ["-n", str(_workers())]
    steps = (
        # ruff remembers a file's verdict, but not that a module it imports has since become one of ours
        ["ruff", "check", "--quiet", "--no-cache", "."],
        ["ruff", "format", "--check", "--quiet", "."],
        ["pytest", *workers, *words],
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # one core for each worker
    for module, *arguments in steps:
        print(f"$ {' '.join([module, *arguments])}", flush=True)
        code = subprocess.run([sys.executable, "-m", module, *arguments], cwd=root, env=environment).returncode
        if code:
            print(f"./reproduce.sh: {module} failed (exit {code})", file=sys.stderr)
            return 130 if code in (130, -2) else 1
    return 0


def _workers() -> int:
    return max(1, min(4, machine.cores()))
