"""What is said under the bars of measured times: which methods are missing and why, and how far two records differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd


def left_out(records: Sequence[Mapping[str, Any]], at: str) -> str:
    """One sentence: which of the kit's methods have no bar at a budget ("10%"), each with what it says when it is asked
    for it in a decoder of the records' depth; "" where all are there."""
    chosen = [
        r for r in records if r["part"] == "rows" and r["outcome"] == "measured" and r["at"] in (at, "all tokens")
    ]
    if not chosen:
        return ""
    from holitom_repro.latency.settings import NAMES, refusal

    layers, reasons = len(chosen[0]["tokens_per_layer"]), {}
    for row in dict.fromkeys(NAMES.values()):
        if row not in {record["row"] for record in chosen}:
            reasons.setdefault(refusal(row, float(at.rstrip("%")) / 100, layers), []).append(row)
    parts = [f"{' and '.join(rows)} {reason}" for reason, rows in reasons.items()]
    return f"Left out: {'; '.join(parts)}." if parts else ""


def between_panels(panels: Sequence[tuple[str, pd.DataFrame]]) -> str:
    """One sentence: by how much two records of one setting differ that stand in two panels; "" where none does."""
    bars = [part for _, part in panels if len(part) and part["source"].iloc[0] == "measured"]
    if len(bars) < 2:
        return ""
    both = pd.concat(bars).drop_duplicates()
    twice = both[both.duplicated(["method", "at"], keep=False)].groupby(["method", "at"], sort=False)
    if not len(twice):
        return ""
    apart = {
        name: float((100 * (twice[name].max() / twice[name].min() - 1)).max()) for name in ("decode_tok_s", "ttft_ms")
    }
    names = " and ".join(dict.fromkeys(method for method, _ in twice.groups))
    rate = "" if math.isnan(apart["decode_tok_s"]) else f" and up to {apart['decode_tok_s']:.0f} % in decoding"
    said = f"they differ by up to {apart['ttft_ms']:.0f} % in the first token{rate}"
    return f"{names}: the same setting was timed for two panels; {said}."
