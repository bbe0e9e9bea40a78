"""HoliTom's outer stage against the same algorithm in plain loops, and over videos of growing length.

The loop is the oracle of the tests (tests/oracle.py of a checkout). Both run on the same videos in one process, so the
ratio is what to read; seconds belong to one machine. Nothing here is a test: no threshold fails.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from holitom_repro.bench.memory import peak_bytes
from holitom_repro.bench.videos import synthetic_video
from holitom.errors import CannotRun
from holitom.methods import HoliTom
from holitom.types import TokenSet, VideoFeatures

Row = dict[str, Any]
AGAINST_LOOP = ((32, (14, 14), 3584), (128, (14, 14), 3584))
SCALING = (32, 64, 128, 256, 512, 1024)


def bench_loop(
    against_loop: Sequence[tuple[int, tuple[int, int], int]] = AGAINST_LOOP,
    scaling: Sequence[int] = SCALING,
    *,
    loop: bool = True,
    budget: float = 0.15,
    repeats: int = 5,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Rows of kind "loop" (seconds of both, ratio, same tokens, peak extra memory over input size) and "scaling"
    (seconds and peak at N = 196, D = 64; ``linear``: seconds per frame relative to the shortest video).

    Raises CannotRun when the loop is wanted and tests/oracle.py is not there.
    """
    oracle = load_oracle() if loop else None
    rows = [_against_loop(case, oracle, budget, repeats, dtype, device, progress) for case in against_loop]
    first = None
    for frames in scaling:
        progress(f"scaling: {frames} frames x 196 x 64")
        video = synthetic_video(frames, (14, 14), 64, dtype=dtype, device=device)
        row = {"kind": "scaling", "frames": frames, "cells": 196, "dim": 64, **_measure(video, budget, max(repeats, 9))}
        first = first or row
        row["linear"] = row["seconds"] / row["frames"] / (first["seconds"] / first["frames"])
        rows.append(row)
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as two plain tables."""
    lines = [f"{'video':>16} {'ours s':>10} {'loop s':>10} {'ratio':>8} {'same tokens':>12} {'peak / input':>13}"]
    for row in (row for row in rows if row["kind"] == "loop"):
        loop = row["loop_seconds"]
        cells = (
            f"{row['frames']} x {row['cells']} x {row['dim']}",
            f"{row['seconds']:.4f}",
            "-" if loop is None else f"{loop:.2f}",
            "-" if loop is None else f"{row['ratio']:.1f}x",
            "-" if loop is None else ("yes" if row["same"] else "NO"),
            f"{row['peak']:.2f}x",
        )
        lines.append("{:>16} {:>10} {:>10} {:>8} {:>12} {:>13}".format(*cells))
    lines += ["", f"{'frames':>16} {'ours s':>10} {'per frame, 1 = linear':>23} {'peak / input':>13}"]
    for row in (row for row in rows if row["kind"] == "scaling"):
        lines.append(f"{row['frames']:>16} {row['seconds']:>10.4f} {row['linear']:>23.2f} {row['peak']:>12.2f}x")
    return "\n".join(lines)


def load_oracle() -> ModuleType:
    """tests/oracle.py of the checkout that this package is installed from."""
    path = Path(__file__).resolve().parents[3] / "tests" / "oracle.py"
    if not path.is_file():
        raise CannotRun(
            f"the plain loop to compare with is not at {path}",
            fix="run this from a checkout of the repository, or pass --no-loop to time ours alone",
        )
    spec = importlib.util.spec_from_file_location("holitom_oracle", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _against_loop(case, oracle, budget, repeats, dtype, device, progress) -> Row:
    frames, grid, dim = case
    name = f"{frames} frames x {grid[0] * grid[1]} x {dim}"
    progress(f"{name}: ours")
    video = synthetic_video(frames, grid, dim, dtype=dtype, device=device)
    row: Row = {"kind": "loop", "frames": frames, "cells": video.cells, "dim": dim, **_measure(video, budget, repeats)}
    row |= {"loop_seconds": None, "ratio": None, "same": None}
    if oracle:
        progress(f"{name}: plain loop")
        began = time.perf_counter()
        expected = oracle.outer(video.tokens, video.saliency, budget)
        row["loop_seconds"] = time.perf_counter() - began
        row["ratio"] = row["loop_seconds"] / row["seconds"]
        got = _reduce(video, budget)
        row["same"] = got.frame.tolist() == expected["frame"] and got.cell.tolist() == expected["cell"]
    return row


def _measure(video: VideoFeatures, budget: float, repeats: int) -> Row:
    peak = peak_bytes(lambda: _reduce(video, budget), video.tokens.device) / video.tokens.nbytes
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        _reduce(video, budget)
        if video.tokens.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds), "peak": peak, "dtype": str(video.tokens.dtype)}


@torch.inference_mode()
def _reduce(video: VideoFeatures, budget: float) -> TokenSet:
    return HoliTom(tau=0.8)(video, budget)
