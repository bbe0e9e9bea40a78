"""Where the inference figure's records come from: measured here, or recorded elsewhere; or the command that would
record them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from holitom_repro import machine, paths
from holitom.errors import BadUsage, CannotRun

Record = dict[str, Any]
TIERS = ("tiny", "speed")
"""Those for which holitom_repro.latency.plan has sizes."""
COMMAND = "python -m holitom_repro bench latency --plan speed --out data/measured/h200.jsonl"
NOTHING = (
    "No machine with a GPU has recorded anything yet, so only what the paper prints is drawn. On a machine with one "
    f"CUDA GPU of 80 GB or more (the plan is meant for an H200), this records it: {COMMAND}"
)


@dataclass(frozen=True)
class Origin:
    """Where records come from. words: for a reader; here: measured on this machine."""

    words: str
    here: bool


def available(
    tier: str, limit: int | None = None, *, fresh: bool = False, quiet: bool = False
) -> tuple[list[Record], Origin]:
    """The records of a tier: measured here where that is possible (the tiny tier: anywhere; speed: with a GPU), read
    from data/measured/ otherwise; none, with the command that would record them, when neither is there.

    limit: a trial with so many repeats, kept apart from full runs. fresh: forget what was measured here before.
    BadUsage for the paper tier.
    """
    if tier not in TIERS:
        raise BadUsage(f"no latency is measured in the {tier} tier", fix=f"use {' or '.join(TIERS)}")
    if tier == "tiny" or machine.gpu().ok:
        from holitom_repro.latency.command import progress
        from holitom_repro.latency.running import record_plan

        device = "cuda" if tier == "speed" else "cpu"
        target = paths.runs(tier, "latency.jsonl" if limit is None else f"trial/latency-{limit}.jsonl")
        if fresh:
            target.unlink(missing_ok=True)
        records = record_plan(tier, target, device=device, limit=limit, progress=partial(progress, quiet=quiet)).records
        return records, Origin(f"measured here: {where(records)}", True)
    records = recorded(tier)
    return records, Origin(f"recorded elsewhere: {where(records)}" if records else NOTHING, False)


def recorded(tier: str, *, cpu: bool | None = None) -> list[Record]:
    """What data/measured/ holds for a tier; of several machines, the one with the newest record, and of each size, the
    ``newest`` run. cpu: whether on a CPU (None: as the tier is meant, the tiny one there and the others on a GPU)."""
    from holitom_repro.latency.records import read

    cpu = tier == "tiny" if cpu is None else cpu
    files = [path for path in sorted(paths.data("measured").glob("*.jsonl")) if not path.name.startswith("released")]
    found = [[r for r in read(path) if r["tier"] == tier and (r["device"] == "CPU") == cpu] for path in files]
    return newest(max(found, key=lambda records: max((r["created"] for r in records), default=""), default=[]))


def newest(records: Sequence[Record]) -> list[Record]:
    """Of each size (part, model, layers, frames, batch, CPU or GPU) the records of the code that was timed last: times
    are compared within one run, and a file that was continued with another code holds several."""
    code = {_size(record): record["code"] for record in sorted(records, key=lambda record: record["created"])}
    return [record for record in records if record["code"] == code[_size(record)]]


def _size(record: Record) -> tuple[Any, ...]:
    return (*(record[name] for name in ("part", "model", "layers", "frames", "batch")), record["device"] == "CPU")


def has_records(tier: str) -> bool:
    return bool(recorded(tier))


def require(tier: str) -> None:
    """CannotRun when a tier can neither be measured here nor drawn from records."""
    if tier == "speed" and not machine.gpu().ok and not has_records(tier):
        raise CannotRun(
            f"the speed tier needs a CUDA GPU ({machine.gpu().found}), and nothing is recorded in data/measured yet",
            fix=f"use --tier tiny here; on a machine with a GPU: {COMMAND}; notebooks/fig_inference.ipynb draws what "
            "the paper prints",
        )


def where(records: Sequence[Record]) -> str:
    """On what, when and with which code, in words."""
    if not records:
        return "nothing"
    first, days = records[0], sorted({record["created"][:10] for record in records})
    on = "cpu" if first["device"] == "CPU" else "gpu"  # the host of a run on its CPU may have a GPU too
    hardware = first["provenance"].get(on) or first["device"]
    git = first["provenance"].get("git") or {}
    idle = [record["state"]["idle"] for record in records]
    calm = "idle machine" if all(idle) else "MACHINE NOT IDLE" if False in idle else "idleness unknown"
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    torch = first["provenance"]["packages"].get("torch")
    commit = f", commit {git['commit'][:9]}{'+' if git.get('dirty') else ''}" if git.get("commit") else ""
    return f"{hardware}, {first['dtype']}, torch {torch}, {span}, {calm}{commit}"
