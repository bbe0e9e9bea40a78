"""Time and memory of the outer stage against a plain loop over the same algorithm: ``python -m holitom bench ops``.

The loop is the oracle of the tests (tests/oracle.py of a checkout). Both run on the same videos in one process, so the
ratio is what to read; seconds belong to one machine. Nothing here is a test: no threshold fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
import tracemalloc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from holitom.errors import CannotRun
from holitom.methods import HoliTom
from holitom.types import TokenSet, VideoFeatures

Row = dict[str, Any]
AGAINST_LOOP = ((32, (14, 14), 3584), (128, (14, 14), 3584))
SCALING = (32, 64, 128, 256, 512, 1024)


def synthetic_video(
    frames: int,
    grid: tuple[int, int],
    dim: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    scene: int = 12,
) -> VideoFeatures:
    """A video with the structure that HoliTom looks for: scenes of about ``scene`` frames, in which half of the cells
    stay nearly constant, a quarter are textured (neighbours at a cosine around 0.8), and a quarter are new every frame.
    """
    draw = torch.Generator().manual_seed(seed)
    cells = grid[0] * grid[1]
    tokens = torch.empty(frames, cells, dim, dtype=dtype, device=device)
    start = 0
    while start < frames:
        length = min(frames - start, int(torch.randint(max(1, scene // 2), scene + scene // 2 + 1, (), generator=draw)))
        base = torch.randn(cells, dim, generator=draw)
        kind = torch.rand(cells, generator=draw)
        noise = torch.where(kind < 0.5, 0.1, torch.where(kind < 0.75, 0.5, 20.0))[:, None]
        for frame in range(start, start + length):
            moved = base + noise * torch.randn(cells, dim, generator=draw)
            tokens[frame] = (moved / (1 + noise**2).sqrt()).to(tokens)
        start += length
    saliency = torch.rand(frames, cells, generator=draw).softmax(-1).to(device)
    return VideoFeatures(tokens, grid, saliency)


def bench_ops(
    against_loop: Sequence[tuple[int, tuple[int, int], int]] = AGAINST_LOOP,
    scaling: Sequence[int] = SCALING,
    *,
    loop: bool = True,
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
    rows = [_against_loop(case, oracle, repeats, dtype, device, progress) for case in against_loop]
    first = None
    for frames in scaling:
        progress(f"scaling: {frames} frames x 196 x 64")
        video = synthetic_video(frames, (14, 14), 64, dtype=dtype, device=device)
        row = {"kind": "scaling", "frames": frames, "cells": 196, "dim": 64, **_measure(video, max(repeats, 9))}
        first = first or row
        row["linear"] = row["seconds"] / row["frames"] / (first["seconds"] / first["frames"])
        rows.append(row)
    return rows


def run(argv: Sequence[str] = ()) -> int:
    """The command line of ``bench ops``: prints the table, progress on stderr."""
    args = _parser().parse_args(list(argv))
    if args.device == "cuda" and not torch.cuda.is_available():
        raise CannotRun("no CUDA device here", fix="leave --device out to measure the CPU")
    if args.threads:
        torch.set_num_threads(args.threads)
    grid = (14, 14)
    rows = bench_ops(
        [(frames, grid, args.dim) for frames in args.frames],
        args.scaling,
        loop=args.loop,
        repeats=args.repeats,
        dtype=getattr(torch, args.dtype),
        device=args.device,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if args.json:
        Path(args.json).write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"outer stage, budget 0.15, {args.dtype} on {args.device}, {torch.get_num_threads()} threads\n")
    print(table(rows))
    return 0


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


def peak_bytes(call: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Most bytes held at once by what ``call`` allocates, its result included. CUDA: the allocator's own peak; CPU: the
    storages behind every operation's outputs, plus numpy's peak. Scratch space inside one operation is not seen."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _LiveBytes():
        call()  # once before, so that what torch imports on the way is not counted
    tracemalloc.start()
    try:
        with _LiveBytes() as live:
            call()
        return live.peak + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def load_oracle() -> ModuleType:
    """tests/oracle.py of the checkout that this package is installed from."""
    path = Path(__file__).resolve().parents[2] / "tests" / "oracle.py"
    if not path.is_file():
        raise CannotRun(
            f"the plain loop to compare with is not at {path}",
            fix="run this from a checkout of the repository, or pass --no-loop to time ours alone",
        )
    spec = importlib.util.spec_from_file_location("holitom_oracle", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _against_loop(case, oracle, repeats, dtype, device, progress) -> Row:
    frames, grid, dim = case
    name = f"{frames} frames x {grid[0] * grid[1]} x {dim}"
    progress(f"{name}: ours")
    video = synthetic_video(frames, grid, dim, dtype=dtype, device=device)
    row: Row = {"kind": "loop", "frames": frames, "cells": video.cells, "dim": dim, **_measure(video, repeats)}
    row |= {"loop_seconds": None, "ratio": None, "same": None}
    if oracle:
        progress(f"{name}: plain loop")
        began = time.perf_counter()
        expected = oracle.outer(video.tokens, video.saliency, 0.15)
        row["loop_seconds"] = time.perf_counter() - began
        row["ratio"] = row["loop_seconds"] / row["seconds"]
        got = _reduce(video)
        row["same"] = got.frame.tolist() == expected["frame"] and got.cell.tolist() == expected["cell"]
    return row


def _measure(video: VideoFeatures, repeats: int) -> Row:
    peak = peak_bytes(lambda: _reduce(video), video.tokens.device) / video.tokens.nbytes
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        _reduce(video)
        if video.tokens.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds), "peak": peak, "dtype": str(video.tokens.dtype)}


@torch.inference_mode()
def _reduce(video: VideoFeatures) -> TokenSet:
    return HoliTom(tau=0.8)(video, 0.15)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations create, from creation until Python lets go of them."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in given | self.known:
                    self._hold(storage, storage.data_ptr(), storage.nbytes())
        return result

    def _hold(self, storage: torch.UntypedStorage, address: int, size: int) -> None:
        self.known.add(address)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._drop, address, size)

    def _drop(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.held -= size


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./reproduce.sh bench ops",
        description="Time and memory of HoliTom's outer stage (tau 0.8, budget 0.15), as ratios to a plain loop.",
    )
    parser.add_argument("--frames", type=int, nargs="*", default=[32, 128], help="videos compared with the loop")
    parser.add_argument("--dim", type=int, default=3584, help="their token size (default 3584, a 7B model)")
    parser.add_argument("--scaling", type=int, nargs="*", default=list(SCALING), help="frames of the scaling table")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of ours, the median counts")
    parser.add_argument("--no-loop", dest="loop", action="store_false", help="time ours alone")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--json", metavar="FILE", help="also write the rows as JSON lines")
    return parser
