"""What figures and tables of measured times say about their origin, and what a reduction costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from holitom.figures.inference import measured_order
from holitom.figures.saving import Stamp, here

NOTES = {
    "tiny": "CPU, tiny model: the measurement works, not the papers' speed",
    "speed": "random weights, timings only",
}


def timing_stamp(records: Sequence[Mapping[str, Any]], tier: str) -> Stamp:
    """The stamp of a figure of measured times: repeats, hardware, day, whether the machine was idle, commit. Without
    records it says that nothing was measured."""
    measured = [record for record in records if record["outcome"] == "measured"]
    if not measured:
        return here(tier, note="nothing recorded yet, printed numbers only")
    first = measured[0]
    facts, git = first["provenance"], first["provenance"].get("git") or {}
    repeats = sorted({record["repeats"] for record in measured})
    n = f"{repeats[0]}" if len(repeats) == 1 else f"{repeats[0]} to {repeats[-1]}"
    calm = all(record["state"]["idle"] for record in measured)
    cpu_seconds = ", CPU seconds" if first["clock"].startswith("process_time") else ""
    hardware = facts.get("gpu") or f"{facts.get('cpu')}, {facts.get('threads')} thread(s)"
    when = max(record["created"] for record in measured)[:10]
    return Stamp(
        tier,
        f"medians of {n} passes",
        f"{hardware}, {first['dtype']}{cpu_seconds}, {when}{'' if calm else ', MACHINE NOT IDLE'}",
        git.get("commit", "")[:9] + ("+" if git.get("dirty") else ""),
        NOTES[tier],
        trial=min(repeats) < 5,
    )


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
