"""What figures and tables of measured times say about their origin, and what a reduction costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from holitom_repro.figures.inference import measured_order
from holitom_repro.figures.saving import Stamp, here
from holitom.flops import LLMShape

NOTES = {
    "tiny": "CPU, tiny model: the measurement works, not the papers' speed",
    "speed": "random weights, timings only",
}
ON_CPU = "full size, random weights, one CPU core: not a GPU's times"


def timing_stamp(records: Sequence[Mapping[str, Any]], tier: str) -> Stamp:
    """The stamp of a figure of measured times: repeats, hardware (of a CPU's times never the host's GPU), day, whether
    the machine was idle, commit. Without records it says that nothing was measured."""
    measured = [record for record in records if record["outcome"] == "measured"]
    if not measured:
        return here(tier, note="nothing recorded yet, printed numbers only")
    first = measured[0]
    facts, git = first["provenance"], first["provenance"].get("git") or {}
    repeats = sorted({record["repeats"] for record in measured})
    n = f"{repeats[0]}" if len(repeats) == 1 else f"{repeats[0]} to {repeats[-1]}"
    calm = all(record["state"]["idle"] for record in measured)
    cpu_seconds = ", CPU seconds" if first["clock"].startswith("process_time") else ""
    on_cpu = first["device"] == "CPU"
    hardware = f"{facts.get('cpu')}, {facts.get('threads')} thread(s)" if on_cpu else first["device"]
    when = max(record["created"] for record in measured)[:10]
    large = first["tier"] == "speed" and on_cpu
    return Stamp(
        tier,
        f"medians of {n} passes",
        f"{hardware}, {first['dtype']}{cpu_seconds}, {when}{'' if calm else ', MACHINE NOT IDLE'}",
        git.get("commit", "")[:9] + ("+" if git.get("dirty") else ""),
        ON_CPU if large else NOTES[tier],
        trial=min(repeats) < 5 and not large,
    )


def against_full(records: Sequence[Mapping[str, Any]], shape: LLMShape) -> pd.DataFrame:
    """Every measured setting against the full model of its run: seconds to the first token, of the tower, of prefill
    with the inner stages, and of what a reduction adds; "x": how many times the full model's. flops_x: prefill FLOPs
    of the full model over the setting's, with the true shapes, at the tokens that were there (derived)."""
    rows: list[dict[str, Any]] = []
    for record in (r for r in records if r["outcome"] == "measured"):
        summary, stages = record["summary"], record["summary"]["stages_ms"]
        decoder = stages["prefill"]["median"] + stages["inner"]["median"]
        rows.append(
            {
                "method": record["row"],
                "tokens": record["realised_tokens"],
                "ttft": summary["ttft_ms"]["median"] / 1000,
                "tower": stages["vision_tower"]["median"] / 1000,
                "prefill": decoder / 1000,
                "flops": shape.exact(record["tokens_per_layer"], record["text_tokens"] + 1),
                "added": summary["added_ms"]["median"] / 1000,
            }
        )
    frame = pd.DataFrame(rows)
    for name in ("ttft", "prefill", "flops"):
        frame[f"{name}_x"] = frame.loc[frame["method"] == "Vanilla", name].iloc[0] / frame[name]
    return frame.sort_values("method", key=lambda names: names.map(measured_order), kind="stable")


def cost_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """What each setting of the part "rows" adds, in ms, with the tokens it kept and the host's waits per video."""
    rows = []
    for record in (r for r in records if r["part"] == "rows" and r["outcome"] == "measured"):
        stages, waits = record["summary"]["stages_ms"], record["host_syncs"].get("count")
        rows.append(
            {
                "method": record["row"],
                "at": record["at"],
                "tokens": record["realised_tokens"],
                "saliency ms": stages["saliency"]["median"],
                "outer ms": stages["outer"]["median"],
                "inner ms": stages["inner"]["median"],
                "splice ms": stages["splice"]["median"],
                "host waits": "-" if waits is None else str(waits),
            }
        )
    columns = ["method", "at", "tokens", "saliency ms", "outer ms", "inner ms", "splice ms", "host waits"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values("method", key=lambda names: names.map(measured_order), kind="stable")
