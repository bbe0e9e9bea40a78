"""The same rows on a model that is at hand: quoted scores in grey, and beside them what was measured, with its
interval."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from holitom import paper
from holitom.figures.style import TIER_STAMPS
from holitom.scores import AVERAGE, with_average
from holitom.tables.derived import NUMBER, SHORT, frames_of, quoted
from holitom.tables.parts import Column, Part, Row, Text

MODEL_OF = {
    "tiny": {"ov-7b": "onevision", "video-7b": "video"},
    "paper": {"ov-7b": "ov-7b", "video-7b": "video-7b", "ov-72b": "ov-72b"},
}
"""Which model stands in a tier for which of the paper's; the tiny tier has none for the 72B block."""
MODEL_NAMES = {
    "onevision": "tiny model in the manner of LLaVA-OneVision",
    "onevision-seed1": "tiny model in the manner of LLaVA-OneVision, trained with a second seed",
    "video": "tiny model in the manner of LLaVA-Video",
}


_PRINTED = {"Vanilla", "FastV", "PDrop", "DyCoke", "VisionZip", "PruneVid", "FastVID", "HoliTom (w/o M)", "HoliTom"}


def tasks(tier: str) -> dict[str, str]:
    """Score column of the paper -> benchmark that is measured in this tier."""
    return paper.TINY_TASKS if tier == "tiny" else paper.TASKS


def measured_part(name: str, scores: pd.DataFrame, tier: str) -> Part:
    """The paper's rows with quoted and measured scores, then the rows that only the measurement has.

    scores: ``scores.score_frame`` of the table's cells. A row without measurement says why and stays quoted.
    """
    found = with_average(scores, tasks(tier).values())
    printed = paper.table(name)
    rows: list[Row] = []
    used: set[int] = set()
    for model in printed["model"].unique():
        here = MODEL_OF[tier].get(model)
        rows.append(Row(heading=_block_name(name, model, here, found), rule=True))
        why_not = "no such model here" if here is None else "not measured yet"
        last = None
        for _, row in printed[printed["model"] == model].iterrows():
            mine = _match(found, here, row["method"], row["retained_pct"])
            used |= set(mine.index)
            cells = _cells(row["method"], row["retained_pct"], mine, tier, why_not, row)
            rows.append(Row(cells, rule=last is not None and bool(row["retained_pct"] != last)))
            last = row["retained_pct"]
        rows += _further(found, used, here, tier)
    blocks = {MODEL_OF[tier].get(model) for model in printed["model"].unique()}
    for model in [m for m in found["model"].unique() if m not in blocks]:
        rows.append(Row(heading=f"Measured only: {MODEL_NAMES.get(model, model)}", rule=True))
        rows += _further(found, used, model, tier)
    title = f"{NUMBER[name[-1]]} of HoliTom at the {tier} tier: the same rows, measured"
    return Part(f"{name}_measured", title, _caption(tier, found), columns(tier), tuple(rows), found)


def columns(tier: str) -> tuple[Column, ...]:
    """Method, shares, then for each benchmark the quoted and the measured score, the average, and the row's status."""
    per = []
    for column, task in tasks(tier).items():
        per += [
            Column(f"{SHORT[column]} · {task}", "quoted", 0.52),
            Column(f"{SHORT[column]} · {task}", "measured", 0.98),
        ]
    return (
        Column("", "Method", 1.55, "left"),
        Column("tokens kept", "asked", 0.5),
        Column("tokens kept", "got", 0.58),
        Column("", "FLOPs %", 0.62),
        *per,
        Column("average", "quoted", 0.52),
        Column("average", "measured", 0.98),
        Column("", "% of all", 0.62),
        Column("", "status", 1.5, "left"),
    )


def score_text(score: pd.Series) -> Text:
    """A measured score with half of its 95 % interval, and below it the paired difference to all tokens; * where the
    interval of the difference leaves out 0."""
    value = f"{score['value']:.1f} ±{(score['high'] - score['low']) / 2:.1f}"
    if pd.isna(score["diff"]):
        return Text(value, "measured")
    clear = "*" if score["diff_low"] > 0 or score["diff_high"] < 0 else ""
    half = (score["diff_high"] - score["diff_low"]) / 2
    return Text(value, "measured", second=f"{_signed(score['diff'])} ±{half:.1f}{clear}")


def _cells(
    label: str, asked: float | int, mine: pd.DataFrame, tier: str, why_not: str, printed: pd.Series | None = None
) -> tuple[Text, ...]:
    by = {row["benchmark"]: row for _, row in mine.iterrows()}
    first = mine.iloc[0] if len(mine) else None
    cells = [Text(label, bold=label == "HoliTom"), Text(f"{asked:.0f}%")]
    for field in ("kept_pct", "flops_pct"):
        known = first is not None and not math.isnan(first[field])
        cells.append(Text(f"{first[field]:.1f}", "measured") if known else Text("–", "muted"))
    for column, task in [*tasks(tier).items(), ("avg", AVERAGE)]:
        cells.append(quoted(printed[column]) if printed is not None else Text())
        cells.append(score_text(by[task]) if task in by else Text("–", "muted"))
    mean = by.get(AVERAGE)
    cells.append(Text(f"{retained(mean):.1f}", "measured") if mean is not None else Text("–", "muted"))
    status = ("measured" if len(by) > len(tasks(tier)) else "measured in part") if by else why_not
    if status == "measured" and label not in _PRINTED:
        status = "control of this kit"
    cells.append(Text(status, "plain" if by else "muted"))
    return tuple(cells)


def retained(score: pd.Series) -> float:
    """A score in per cent of the full model's on the same questions."""
    return 100 * score["value"] / (score["value"] - (0 if math.isnan(score["diff"]) else score["diff"]))


def _match(found: pd.DataFrame, model: str | None, method: str, retained_pct: float | int) -> pd.DataFrame:
    share = (100 * found["budget"]).round() == round(retained_pct)
    return found[(found["model"] == model) & (found["row"] == method) & share].drop_duplicates("benchmark")


def _further(found: pd.DataFrame, used: set[int], model: str | None, tier: str) -> list[Row]:
    """Rows of a model that no printed row stands for, by budget."""
    rest = found[(found["model"] == model) & ~found.index.isin(list(used))]
    rows = []
    for _, mine in rest.groupby(["row", "setting", "saliency"], sort=False):
        asked = 100 * mine["budget"].iloc[0]
        label = mine["row"].iloc[0]
        rows.append((asked, Row(_cells(label, asked, mine.drop_duplicates("benchmark"), tier, ""))))
    rows.sort(key=lambda pair: -pair[0])
    return [Row(row.cells, rule=i == 0 or bool(asked != rows[i - 1][0])) for i, (asked, row) in enumerate(rows)]


def _block_name(name: str, model: str, here: str | None, found: pd.DataFrame) -> str:
    quoted_model = f"Quoted: {paper.MODELS[model]}, {frames_of(name, model)} frames"
    if here is None or here not in set(found["model"]):
        return f"{quoted_model}. Measured: no model of this kind at this tier"
    frames = int(found[found["model"] == here]["frames"].iloc[0])
    return f"{quoted_model}. Measured: {MODEL_NAMES.get(here, here)}, {frames} frames"


def _caption(tier: str, found: pd.DataFrame) -> str:
    counts = sorted(found[found["benchmark"] != AVERAGE]["n"].unique())
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else "0"
    level = (
        "Quoted (grey italics) and measured scores come from different models and different benchmarks: compare how "
        "much a row loses, never the levels. "
    )
    stamp = TIER_STAMPS[tier][0].upper() + TIER_STAMPS[tier][1:]
    level = level if tier == "tiny" else ""
    return (
        f"{stamp}. {level}Measured: accuracy in %, ± half of the 95 % interval clustered by "
        f"video, n = {n} questions per benchmark; in the second line (in brackets in text) the difference to all "
        "tokens on the same questions, * where its 95 % interval leaves out 0. Tokens kept: share of visual tokens "
        "that enter the language model, asked for and realised. FLOPs %: of all tokens, by the papers' formula, at "
        "realised counts."
    )


def _signed(value: float | int) -> str:
    return f"{value:+.1f}".replace("-", "−") if abs(value) >= 0.05 else "0.0"


def measured_numbers(found: pd.DataFrame) -> list[dict[str, Any]]:
    """The measured scores in the long form of the table's CSV."""
    keep = [
        "model",
        "row",
        "saliency",
        "frames",
        "n",
        "value",
        "low",
        "high",
        "diff",
        "diff_low",
        "diff_high",
        "p",
        "kept_pct",
    ]
    return [
        {name: row[name] for name in keep}
        | {"column": row["benchmark"], "retained_pct": 100 * row["budget"], "unit": "%", "source": row["source"]}
        for _, row in found.iterrows()
    ]
