"""The same rows on a model that is at hand: quoted scores in grey, and beside them what was measured, with its
interval."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from holitom import paper
from holitom.budgets import WITHIN, TokenBudget
from holitom.figures.style import TIER_STAMPS
from holitom.scores import AVERAGE, SHARES, with_average
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

QUOTED_APART = (
    "Quoted (grey italics) and measured scores come from different models and different benchmarks: compare how much a "
    "row loses, never the levels. "
)
_PRINTED = {"Vanilla", "FastV", "PDrop", "DyCoke", "VisionZip", "PruneVid", "FastVID", "HoliTom (w/o M)", "HoliTom"}


def tasks(tier: str) -> dict[str, str]:
    """Score column of the paper -> benchmark that is measured in this tier."""
    return paper.TINY_TASKS if tier == "tiny" else paper.TASKS


def measured_part(name: str, scores: pd.DataFrame, tier: str) -> Part:
    """The paper's rows, measured, beside what the paper prints for its own model.

    scores: ``scores.score_frame`` of the table's cells. A row without measurement says why and stays quoted.
    """
    found = with_average(scores, tasks(tier).values())
    printed = paper.table(name)
    rows: list[Row] = []
    for model in printed["model"].unique():
        here = MODEL_OF[tier].get(model)
        rows.append(Row(heading=_block_name(name, model, here, found), rule=True))
        why_not = "no such model here" if here is None else "not measured yet"
        last = None
        for _, row in printed[printed["model"] == model].iterrows():
            mine = _match(found, here, row["method"], row["retained_pct"])
            cells = _cells(row["method"], row["retained_pct"], mine, tier, why_not, row)
            rows.append(Row(cells, rule=last is not None and bool(row["retained_pct"] != last)))
            last = row["retained_pct"]
    title = f"{NUMBER[name[-1]]} of HoliTom at the {tier} tier: the same rows, measured"
    return Part(f"{name}_measured", title, _caption(tier, found), columns(tier), tuple(rows), found)


def further_part(name: str, scores: pd.DataFrame, tier: str) -> Part | None:
    """The rows that no printed row stands for: controls, methods with all their stages, further models. None when there
    are none."""
    found = with_average(scores, tasks(tier).values())
    used: set[int] = set()
    blocks = []
    for row in paper.table(name).itertuples():
        here = MODEL_OF[tier].get(row.model)
        used |= set(_match(found, here, row.method, row.retained_pct).index)
        blocks.append(here)
    rows: list[Row] = []
    for model in found["model"].unique():
        further = _further(found, used, model, tier)
        if further:
            kind = "Beside the printed rows" if model in blocks else "A model that the table does not have"
            heading = f"{kind}: {MODEL_NAMES.get(model, model)}, {_frames(found, model)} frames"
            rows += [Row(heading=heading, rule=True), *further]
    if not rows:
        return None
    title = f"Beside {NUMBER[name[-1]]} at the {tier} tier: rows that it does not print"
    caption = _caption(tier, found, printed=False)
    return Part(f"{name}_further", title, caption, columns(tier, printed=False), tuple(rows), found)


def columns(tier: str, *, printed: bool = True) -> tuple[Column, ...]:
    """Method, what was asked and spent, the benchmarks' scores, the average and its share of the full model's, status.

    printed: with the paper's numbers beside the measured ones: the averages, and each score where the benchmark is the
    paper's own.
    """
    per = []
    for column, task in tasks(tier).items():
        if tier == "tiny" or not printed:
            per.append(Column(SHORT[column], task, 0.98))
        else:
            per += [Column(f"{SHORT[column]} · {task}", *rest) for rest in (("quoted", 0.52), ("measured", 0.98))]
    mean = [Column("average", "measured", 0.98), Column("% of all", "measured", 0.68)]
    if printed:
        mean = [wide for one in mean for wide in (Column(one.group, "quoted", 0.52), one)]
    return (
        Column("", "Method", 1.35 if printed else 1.8, "left"),
        Column("tokens kept (%)", "asked", 0.5),
        Column("tokens kept (%)", "got", 0.5),
        Column("tokens kept (%)", "+newl.", 0.55),
        Column("tokens kept (%)", "layers", 0.52),
        Column("", "off/frame", 0.68),
        Column("", "FLOPs %", 0.64),
        *per,
        *mean,
        Column("", "status", 1.22, "left"),
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
    first = by.get(AVERAGE, mine.iloc[0] if len(mine) else None)
    share = asked if first is None else 100 * first["budget"]
    cells = [Text(label, bold=label == "HoliTom"), Text(f"{round(share, 1):g}%")]
    cells += [share_text(first, name) for name in ("kept_pct", "newline_pct", "layer_pct")]
    cells += [_off(first), share_text(first, "flops_pct")]
    for column, task in tasks(tier).items():
        if printed is not None and tier != "tiny":
            cells.append(quoted(printed[column]))
        cells.append(score_text(by[task]) if task in by else Text("–", "muted"))
    mean = by.get(AVERAGE)
    spread = score_text(mean) if mean is not None else Text("–", "muted")
    share_left = Text(f"{retained(mean):.1f}", "measured") if mean is not None else Text("–", "muted")
    if printed is None:
        cells += [spread, share_left]
    else:
        cells += [quoted(printed["avg"]), spread, quoted(printed["avg_pct"]), share_left]
    status = ("measured" if len(by) > len(tasks(tier)) else "measured in part") if by else why_not
    if status == "measured" and label not in _PRINTED:
        status = "both stages" if " + " in label else "control of this kit"
    cells.append(Text(status, "plain" if by else "muted"))
    return tuple(cells)


def share_text(score: pd.Series | None, name: str) -> Text:
    """One of ``scores.SHARES`` of a row; a dash where it is not known."""
    known = score is not None and not math.isnan(score[name])
    return Text(f"{score[name]:.1f}", "measured") if known else Text("–", "muted")


def _off(score: pd.Series | None) -> Text:
    """Tokens per frame beyond the asked ones, red where the budget was not met."""
    spent: TokenBudget | None = None if score is None else score["spent"]
    if spent is None:
        return Text("–", "muted")
    if abs(spent.off_per_frame) < 0.005:
        return Text("0", "muted")
    return Text(f"{spent.off_per_frame:+.2f}".replace("-", "−"), "measured" if spent.met else "bad")


def retained(score: pd.Series) -> float:
    """A score in per cent of the full model's on the same questions."""
    return 100 * score["value"] / (score["value"] - (0 if math.isnan(score["diff"]) else score["diff"]))


def _match(found: pd.DataFrame, model: str | None, method: str, retained_pct: float | int) -> pd.DataFrame:
    share = (100 * found["budget"]).round() == round(retained_pct)
    return found[(found["model"] == model) & (found["row"] == method) & share].drop_duplicates("benchmark")


def _further(found: pd.DataFrame, used: set[int], model: str, tier: str) -> list[Row]:
    """Rows of a model that no printed row stands for, by budget; an odd budget goes with the next lower one."""
    rest = found[(found["model"] == model) & ~found.index.isin(list(used))]
    made = []
    for _, mine in rest.groupby(["row", "setting", "saliency", "frames"], sort=False):
        asked, label = 100 * mine["budget"].iloc[0], mine["row"].iloc[0]
        made.append((asked, Row(_cells(label, asked, mine.drop_duplicates("benchmark"), tier, ""))))
    all_asked = [asked for asked, _ in made]
    groups = [asked for asked in all_asked if all_asked.count(asked) > 1]
    placed = [(max((g for g in groups if g <= asked + 1e-9), default=asked), row) for asked, row in made]
    placed.sort(key=lambda pair: -pair[0])
    return [Row(row.cells, rule=i == 0 or bool(group != placed[i - 1][0])) for i, (group, row) in enumerate(placed)]


def _block_name(name: str, model: str, here: str | None, found: pd.DataFrame) -> str:
    quoted_model = f"Quoted: {paper.MODELS[model]}, {frames_of(name, model)} frames"
    if here is None or here not in set(found["model"]):
        return f"{quoted_model}. Measured: no model of this kind at this tier"
    return f"{quoted_model}. Measured: {MODEL_NAMES.get(here, here)}, {_frames(found, here)} frames"


def _frames(found: pd.DataFrame, model: str) -> int:
    return int(found[found["model"] == model]["frames"].max())


def opening(tier: str, found: pd.DataFrame) -> str:
    """How a caption of measured rows begins: the tier, what a score is, and the number of questions behind it."""
    counts = sorted(found[found["benchmark"] != AVERAGE]["n"].unique())
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else "0"
    stamp = TIER_STAMPS[tier][0].upper() + TIER_STAMPS[tier][1:]
    stands = "MVB, Ego, LVB, VMME: the paper's benchmark that each tiny one stands for. " if tier == "tiny" else ""
    return (
        f"{stamp}. Measured: accuracy in %, ± half of the 95 % interval clustered by video, n = {n} questions per "
        "benchmark; in the second line (in brackets in text) the difference to all tokens on the same questions, * "
        f"where its 95 % interval leaves out 0. {stands}"
    )


def _caption(tier: str, found: pd.DataFrame, *, printed: bool = True) -> str:
    """printed: whether numbers of the paper stand in the table."""
    quoted_ones = ""
    if printed:
        quoted_ones = "Grey italics are quoted from the paper. " if tier != "tiny" else QUOTED_APART
    return (
        f"{opening(tier, found)}{quoted_ones}Tokens kept, in % of all: asked for and got before the language model; "
        "with newline tokens on both sides (+newl.); averaged over its layers (layers), which is where stages inside "
        f"it save. off/frame: visual tokens per frame kept beyond what was asked, red beyond {WITHIN:g}. FLOPs %: of "
        "all tokens, by the papers' formula, at realised counts."
    )


def _signed(value: float | int) -> str:
    return f"{value:+.1f}".replace("-", "−") if abs(value) >= 0.05 else "0.0"


def measured_numbers(found: pd.DataFrame) -> list[dict[str, Any]]:
    """The measured scores in the long form of the table's CSV."""
    keep = ["model", "row", "saliency", "frames", "n", "value", "low", "high", "diff", "diff_low", "diff_high", "p"]
    keep += list(SHARES)
    return [
        {name: row[name] for name in keep}
        | {"column": row["benchmark"], "retained_pct": 100 * row["budget"], "unit": "%", "source": row["source"]}
        for _, row in found.iterrows()
    ]
