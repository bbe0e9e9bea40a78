"""The same rows on a model that is at hand: quoted scores in grey, and beside them what was measured, with its
interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from holitom.budgets import WITHIN
from holitom_repro.figures.style import TIER_STAMPS
from holitom_repro.scores import AVERAGE, SHARES, with_average
from holitom_repro.tables.derived import NUMBER, SHORT, quoted
from holitom_repro.tables.lines import Line, further_blocks, printed_blocks, rows_of, status, tasks
from holitom_repro.tables.parts import Column, Part, Row, Text
from holitom_repro.tables.plain import minus, scored, signed

WIDE = 1.2
"""Inches that a score with its interval takes."""
ELSEWHERE = (
    "Random saliency: drawn numbers in place of the tower's attention. Control saliency: that of a second tower, whose "
    "attention goes to the background. Saliency bottom-k keeps what is attended least. "
)
"""What the rows are whose saliency is not the model's own."""
QUOTED_APART = (
    "Quoted (grey italics) and measured scores come from different models and different benchmarks: compare how much a "
    "row loses, never the levels. "
)


def measured_part(name: str, scores: pd.DataFrame, tier: str) -> Part:
    """The paper's rows, measured, beside what the paper prints for its own model.

    scores: ``scores.score_frame`` of the table's cells. A row without measurement says why and stays quoted.
    """
    found = with_average(scores, tasks(tier).values())
    rows = rows_of(printed_blocks(name, found, tier), lambda line: _cells(line, tier))
    title = f"{NUMBER[name[-1]]} of HoliTom at the {tier} tier: the same rows, measured"
    heads = columns(tier)
    return Part(f"{name}_measured", title, _caption(tier, found, rows), heads, rows, found, before_average(heads))


def further_part(name: str, scores: pd.DataFrame, tier: str) -> Part | None:
    """The rows that no printed row stands for: controls, methods with all their stages, further models. None when there
    are none."""
    found = with_average(scores, tasks(tier).values())
    rows = rows_of(further_blocks(name, found, tier), lambda line: _cells(line, tier))
    if not rows:
        return None
    title = f"Beside {NUMBER[name[-1]]} at the {tier} tier: rows that it does not print"
    caption = _caption(tier, found, rows, printed=False)
    heads = columns(tier, printed=False)
    return Part(f"{name}_further", title, caption, heads, rows, found, before_average(heads))


def columns(tier: str, *, printed: bool = True) -> tuple[Column, ...]:
    """Method, what was asked and spent, the benchmarks' scores, the average and its share of the full model's.

    printed: with the paper's numbers beside the measured ones: the averages, and each score where the benchmark is the
    paper's own.
    """
    per = []
    for column, task in tasks(tier).items():
        if tier == "tiny" or not printed:
            per.append(Column(SHORT[column], task, WIDE))
        else:
            per += [Column(f"{SHORT[column]} · {task}", *rest) for rest in (("quoted", 0.52), ("measured", WIDE))]
    mean = [Column("average", "measured", WIDE), Column("% of Vanilla", "measured", 0.68 if printed else 0.95)]
    if printed:
        mean = [wide for one in mean for wide in (Column(one.group, "quoted", 0.52), one)]
    return (
        Column("", "Method", 1.35 if printed else 1.8, "left"),
        Column("tokens kept (%)", "asked", 0.5),
        Column("tokens kept (%)", "got", 0.55),
        Column("", "FLOPs %", 0.64),
        *per,
        *mean,
    )


def before_average(heads: Sequence[Column]) -> int:
    """Where a narrow page begins a second table: with the averages."""
    return [column.group for column in heads].index("average")


def score_text(score: pd.Series) -> Text:
    """A measured score with its 95 % interval, and below it the paired difference to all tokens, whose interval is
    symmetric; * where that leaves out 0."""
    second = ""
    if not pd.isna(score["diff"]):
        clear = "*" if score["diff_low"] > 0 or score["diff_high"] < 0 else ""
        second = f"{signed(score['diff'])} ±{(score['diff_high'] - score['diff_low']) / 2:.1f}{clear}"
    return scored(score["value"], score["low"], score["high"], second=second)


def _cells(line: Line, tier: str) -> Iterable[Text]:
    by = {row["benchmark"]: row for _, row in line.mine.iterrows()}
    spent = None if line.spent is None else line.spent["spent"]
    remark = "" if spent is None or spent.met else minus(f"{spent.off_per_frame:+.1f} per frame")
    yield Text(line.label, bold=line.label == "HoliTom", second=status(line) if _open(line) else remark)
    yield Text(line.share)
    yield from (share_text(line.spent, name) for name in ("kept_pct", "flops_pct"))
    for column, task in tasks(tier).items():
        if line.printed is not None and tier != "tiny":
            yield quoted(line.printed[column])
        yield score_text(by[task]) if task in by else Text("–", "muted")
    mean = by.get(AVERAGE)
    if line.printed is not None:
        yield quoted(line.printed["avg"])
    yield score_text(mean) if mean is not None else Text("–", "muted")
    if line.printed is not None:
        yield quoted(line.printed["avg_pct"])
    yield retained_text(mean)


def _open(line: Line) -> bool:
    """A row of a model that is here, on which something is still to be measured."""
    return line.why_not != "no such model here" and AVERAGE not in set(line.mine["benchmark"])


def share_text(score: pd.Series | None, name: str) -> Text:
    """One of ``scores.SHARES`` of a row; a dash where it is not known."""
    known = score is not None and not math.isnan(score[name])
    return Text(f"{score[name]:.1f}", "measured") if known else Text("–", "muted")


def retained_text(score: pd.Series | None) -> Text:
    """A score in per cent of the full model's on the same questions; a dash without one, or where that is 0, as in a
    trial of few questions."""
    full = 0.0 if score is None else score["value"] - (0 if math.isnan(score["diff"]) else score["diff"])
    return Text(f"{100 * score['value'] / full:.1f}", "measured") if full else Text("–", "muted")


def opening(tier: str, found: pd.DataFrame) -> str:
    """How a caption of measured rows begins: the tier, what a score is, and the number of questions behind it."""
    counts = sorted(found[found["benchmark"] != AVERAGE]["n"].unique())
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else "0"
    stamp = TIER_STAMPS[tier][0].upper() + TIER_STAMPS[tier][1:]
    stands = "MVB, Ego, LVB, VMME: the paper's benchmark that each tiny one stands for. " if tier == "tiny" else ""
    return (
        f"{stamp}. Measured: accuracy in % with its 95 % interval clustered by video, n = {n} questions per "
        "benchmark; in the second line (in round brackets in text) the difference to all tokens on the same questions, "
        f"± half of its interval, * where its 95 % interval leaves out 0. {stands}"
    )


def missed(rows: Iterable[Row]) -> bool:
    """Whether a remark stands below any name: a budget that was not met."""
    return any(" per frame" in row.cells[0].second for row in rows if row.cells)


def _caption(tier: str, found: pd.DataFrame, rows: Iterable[Row], *, printed: bool = True) -> str:
    """printed: whether numbers of the paper stand in the table."""
    below = f" (below a name: tokens per frame beyond what was asked, where more than {WITHIN:g})"
    quoted_ones = ""
    if printed:
        quoted_ones = "Grey italics are quoted from the paper. " if tier != "tiny" else QUOTED_APART
    elif any(row.cells and "saliency" in row.cells[0].value for row in rows):
        quoted_ones = ELSEWHERE
    return (
        f"{opening(tier, found)}{quoted_ones}Tokens kept, in % of all: asked for, and got before the language "
        f"model{below if missed(rows) else ''}. FLOPs %: of all tokens, by the papers' formula, at realised counts; "
        "what stages inside the model save shows there. Every count of tokens is in the part on budgets."
    )


def measured_numbers(found: pd.DataFrame) -> list[dict[str, Any]]:
    """The measured scores in the long form of the table's CSV."""
    keep = ["model", "row", "saliency", "frames", "n", "value", "low", "high", "diff", "diff_low", "diff_high", "p"]
    keep += list(SHARES)
    return [
        {name: row[name] for name in keep}
        | {"column": row["benchmark"], "retained_pct": 100 * row["budget"], "unit": "%", "source": row["source"]}
        for _, row in found.iterrows()
    ]
