"""How often one video makes the host wait for the device: counted, not timed, with the line of this kit that asked.

On CUDA, torch's own sync debug mode counts what really waited. On a CPU there is nothing to wait for, so a pretended
device counts what crosses between it and the host (``holitom_repro.latency.pretending``).
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PRETEND = torch.device("meta")  # the one device type besides the CPU that every build of torch lets a tensor claim
TO_HOST, TO_DEVICE, VALUE, SIZE = "copy to the host", "blocking copy to the device", "value read", "size from data"
HOW_PRETEND = "CPU stand-in: crossings between a pretended device and the host"
HOW_CUDA = "torch.cuda.set_sync_debug_mode: calls that made the host wait"
_PACKAGE, _HERE = str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)
_CARRIERS = (_HERE, str(Path(_PACKAGE, "ops", "transfer.py")))  # they carry out what others ask for


class Crossings:
    """kinds: how often each kind of crossing happened; places: the same by the line of this kit that asked for it;
    device: the one that is pretended."""

    def __init__(self, device: torch.device = PRETEND) -> None:
        self.device = device
        self.kinds: Counter[str] = Counter()
        self.places: Counter[str] = Counter()

    def add(self, kind: str) -> None:
        self.kinds[kind] += 1
        self.places[f"{caller()}: {kind}"] += 1

    @property
    def total(self) -> int:
        return sum(self.kinds.values())

    def describe(self, how: str) -> dict[str, Any]:
        return {"count": self.total, "kinds": dict(self.kinds), "places": dict(self.places.most_common()), "how": how}


@contextmanager
def cuda_waits() -> Iterator[Crossings]:
    """Counts, on CUDA, every call in the block that made the host wait for the device."""
    seen = Crossings()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    shown = warnings.showwarning

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            seen.add("wait")

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            yield seen
    finally:
        warnings.showwarning = shown
        torch.cuda.set_sync_debug_mode(before)


def caller(passing: str | tuple[str, ...] = _CARRIERS, otherwise: str = "the model's own code") -> str:
    """The innermost function of this kit on the stack, files below ``passing`` left out ("layout.py, arrange")."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(_PACKAGE) and not path.startswith(passing):
            return f"{Path(path).relative_to(_PACKAGE).as_posix()}, {frame.f_code.co_name}"
        frame = frame.f_back
    return otherwise
