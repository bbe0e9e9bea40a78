"""What this machine has, asked quickly: GPU, model hub, disk, memory, cores."""

from __future__ import annotations

import os
import shutil
import socket
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse
from urllib.request import getproxies

import psutil

from holitom.errors import CannotRun

NEEDS = {"tiny": (), "speed": ("gpu",), "paper": ("gpu", "hub")}


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
    """Does the model hub (HF_ENDPOINT, else huggingface.co), or the proxy in front of it, take a connection? Whoever is
    offline by choice is not asked: what is needed is in the hub's cache, or told by name when it is not."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return Answer(True, "not asked (HF_HUB_OFFLINE is set): only its cache is read")
    address = urlparse(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    proxy = getproxies().get(address.scheme)
    asked = urlparse(proxy if "//" in proxy else f"//{proxy}") if proxy else address
    try:
        socket.create_connection((asked.hostname or "", asked.port or 443), timeout=2).close()
    except (OSError, UnicodeError) as error:
        return Answer(False, f"{asked.hostname} does not answer ({error})")
    return Answer(True, f"{asked.hostname} answers")


def free_gib(folder: Path) -> float:
    """Free disk space where a folder is, or would be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 2**30


def available_gib() -> float:
    """Memory that is free for this process now: the machine's, or what a container's limit leaves when that is less."""
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
    asked = {"gpu": ("a CUDA GPU", gpu), "hub": ("the model hub", hub)}
    missing = [f"{name} ({ask().found})" for name, ask in (asked[need] for need in NEEDS[tier]) if not ask().ok]
    if missing:
        raise CannotRun(
            f"the {tier} tier needs {' and '.join(missing)}",
            fix="run on a machine that has it, or use --tier tiny, which needs neither (./reproduce.sh doctor: more)",
        )
