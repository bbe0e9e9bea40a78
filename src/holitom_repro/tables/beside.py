"""Measured rows of further papers: what each asked for and spent, its scores, and the share that a paper prints beside.

Their benchmarks are not those of Tables 1 and 2, so only shares of the score are put side by side.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

import pandas as pd

from holitom.budgets import WITHIN
from holitom_repro.scores import AVERAGE, with_average
from holitom_repro.tables.derived import SHORT, quoted
from holitom_repro.tables.lines import MODEL_NAMES, tasks
from holitom_repro.tables.measured import WIDE, before_average, missed, opening, retained_text, score_text, share_text
from holitom_repro.tables.parts import Column, Part, Row, Text

Shares = Mapping[tuple[str, str, int], float]
"""(model, row, share asked in per cent) -> per cent of the score that a paper prints for its own model."""


def measured_part(
    name: str, title: str, scores: pd.DataFrame, tier: str, shares: Callable[[str], Shares], *, own: str, remark: str
) -> Part:
    """The part "(b)" of a further paper: its rows beside those of other methods, model by model.

    scores: ``scores.score_frame`` of the experiment's cells; shares: gives the printed shares of a tier; own: a pattern
    of the rows that are the paper's method as it is, in which a group is the share that the row is named by (none: the
    budget before the language model); remark: what the caption says beyond the columns.
    """
    found = with_average(scores, tasks(tier).values())
    printed = shares(tier)
    made = [row for model in found["model"].unique() for row in _rows(found, model, tier, printed, own)]
    heads, caption = _columns(tier), _caption(tier, found, made) + remark
    return Part(f"{name}_measured", title, caption, heads, tuple(made), found, before_average(heads))


def _columns(tier: str) -> tuple[Column, ...]:
    """Method, tokens, FLOPs, the benchmarks, the average, and the share of the full model's score."""
    return (
        Column("", "Method", 2.25, "left"),
        Column("tokens kept (%)", "asked", 0.5),
        Column("tokens kept (%)", "before", 0.58),
        Column("tokens kept (%)", "layers", 0.55),
        Column("", "FLOPs %", 0.62),
        *(Column(SHORT[column], task, WIDE) for column, task in tasks(tier).items()),
        Column("average", "measured", WIDE),
        Column("% of all tokens' score", "quoted", 0.72),
        Column("% of all tokens' score", "measured", 0.78),
    )


def _rows(found: pd.DataFrame, model: str, tier: str, shares: Shares, own: str) -> list[Row]:
    """The rows of one model in the order of its cells, with a line where the share that was asked for changes."""
    mine = found[found["model"] == model]
    frames = int(mine["frames"].max())
    made = [Row(heading=f"{MODEL_NAMES.get(model, model)}, {frames} frames", rule=True)]
    last: int | None = None
    for (label, _), group in mine.groupby(["row", "setting"], sort=False):
        asked = _asked(str(label), group, own)
        cells = _cells(str(label), asked, group, model, tier, shares, bold=re.fullmatch(own, str(label)) is not None)
        made.append(Row(cells, rule=last is not None and asked != last))
        last = asked
    return made


def _caption(tier: str, found: pd.DataFrame, made: list[Row]) -> str:
    """What the columns mean, with the number of questions."""
    below = f"Below a name: by how much the tokens before it differ from what was asked, beyond {WITHIN:g} per frame. "
    theirs = "are of other models on other benchmarks: compare how much a row loses, never the levels. "
    return (
        f"{opening(tier, found)}Tokens kept, in % of all: asked for; got before the language model; mean over its "
        f"layers. {below if missed(made) else ''}FLOPs %: of all tokens, by the papers' formula, at realised counts. "
        f"Quoted shares (grey italics) {theirs if tier == 'tiny' else 'are printed for benchmarks of their own. '}"
    )


def _asked(label: str, group: pd.DataFrame, own: str) -> int:
    """The share that a row is named by, where it is named by one, else the budget before the language model."""
    named = re.match(own, label)
    return int(named[1]) if named is not None and named.re.groups else round(100 * group["budget"].iloc[0])


def _cells(
    label: str, asked: int, group: pd.DataFrame, model: str, tier: str, shares: Shares, *, bold: bool
) -> tuple[Text, ...]:
    by = {row["benchmark"]: row for _, row in group.drop_duplicates("benchmark").iterrows()}
    mean = by.get(AVERAGE)
    first = mean if mean is not None else next(iter(by.values()))
    remark = first["spent"].remark() if first["spent"] is not None else ""
    cells = [Text(label, bold=bold, second=remark), Text(f"{asked}%")]
    cells += [share_text(first, name) for name in ("kept_pct", "layer_pct", "flops_pct")]
    for task in (*tasks(tier).values(), AVERAGE):
        cells.append(score_text(by[task]) if task in by else Text("–", "muted"))
    cells.append(quoted(shares.get((model, label, asked), math.nan)))
    cells.append(retained_text(mean))
    return tuple(cells)
