"""From what a setting has given to its record: samples, summary, tokens, memory, crossings."""

from __future__ import annotations

from typing import Any

from holitom_repro.latency.decoding import describe
from holitom_repro.latency.passes import STAGES
from holitom_repro.latency.records import extrapolated, summarise
from holitom_repro.latency.shapes import Loaded
from holitom_repro.latency.subjects import Subject
from holitom.models.llava_onevision import pooled_grid


def record_of(loaded: Loaded, subject: Subject, protocol: Any, batch: int, frames: int) -> dict[str, Any]:
    """The part of a record that belongs to one setting."""
    samples: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    if subject.outcome == "measured":
        samples = {
            "ttft": [one.ttft for one in subject.bare],
            "staged_ttft": [one.ttft for one in subject.staged],
            "stages": {name: [one.stages[name] for one in subject.staged] for name in STAGES},
            "decode": subject.decode,
        }
        summary = summarise(samples, batch, protocol.new_tokens)
        if (full := extrapolated(summary, loaded.layers, loaded.full_layers)) is not None:
            summary["extrapolated"] = full
    last = subject.bare[-1] if subject.bare else None
    stats = last.stats if last is not None else None
    return {
        "row": subject.reduction.name,
        "at": subject.at,
        "method": subject.reduction.describe(),
        "path": "stock transformers" if subject.run is None else "reduce_tokens",
        "outcome": subject.outcome,
        "reason": subject.reason,
        **_tokens(loaded, stats, subject, frames),
        "decoding": _decoding(subject, batch, protocol.new_tokens),
        "calls": dict(stats.calls) if stats is not None else {},
        "samples": samples,
        "summary": summary,
        "memory": {
            "weight_bytes": loaded.weight_bytes,
            **subject.memory,
            "kv_bytes_per_layer": list(last.kv_bytes) if last is not None else [],
        },
        "host_syncs": subject.syncs,
    }


def _decoding(subject: Subject, batch: int, number: int) -> dict[str, Any]:
    """Every way of generating that was run; nothing of a setting that failed."""
    if subject.outcome != "measured":
        return {}
    eager = subject.decoded.get("eager", [])
    return {way: describe(runs, eager, batch, number) for way, runs in subject.decoded.items()}


def _tokens(loaded: Loaded, stats: Any, subject: Subject, frames: int) -> dict[str, Any]:
    """Visual tokens per video asked for, kept (mean over the batch), and entering each layer (mean)."""
    if stats is None or not stats.samples:
        full = _visual_tokens(loaded, frames) if subject.bare else None
        layers = [full] * loaded.layers if full else []
        return {"requested_tokens": full, "realised_tokens": full, "tokens_per_layer": layers}
    batch = stats.samples
    return {
        "requested_tokens": sum(s.requested for s in batch) / len(batch),
        "realised_tokens": sum(s.kept for s in batch) / len(batch),
        "tokens_per_layer": [sum(layer) / len(batch) for layer in zip(*(s.per_layer for s in batch), strict=True)],
    }


def _visual_tokens(loaded: Loaded, frames: int) -> int:
    rows, columns = pooled_grid(loaded.config)
    return frames * rows * columns
