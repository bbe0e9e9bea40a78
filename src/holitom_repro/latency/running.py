"""Runs a plan size by size, keeps every finished one at once, and measures nothing twice with the same code."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from holitom.errors import CannotRun
from holitom_repro.latency.content import recorded_similarity
from holitom_repro.latency.measuring import measure
from holitom_repro.latency.plan import LOADING, Size, sizes
from holitom_repro.latency.records import read, write
from holitom_repro.latency.shapes import Loaded, load
from holitom_repro.latency.timeline import ProcessClock
from holitom_repro.provenance import code_fingerprint

Record = dict[str, Any]
Key = tuple[Any, ...]


@dataclass
class Outcome:
    """records: everything of the plan that is there now, in its order; left: sizes for which the time did not reach."""

    records: list[Record] = field(default_factory=list)
    left: list[Size] = field(default_factory=list)


def record_plan(
    tier: str,
    out: Path | None,
    *,
    device: str,
    parts: Sequence[str] | None = None,
    limit: int | None = None,
    minutes: float | int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Outcome:
    """Measure what ``out`` does not hold yet with the code at hand, and append it size by size (None: keep nothing).

    minutes: begin no size that is expected to end later than this; the expectation is scaled by what the sizes before
    it took. progress: called with the number of passes, makes a context manager that gives ``advance``. On a CPU with
    one thread, in CPU seconds of this process: it shows that the measurement works, also on a shared machine.
    Raises CannotRun for the speed tier without a CUDA device.
    """
    if tier == "speed" and device == "cpu":
        raise CannotRun(
            "the speed plan needs a CUDA device: so many sizes of the papers' shapes would take days on a CPU",
            fix="run it on a machine with one, see what it would do with --dry-run, or use --plan tiny or cpu here",
        )
    plan = sizes(tier, parts, limit)
    held = {_key(record): record for record in (read(out) if out is not None and out.is_file() else [])}
    outcome, todo = Outcome(), missing(plan, held, device)
    clock = ProcessClock() if device == "cpu" else None
    loaded: Loaded | None = None
    started, expected = time.monotonic(), 0.0
    bar = progress or (lambda passes: _silent())
    with _threads(1 if device == "cpu" else None), bar(sum(size.passes for size in todo)) as advance:
        for size in todo:
            fresh = loaded is None or (loaded.name, loaded.layers) != (size.model, size.depth)
            wanted = (size.seconds() or 0.0) + LOADING * fresh
            spent = time.monotonic() - started
            scale = max(1.0, spent / expected) if expected else 1.0
            if minutes is not None and spent + wanted * scale > 60 * minutes:
                outcome.left.append(size)
                continue
            if fresh:
                loaded = None
                _emptied()
                loaded = load(size.model, device=device, dtype=size.dtype, layers=size.layers)
            made = measure(
                loaded,
                size.settings(),
                frames=size.frames,
                batch=size.batch,
                similarity=recorded_similarity(),
                protocol=size.protocol,
                part=size.part,
                clock=clock,
                slower=_slower(size, held.values()) | dict(size.untried),
                advance=advance,
            )
            expected += wanted
            if out is not None:
                write(out, made, append=True)
            held |= {_key(record): record for record in made}
    outcome.records = [held[key] for size in plan for key in _keys(size, device) if key in held]
    return outcome


def missing(plan: Sequence[Size], held: Mapping[Key, Record], device: str) -> list[Size]:
    """The sizes of which a setting is not held yet: they are measured whole, so that ratios hold within a run."""
    return [size for size in plan if any(key not in held for key in _keys(size, device))]


def described(tier: str, out: Path | None, device: str, parts: Sequence[str] | None, limit: int | None) -> str:
    """What ``record_plan`` would do, size by size, with the minutes it is expected to take; measures nothing."""
    plan = sizes(tier, parts, limit)
    held = {_key(record): record for record in (read(out) if out is not None and out.is_file() else [])}
    todo = missing(plan, held, device)
    lines, total, model = [], 0.0, None
    for size in plan:
        own = size.seconds()
        seconds = 0.0 if own is None else own + LOADING * ((size.model, size.layers) != model)
        model = (size.model, size.layers)
        state = "to measure" if size in todo else "recorded"
        total += seconds if size in todo else 0.0
        layers = f" ({size.layers} layers)" if size.layers else ""
        cost = "" if own is None else f"{seconds / 60:5.1f} min"
        rows = ", ".join(dict.fromkeys(f"{r.name} {at}" for at, r in size.settings()[1:]))
        lines.append(
            f"{size.part:<9}{size.model + layers:<26}{size.frames:>4} frames, batch {size.batch:<3}"
            f"{size.passes:>5} passes{cost:>11}  {state}\n         Vanilla, {rows}"
            + (f"; decoding: {', '.join(size.protocol.ways)}" if size.protocol.new_tokens else "")
        )
    if total:
        lines.append(f"to measure: {total / 60:.0f} minutes on one H200, a calculation made before any measurement")
    return "\n".join(lines)


def _slower(size: Size, held: Any) -> dict[str, str]:
    """Attention backends that need not be tried again: on this model with no more tokens they took over 1.5 times as
    long as the best, or memory did not suffice."""
    found: dict[str, str] = {}
    for record in held:
        smaller = record["frames"] * record["batch"] < size.frames * size.batch
        if record["model"] != size.model or record["device"] == "CPU" or not smaller:
            continue
        tried = record["attention_tried"]
        best = min((v for v in tried.values() if isinstance(v, float)), default=None)
        for name, took in tried.items():
            where = f"at {record['frames']} frames, batch {record['batch']}"
            if isinstance(took, float) and best and took > 1.5 * best:
                found[name] = f"not tried: {took / best:.1f} times as slow {where}"
            elif took == "out of memory":
                found[name] = f"not tried: out of memory {where}"
    return found


def _keys(size: Size, device: str) -> list[Key]:
    kind, code = "CPU" if device == "cpu" else "GPU", code_fingerprint()
    where = (size.part, size.frames, size.batch)
    return [(*where, at, made.name, size.model, size.depth, kind, code) for at, made in size.settings()]


def _key(record: Record) -> Key:
    kind = "CPU" if record["device"] == "CPU" else "GPU"
    labels = (record["part"], record["frames"], record["batch"], record["at"], record["row"])
    return *labels, record["model"], record["layers"], kind, record["code"]


def _emptied() -> None:
    """Give back what the model before has held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _silent() -> Iterator[Callable[[int], None]]:
    yield lambda passes: None


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """torch's threads for the length of the block; None: as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
