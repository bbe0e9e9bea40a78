"""What a faster token is made of: a shorter cache, or fewer launches. What has not been run is named so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from holitom.flops import LLMShape

ROWS = ("Vanilla", "HoliTom (w/o M)", "HoliTom")
WAYS = {"eager": "eager, as generate does it", "static": "static cache, eager", "graph": "static cache, CUDA graph"}
NOT_RUN = "NOT RUN"
BYTES = 2  # of a weight and of a number in the cache, in half precision


def decode_table(
    records: Sequence[Mapping[str, Any]], printed: pd.DataFrame, shape: LLMShape, counts: Mapping[str, Sequence[int]]
) -> pd.DataFrame:
    """Milliseconds per token of all tokens, HoliTom (w/o M) and HoliTom, the ratio of the first to the last, the ms
    that HoliTom saves, and how many of them a replayed graph saves too, where launches cost nothing: the cache's.

    records: their part "aims" is read; printed: the paper's figure (method, decode_tok_s); shape, counts: prompt tokens
    per layer of each row, for the line that follows from bytes alone. state: "quoted", "derived", "measured", or NOT
    RUN with the reason where a way was refused."""
    rates = printed.set_index("method")["decode_tok_s"]
    lines = [_line("printed in the paper", {row: 1000 / rates[row] for row in ROWS}, "quoted")]
    relative = {row: 100 * read_bytes(shape, counts[row]) / read_bytes(shape, counts["Vanilla"]) for row in ROWS}
    lines.append(_line("bytes read alone (all tokens = 100)", relative, "derived"))
    found = {record["row"]: record for record in records if record["part"] == "aims"}
    measured = {way: _way(found, way) for way in WAYS}
    graph, _ = measured["graph"]
    cache = graph["Vanilla"] - graph["HoliTom"] if set(graph) >= {"Vanilla", "HoliTom"} else float("nan")
    for way, (steps, state) in measured.items():
        lines.append(_line(WAYS[way], steps, state) | ({"of it cache": cache} if steps else {}))
    columns = ["way", *ROWS, "ratio", "saved", "of it cache", "state"]
    return pd.DataFrame(lines, columns=columns)


def read_bytes(shape: LLMShape, tokens_per_layer: Sequence[int]) -> float:
    """What one token of a batch of one has to read: all weights of the decoder and its head, and the cache."""
    d, narrow = shape.hidden_size, shape.num_key_value_heads * shape.head_dim
    wide = shape.num_heads * shape.head_dim
    layer = 2 * d * wide + 2 * d * narrow + 3 * d * shape.intermediate_size
    weights = shape.layers * layer + d * shape.vocab_size
    return float(BYTES * (weights + 2 * narrow * sum(tokens_per_layer)))


def explained(table: pd.DataFrame) -> str:
    """One sentence: how much of the printed ratio a shorter cache can be, and what is left."""
    lines = table.set_index("way")
    printed = lines.loc["printed in the paper", "ratio"]
    graph = lines.loc[WAYS["graph"]]
    if graph["state"] == "measured":
        cache, how = graph["ratio"], "measured where launches cost nothing"
    else:
        cache, how = lines.loc["bytes read alone (all tokens = 100)", "ratio"], "from the bytes alone"
    return (
        f"Of the printed {printed:.2f}x a shorter cache explains {cache:.2f}x ({how}); "
        f"the other {printed / cache:.2f}x is overhead of the programs compared."
    )


def _way(found: Mapping[str, Mapping[str, Any]], way: str) -> tuple[dict[str, float], str]:
    """Milliseconds per step of each row, and the state of this way."""
    runs = {row: found[row].get("decoding", {}).get(way, {}) for row in ROWS if row in found}
    steps = {row: run["ms_per_step"]["median"] for row, run in runs.items() if run.get("outcome") == "measured"}
    if steps:
        return steps, "measured"
    reasons = [run["reason"] for run in runs.values() if run.get("reason")]
    return {}, f"{NOT_RUN}: {reasons[0]}" if reasons else NOT_RUN


def _line(way: str, steps: Mapping[str, float], state: str) -> dict[str, Any]:
    full, reduced = steps.get("Vanilla", float("nan")), steps.get("HoliTom", float("nan"))
    return {"way": way, **steps, "ratio": full / reduced, "saved": full - reduced, "state": state}
