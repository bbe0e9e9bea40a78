"""The parts of the inference figure, the sizes of each tier, and the measuring of what a file does not hold yet.

Parts: the paper's rows once at their own budgets and once at one budget; time and memory over frames; over budgets;
and a server's load over the batch. Every finished size is kept at once, so a stopped run continues where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holitom import paths
from holitom.errors import BadUsage

if TYPE_CHECKING:
    from holitom.latency.measuring import Protocol
    from holitom.types import Reduction

Record = dict[str, Any]
EQUAL = 0.10
SWEPT = ("HoliTom (w/o M)", "HoliTom")
PARTS = ("rows", "frames", "budgets", "batches")


@dataclass(frozen=True)
class Plan:
    """The sizes of one tier. model: what is timed; frames: those of the rows; the others are the sweeps."""

    model: str
    dtype: str
    frames: int
    repeats: int
    new_tokens: int
    frame_sweep: tuple[int, ...]
    budget_sweep: tuple[float, ...]
    batch_sweep: tuple[int, ...]


PLANS = {
    "speed": Plan(
        "ov-7b",
        "bfloat16",
        32,
        20,
        100,
        (8, 16, 32, 64, 128, 256),
        (0.25, 0.20, 0.15, 0.10, 0.05),
        (1, 2, 4, 8, 16, 32),
    ),
    "tiny": Plan("tiny", "float32", 32, 7, 16, (8, 16, 32, 64), (0.25, 0.15, 0.10), (1, 2, 4)),
}


def record_parts(
    tier: str,
    out: Path | None,
    *,
    device: str,
    parts: Sequence[str] | None = None,
    limit: int | None = None,
    quiet: bool = False,
) -> list[Record]:
    """Measure what ``out`` does not hold yet with the code at hand, and append it size by size; returns all of it in
    the plan's order. out None: nothing is kept. limit: so many repeats, and the shortest sweeps.

    On a CPU with one thread, in CPU seconds of this process: what is to be shown is that the measurement works, also
    on a shared machine."""
    from holitom.latency.command import progress
    from holitom.latency.content import recorded_similarity
    from holitom.latency.measuring import measure
    from holitom.latency.records import read, write
    from holitom.latency.shapes import load
    from holitom.latency.timeline import ProcessClock

    plan = PLANS[tier]
    chosen = _chosen(parts)
    held = {_key(record): record for record in (read(out) if out is not None and out.is_file() else [])}
    sizes = [size for size in _sizes(plan, limit) if size.part in chosen]
    settings = {size: _settings(size, plan) for size in sizes}
    wanted = {
        size: [k for at, made in settings[size] if (k := _wanted(size, at, made, plan, device)) not in held]
        for size in sizes
    }
    todo = [size for size in sizes if wanted[size]]
    made: list[Record] = []
    if todo:
        loaded = load(plan.model, device=device, dtype=plan.dtype)
        clock = ProcessClock() if device == "cpu" else None
        passes = sum(_protocol(size, plan, limit).passes * len(settings[size]) for size in todo)
        with _threads(1 if device == "cpu" else None), progress(passes, quiet=quiet) as advance:
            for size in todo:
                new = measure(
                    loaded,
                    settings[size],
                    frames=size.frames,
                    batch=size.batch,
                    similarity=recorded_similarity(),
                    protocol=_protocol(size, plan, limit),
                    part=size.part,
                    clock=clock,
                    advance=advance,
                )
                if out is not None:
                    write(out, new, append=True)
                made += new
    held |= {_key(record): record for record in made}
    keys = [_wanted(size, at, setting, plan, device) for size in sizes for at, setting in settings[size]]
    return [held[key] for key in keys if key in held]


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """torch's threads for the length of the block; None: as they are."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class _Size:
    part: str
    frames: int
    batch: int
    budgets: tuple[float, ...]


def _chosen(parts: Sequence[str] | None) -> Sequence[str]:
    if unknown := set(parts or ()) - set(PARTS):
        raise BadUsage(f"no part {', '.join(sorted(unknown))}", fix=f"use {', '.join(PARTS)}")
    return parts or PARTS


def _sizes(plan: Plan, limit: int | None) -> Iterator[_Size]:
    shorter = slice(None, 2) if limit is not None else slice(None)
    frames = plan.frames if limit is None else min(plan.frames, 8)
    yield _Size("rows", frames, 1, (EQUAL,))
    for count in plan.frame_sweep[shorter]:
        yield _Size("frames", count, 1, (EQUAL,))
    yield _Size("budgets", frames, 1, plan.budget_sweep[shorter])
    for batch in plan.batch_sweep[shorter]:
        yield _Size("batches", frames, batch, (0.25, EQUAL))


def _settings(size: _Size, plan: Plan) -> list[tuple[str, Reduction]]:
    """The full model first. The part "rows" has every row twice: as printed, and at one budget."""
    from holitom.latency.settings import FULL, PRINTED, printed_setting, setting
    from holitom.types import Reduction

    layers, preset = _model(plan)
    made: list[tuple[str, Reduction]] = [("all tokens", Reduction(FULL))]
    if size.part == "rows":
        rows = [row for row, _ in PRINTED if row != FULL]
        made += [("printed", printed_setting(row, layers)) for row in rows]
        for row in rows:
            try:
                made.append((f"{EQUAL:.0%}", setting(row, EQUAL, preset, layers)))
            except BadUsage:  # too few layers to reach this mean: the printed row stands alone
                continue
        return made
    return made + [(f"{b:.0%}", setting(row, b, preset, layers)) for b in size.budgets for row in SWEPT]


def _model(plan: Plan) -> tuple[int, str]:
    """Decoder layers, and whose presets fit."""
    from holitom.latency.shapes import SHAPES
    from holitom.tiny.model import LAYERS

    shape = SHAPES.get(plan.model)
    return (shape.layers, shape.preset) if shape else (LAYERS, "ov-7b")


def _protocol(size: _Size, plan: Plan, limit: int | None) -> Protocol:
    from holitom.latency.measuring import Protocol

    rows = size.part == "rows"
    repeats = limit or plan.repeats
    return Protocol(
        repeats=repeats,
        warmup=1 if limit else (5 if rows else 2) if plan.model != "tiny" else 2,
        new_tokens=plan.new_tokens if limit is None else 4,
        decode_repeats=repeats if plan.model == "tiny" else 5 if rows else 1,
        staged_repeats=None if rows else min(5, repeats),
        video=paths.data("videos", "three_shots.mp4") if rows else None,
    )


def _wanted(size: _Size, at: str, made: Reduction, plan: Plan, device: str) -> tuple[Any, ...]:
    from holitom.provenance import code_fingerprint

    kind = "CPU" if device == "cpu" else "GPU"
    return size.part, size.frames, size.batch, at, made.name, plan.model, kind, code_fingerprint()


def _key(record: Record) -> tuple[Any, ...]:
    kind = "CPU" if record["device"] == "CPU" else "GPU"
    labels = (record["part"], record["frames"], record["batch"], record["at"], record["row"])
    return *labels, record["model"], kind, record["code"]
