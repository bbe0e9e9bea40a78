"""``python -m holitom_repro bench released --released PATH``: the released HoliTom code beside this kit's, in one process.

PATH is a checkout of github.com/cokeshao/HoliTom (Apache-2.0) that the user fetched; ``holitom_repro.latency.release_code``
says what is taken from it.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holitom_repro.latency.content import drawn_video, recorded_similarity
from holitom_repro.latency.machine_state import machine_state
from holitom_repro.latency.records import spread
from holitom_repro.latency.release_code import Released
from holitom_repro.latency.timeline import Clock, ProcessClock, clock_for
from holitom.methods import HoliTom, HoliTomMerge
from holitom_repro.refusals import file_to_write, given, present
from holitom_repro.usage import Parser


def compare(
    released: Released,
    *,
    frames: int,
    dim: int,
    budget: float,
    dtype: torch.dtype,
    device: torch.device,
    repeats: int,
    clock: Clock | None = None,
) -> list[dict[str, Any]]:
    """Two rows, outer and inner: seconds of theirs and ours (medians, quartiles), their ratio, and whether the results
    agree. Both see the same tensors, in turns. With one CPU thread: CPU seconds, which a busy machine leaves alone."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = clock or (ProcessClock() if alone else clock_for(device))
    tau = 0.65 if budget <= 0.10 else 0.80
    similarity = recorded_similarity()
    video = drawn_video(similarity, frames, (14, 14), dim, dtype=dtype, device=device, requires=("saliency",))
    ours = HoliTom(tau=tau)
    theirs_rows, our_rows = released.outer(video, budget, tau), ours(video, budget).tokens
    outer = {
        "stage": "outer",
        "what": f"{frames} x 196 x {dim}, budget {budget:g}, tau {tau:g}; {similarity.how}",
        "tokens": {"released": len(theirs_rows), "ours": len(our_rows)},
        "equal_rows": _equal_share(theirs_rows, our_rows),
        **_in_turns(lambda: released.outer(video, budget, tau), lambda: ours(video, budget), repeats, clock),
    }
    visual, before, after, heads = len(our_rows), 14, 26, 28
    length = before + visual + after
    draw = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(1, length, dim, generator=draw, device=device).to(dtype)
    attention = torch.randn(1, heads, length, length, generator=draw, device=device).softmax(-1).to(dtype)
    merge, ids = HoliTomMerge(layer=18, ratio=0.5), torch.arange(before, before + visual, device=device)

    def our_inner() -> Tensor:
        return merge(hidden[0], attention[0, :, -1].float().mean(0), ids, visual)[1]

    inner = {
        "stage": "inner",
        "what": f"{visual} visual of {length} tokens x {dim}, r 0.5, attention given ({heads} heads)",
        "tokens": {},
        **_in_turns(lambda: released.inner(hidden.clone(), attention, before, visual, 0.5), our_inner, repeats, clock),
    }
    theirs, mine = released.inner(hidden.clone(), attention, before, visual, 0.5)[0], our_inner()
    inner["tokens"] = {"released": len(theirs), "ours": len(mine)}
    inner["equal_rows"] = _equal_share(theirs, mine)
    return [outer, inner]


def _in_turns(theirs: Callable[[], Any], ours: Callable[[], Any], repeats: int, clock: Clock) -> dict[str, Any]:
    taken: dict[str, list[float]] = {"released": [], "ours": []}
    for repeat in range(repeats + 1):
        for name, call in (("released", theirs), ("ours", ours)):
            clock.settle()
            begin = clock.mark()
            call()
            end = clock.mark()
            clock.settle()
            if repeat:  # the first round warms up
                taken[name].append(clock.between(begin, end))
    both = {name: spread(samples, 1000) for name, samples in taken.items()}
    ratio = both["released"]["median"] / both["ours"]["median"]
    return {"clock": getattr(clock, "name", ""), "ms": both, "ratio": ratio, "samples": taken}


def _equal_share(first: Tensor, second: Tensor) -> float | None:
    """Share of rows that agree to 1e-3 of their size, in half precision to two units of its last place; None when the
    numbers of rows differ."""
    if first.shape != second.shape:
        return None
    off = (first.float() - second.float()).norm(dim=-1) / first.float().norm(dim=-1).clamp_min(1e-6)
    return float((off < max(1e-3, 2 * torch.finfo(first.dtype).eps)).float().mean())


def run(argv: Sequence[str] = ()) -> int:
    """The command line of ``bench released``."""
    made = Parser(
        prog="./reproduce.sh bench released",
        description="The released code's outer and inner stage beside ours, on the same drawn video.",
    )
    made.add_argument("--released", type=Path, required=True, help="a checkout of github.com/cokeshao/HoliTom")
    made.add_argument("--frames", type=int, default=32, help="(32)")
    made.add_argument("--dim", type=int, default=3584, help="token size (3584, a 7B model)")
    made.add_argument("--budget", type=float, default=0.10, help="(0.1)")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    made.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="(float32)")
    made.add_argument("--repeats", type=int, default=20, help="(20)")
    made.add_argument("--out", type=given, metavar="FILE", help="append the rows to this JSON lines file")
    args = made.parse_args(list(argv))
    from holitom_repro.provenance import provenance

    device = present(args.device)
    if args.out is not None:
        file_to_write(args.out, "--out")
    released = Released(args.released)
    common = {
        "kind": "released",
        "created": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "dtype": args.dtype,
        "release": _commit(args.released),
        "state": machine_state(device.type),
        "provenance": provenance(),
    }
    with torch.inference_mode(), contextlib.redirect_stdout(io.StringIO()):  # the release prints as it goes
        rows = compare(
            released,
            frames=args.frames,
            dim=args.dim,
            budget=args.budget,
            dtype=getattr(torch, args.dtype),
            device=device,
            repeats=args.repeats,
        )
    print(f"{common['device']}, {args.dtype}, {torch.get_num_threads()} threads, release {common['release'] or '?'}")
    for row in rows:
        ms = row["ms"]
        agree = "counts differ" if row["equal_rows"] is None else f"{row['equal_rows']:.1%} of the rows agree"
        print(
            f"{row['stage']:<6} released {ms['released']['median']:9.2f} ms, ours {ms['ours']['median']:8.2f} ms: "
            f"{row['ratio']:.1f}x; {row['tokens']['released']} and {row['tokens']['ours']} tokens, {agree}\n"
            f"       {row['what']}"
        )
    if args.out:
        from holitom_repro.results import write_atomic

        before = args.out.read_text(encoding="utf-8") if args.out.is_file() else ""
        write_atomic(args.out, before + "".join(json.dumps(common | row) + "\n" for row in rows))
    return 0


def _commit(folder: Path) -> str:
    """The commit of a git checkout, "" where it is none."""
    import subprocess

    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()[:12] if done.returncode == 0 else ""
