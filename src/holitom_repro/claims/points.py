"""Claims that stand in figures: points of the inner-merging and more-frames figures, times and labels of the TTFT one.

A point is the mean of four benchmarks, one of which (EgoSchema) the paper tier can only run on its public subset, so no
absolute verdict on a point is possible; it stays quoted, with the command that measures what can be had. Times of a GPU
that is not named cannot be judged either; ratios of times can, in the speed tier, within SPEED_TOLERANCE.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from holitom_repro import paper, paths
from holitom_repro.claims.judging import SCORE_TOLERANCE, Judged, Verdict, judge_value
from holitom_repro.claims.printed import place_of
from holitom_repro.results import Number

SPEED_TOLERANCE = 0.10
"""Share of the printed ratio. Ratios move with the GPU, which the paper does not name: a faster one shortens the vision
tower and the language model alike, but not what waits for the host."""
PARTIAL = (
    "a mean of four benchmarks, one of them with answers that only its server has; ./reproduce.sh {} --tier paper "
    "measures the other three and the public part of the fourth"
)
_TIMES = {"vision_ms": "vision tower", "other_ms": "other work before the LLM", "llm_ms": "LLM prefill"}
_RATIOS = {
    "ttft_speedup": ("ttft_ms", "the first token comes"),
    "decode_speedup": ("decode_tok_s", "decoding runs"),
}
_SAME = ("file", "code", "frames", "batch", "device", "dtype", "layers")
"""What two timed rows have to share for their ratio to mean anything; their GPU besides."""


def point_claims() -> list[Judged]:
    """Every distinct point of the inner-merging and the more-frames figure."""
    inner = paper.table("fig_inner").drop_duplicates(["method", "layer", "ratio"])  # K = 14, R = 0.5 is in both sweeps
    made = [_point(row, f"K{row.layer}-R{100 * row.ratio:.0f}", f"K = {row.layer}, R = {row.ratio:g}", "fig_inner", 0)
            for row in inner.itertuples()]  # fmt: skip
    frames = paper.table("fig_frames")
    return made + [
        _point(row, f"{row.frames}-frames", f"{row.frames} frames", "fig_frames", float(row.uncertainty))
        for row in frames.itertuples()
    ]


def label_claims() -> list[Judged]:
    """The score under each bar of the TTFT figure, looked up in Table 1 at the budget that the label implies."""
    table1 = paper.table("table1")
    made = []
    for _, row in paper.table("fig_inference").iterrows():
        shares = [float(share) for share in str(row["implied_retained_pct"]).split(" or ")]
        mine = table1[(table1["method"] == row["method"]) & table1["retained_pct"].isin(shares)]
        found = float(mine["avg"].iloc[0])
        made.append(
            Judged(
                id=f"fig_inference/{row['model']}/{row['method']}/avg",
                statement=f"{paper.MODELS[row['model']]}, {row['method']}: average {row['avg']:.1f} under its bar",
                place=place_of("fig_inference"),
                printed=float(row["avg"]),
                computed=found,
                unit="points",
                tolerance="to the printed digit",
                verdict=judge_value(float(row["avg"]), found, 1),
                reason=f"Table 1's {row['method']} at {row['implied_retained_pct']} %",
                source="derived",
                experiment="fig_inference",
                reading=row["reading"],
            )
        )
    return made


def time_claims(records: Sequence[Mapping[str, Any]] | None = None, *, runs: Path | None = None) -> list[Judged]:
    """Milliseconds and rates, which stay quoted, and ratios, judged from speed-tier records of latency (None: those in
    data/measured and, with ``runs``, those measured here)."""
    found = recorded_rows(runs=runs) if records is None else list(records)
    made = []
    for _, row in paper.table("fig_inference").iterrows():
        made += [_quoted_time(row, column, f"{what} {row[column]:g} ms") for column, what in _TIMES.items()]
        made.append(_quoted_time(row, "decode_tok_s", f"decodes {row['decode_tok_s']:g} tokens per second"))
        made += list(_ratios(row, found))
    return made


def recorded_rows(folder: Path | None = None, *, runs: Path | None = None) -> list[dict[str, Any]]:
    """The timed rows of the TTFT figure on a GPU with every layer of the papers' shapes: of all machines in
    data/measured, and of this one in ``runs``/speed."""
    files = sorted((folder or paths.data("measured")).glob("*.jsonl"))
    here = runs / "speed" / "latency.jsonl" if runs else None
    rows = []
    for path in [*files, *([here] if here and here.is_file() else [])]:
        name = f"runs/speed/{path.name}" if path == here else f"data/measured/{path.name}"
        for line in path.read_text(encoding="utf-8").splitlines():
            if '"tier": "speed"' in line and '"part": "rows"' in line and (row := _row(line)):
                rows.append({**row, "file": name})
    return [row for row in rows if (row.get("outcome"), row.get("kind")) == ("measured", "latency") and _whole(row)]


def _row(line: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except ValueError:
        return {}  # cut off; the next measurement makes it again


def _whole(row: Mapping[str, Any]) -> bool:
    return row["device"] != "CPU" and row["layers"] == row["full_layers"]


def judge_ratio(low: Number, value: Number, high: Number, printed: Number) -> Verdict:
    """REPRODUCED within SPEED_TOLERANCE of the printed ratio; WITHIN NOISE where only the interval reaches it."""
    near, far = printed * (1 - SPEED_TOLERANCE), printed * (1 + SPEED_TOLERANCE)
    if near <= value <= far:
        return Verdict.REPRODUCED
    return Verdict.WITHIN_NOISE if low <= far and high >= near else Verdict.NOT_REPRODUCED


def _point(row: Any, key: str, words: str, table: str, uncertainty: Number) -> Judged:
    read = f" and {uncertainty:g} for reading it off an axis" if uncertainty else ""
    return Judged(
        id=f"{table}/{row.model}/{row.method}/{key}/avg",
        statement=f"{paper.MODELS[row.model]}, {row.method}, {words}: average score {row.avg:.1f}",
        place=place_of(table),
        printed=float(row.avg),
        unit="points",
        tolerance=f"{SCORE_TOLERANCE:g} points{read}",
        verdict=Verdict.QUOTED,
        reason=PARTIAL.format(table.replace("_", "-")),
        source="quoted",
        experiment=table,
        reading=row.reading,
    )


def _quoted_time(row: pd.Series, column: str, words: str) -> Judged:
    return Judged(
        id=f"fig_inference/{row['model']}/{row['method']}/{column}",
        statement=f"{paper.MODELS[row['model']]}, {row['method']}: {words}",
        place=place_of("fig_inference"),
        printed=float(row[column]),
        unit="ms" if column.endswith("_ms") else "tokens/s",
        tolerance="none: the GPU is not named",
        verdict=Verdict.QUOTED,
        reason="a time on a GPU that the paper does not name; the ratios are judged in the speed tier",
        source="quoted",
        experiment="fig_inference",
        reading=row["reading"],
    )


def _ratios(row: pd.Series, records: Sequence[Mapping[str, Any]]) -> Iterator[Judged]:
    for column, (metric, what) in _RATIOS.items():
        if pd.isna(row[column]) or row["method"] == "Vanilla":
            continue
        common = {
            "id": f"fig_inference/{row['model']}/{row['method']}/{column}/measured",
            "statement": f"{paper.MODELS[row['model']]}, {row['method']}: {what} {row[column]:.2f} times as fast",
            "place": place_of("fig_inference"),
            "printed": float(row[column]),
            "unit": "x",
            "tolerance": f"{SPEED_TOLERANCE:.0%} of the ratio, for another GPU",
            "tier": "speed",
            "experiment": "fig_inference",
            "reading": row["reading"],
        }
        pairs = [pair for pair in _pairs(row, records) if all(one["summary"].get(metric) for one in pair)]
        if not pairs:
            why = "no record of this row on a GPU; ./reproduce.sh fig-inference --tier speed measures and judges it"
            yield Judged(**common, verdict=Verdict.NOT_RUN, reason=why, source="quoted")
            continue
        full, mine = max(pairs, key=lambda pair: str(pair[1]["created"]))
        low, value, high = _ratio(full["summary"][metric], mine["summary"][metric], faster_is_less=metric == "ttft_ms")
        where = mine["provenance"].get("gpu") or mine["device"]
        yield Judged(
            **common,
            computed=value,
            low=low,
            high=high,
            verdict=judge_ratio(low, value, high, float(row[column])),
            reason=f"{value:.2f} [{low:.2f}, {high:.2f}, from quartiles] on {where}; the paper's GPU is not named",
            source="measured",
            records=(f"{mine['file']}: {mine['row']}, {mine['at']}, {mine['created']}",),
        )


def _pairs(row: pd.Series, records: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The full model and this row at its printed budget, timed by the same code on the same GPU."""
    here = [r for r in records if r["model"] == row["model"]]
    rows = [r for r in here if (r["row"], r["at"]) == (row["method"], "printed")]
    base = [r for r in here if r["row"] == "Vanilla"]
    return [(b, r) for r in rows for b in base if _alike(b, r)]


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    gpus = [record["provenance"].get("gpu") for record in (one, other)]
    return gpus[0] == gpus[1] and all(one[name] == other[name] for name in _SAME)


def _ratio(full: Mapping[str, Any], mine: Mapping[str, Any], *, faster_is_less: bool) -> tuple[float, float, float]:
    over, under = (full, mine) if faster_is_less else (mine, full)
    return over["q1"] / under["q3"], over["median"] / under["median"], over["q3"] / under["q1"]
