"""Whether the machine was idle before a measurement, and at which clocks it ran: read, never set."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

BUSY_CPU = 0.10  # share of the processors' time that others may use before a run counts as disturbed
BUSY_GPU = 5  # per cent
_ASKED = {
    "uuid": "uuid",
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "max_sm_mhz": "clocks.max.sm",
    "celsius": "temperature.gpu",
    "watts": "power.draw",
    "utilisation_pct": "utilization.gpu",
    "memory_mib": "memory.used",
}
"""Names in a record -> what nvidia-smi calls them."""


def machine_state(device: str, seconds: float = 1.0) -> dict[str, Any]:
    """Before a run: is anybody else computing here? idle: True, False, or None where nothing can be asked (``reason``).

    cpu: share of all processors' time used within ``seconds`` and the load average; gpu (CUDA only): clocks,
    temperature, power, utilisation and other processes, from nvidia-smi.
    """
    busy = _cpu_share(seconds)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    state: dict[str, Any] = {"cpu": {"busy_share": busy, "load_average": load, "cores": os.cpu_count()}, "gpu": None}
    reasons = []
    if busy is None:
        reasons.append("/proc/stat cannot be read")
    elif busy > BUSY_CPU:
        reasons.append(f"{busy:.0%} of the processors' time was in use before the run")
    if device == "cuda":
        state["gpu"] = gpu = gpu_state()
        if gpu is None:
            reasons.append("nvidia-smi does not answer")
        elif (gpu["utilisation_pct"] or 0) > BUSY_GPU:
            reasons.append(f"the GPU was {gpu['utilisation_pct']:.0f} % busy before the run")
    unknown = busy is None or (device == "cuda" and state["gpu"] is None)
    state["idle"] = None if unknown else not reasons
    state["reason"] = "; ".join(reasons) or "nobody else was computing"
    return state


def gpu_state() -> dict[str, Any] | None:
    """Clocks, temperature, power, load and memory of the GPU that torch uses now; None where nvidia-smi is not there.
    nvidia-smi lists all, whatever CUDA_VISIBLE_DEVICES says: the identity decides, and where it is not found, the
    first."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_ASKED.values())}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return None
    mine = _own_uuid()
    line = next((line for line in lines if mine and mine in line), lines[0])
    found = {name: _number(cell) for name, cell in zip(_ASKED, line.split(","), strict=False)}
    found.pop("uuid")
    return found


def _own_uuid() -> str:
    import torch

    return str(torch.cuda.get_device_properties(0).uuid) if torch.cuda.is_available() else ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]" in virtual machines
        return None


def _cpu_share(seconds: float) -> float | None:
    """Share of all processors' time that was not idle within the next ``seconds``."""
    first = _ticks()
    time.sleep(seconds)
    second = _ticks()
    if first is None or second is None or second[1] <= first[1]:
        return None
    return round(1 - (second[0] - first[0]) / (second[1] - first[1]), 3)


def _ticks() -> tuple[int, int] | None:
    """Idle and total ticks of all processors together."""
    try:
        numbers = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    return numbers[3] + numbers[4], sum(numbers)
