"""What this machine has, asked quickly and without importing torch: GPU, model hub, disk, memory, cores."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Thread
from typing import NamedTuple
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass

from holitom_repro.caches import OURS
from holitom.errors import CannotRun

HUB = "https://huggingface.co"
NEEDS = {"tiny": (), "speed": ("gpu",), "paper": ("gpu", "hub")}


class Answer(NamedTuple):
    """Is it there, and in words what was found."""

    ok: bool
    found: str


@cache
def gpu() -> Answer:
    """One CUDA GPU that the installed torch can use. Imports torch only where an NVIDIA driver is present."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return Answer(False, "hidden: CUDA_VISIBLE_DEVICES is empty")
    if not Path("/dev/nvidiactl").exists() and not shutil.which("nvidia-smi"):
        return Answer(False, "no NVIDIA GPU")
    names = _nvidia_smi() or "NVIDIA driver, but nvidia-smi does not answer"
    try:
        import torch
    except ImportError:
        return Answer(False, f"{names}; torch is not installed")
    if torch.cuda.is_available():
        return Answer(True, names)
    build = "a CPU build" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
    return Answer(False, f"{names}; but torch {torch.__version__} ({build}) cannot use it")


def _nvidia_smi() -> str:
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(done.stdout.split("\n")).strip("; ") if done.returncode == 0 else ""


@cache
def hub(timeout: float | int = 2) -> Answer:
    """Does the model hub (HF_ENDPOINT, else huggingface.co), or the proxy in front of it, take a connection?

    Whoever is offline by choice has what is needed in the hub's cache, and is told by name what is not there.
    """
    if not _on(OURS) and (_on("HF_HUB_OFFLINE") or _on("TRANSFORMERS_OFFLINE")):
        return Answer(True, "not asked (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set): only its cache is read")
    address = urlparse(os.environ.get("HF_ENDPOINT") or HUB)
    host, port = address.hostname or "", address.port or (443 if address.scheme == "https" else 80)
    proxy = getproxies().get(address.scheme or "https")
    if proxy and not proxy_bypass(host):
        through = urlparse(proxy if "//" in proxy else f"//{proxy}")
        host, port = through.hostname or "", through.port or 80
    said: list[str] = []

    def knock() -> None:
        try:
            socket.create_connection((host, port), timeout=timeout).close()
            said.append("")
        except (OSError, UnicodeError) as error:
            said.append(str(getattr(error, "strerror", None) or error))

    thread = Thread(target=knock, daemon=True)  # looking up a name has no timeout of its own
    thread.start()
    thread.join(timeout)
    problem = said[0] if said else f"no answer within {timeout:g} s"
    return Answer(False, f"{host} does not answer ({problem})") if problem else Answer(True, f"{host} answers")


def _on(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in {"1", "ON", "YES", "TRUE"}


def free_gib(folder: Path) -> float:
    """Free disk space under a folder, in GiB."""
    return shutil.disk_usage(folder).free / 2**30


def memory_gib() -> float:
    """Memory this process may use, in GiB: the machine's, or a container's limit when that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no limit, or another kind of cgroup
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total / 2**30


def available_gib() -> float:
    """Memory that is free for this process now, in GiB; where the system does not say (macOS), half of all."""
    free = memory_gib() * 2**30 / 2
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError, StopIteration):  # a container: what files occupy is given back when needed
        stat = (group / "memory.stat").read_text().splitlines()
        files = next(int(line.split()[1]) for line in stat if line.startswith("inactive_file "))
        taken = int((group / "memory.current").read_text()) - files
        free = min(free, int((group / "memory.max").read_text()) - taken)
    return max(0, free) / 2**30


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lacking(tier: str) -> list[str]:
    """What a tier needs and this machine lacks, in words; empty when the tier can run."""
    words = {"gpu": lambda: f"a CUDA GPU ({gpu().found})", "hub": lambda: f"the model hub ({hub().found})"}
    return [words[need]() for need in NEEDS[tier] if not {"gpu": gpu, "hub": hub}[need]().ok]


def require(tier: str) -> None:
    """CannotRun, before any work, when this machine cannot serve the tier."""
    if missing := lacking(tier):
        raise CannotRun(
            f"the {tier} tier needs {' and '.join(missing)}",
            fix="run on a machine that has it, or use --tier tiny, which needs neither (./reproduce.sh doctor: more)",
        )
