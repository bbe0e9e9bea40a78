"""Measured rows of further papers: what each asked for and spent, its scores, and the share that a paper prints beside.

Their benchmarks are not those of Tables 1 and 2, so only shares of the score are put side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import pandas as pd

from holitom.figures.style import TIER_STAMPS
from holitom.scores import AVERAGE
from holitom.tables.derived import SHORT, quoted
from holitom.tables.measured import MODEL_NAMES, retained, score_text, tasks
from holitom.tables.parts import Column, Row, Text

Shares = Mapping[tuple[str, str, int], float]
"""(model, row, share asked in per cent) -> per cent of the score that a paper prints for its own model."""


def columns(tier: str) -> tuple[Column, ...]:
    """Method, tokens, FLOPs, the benchmarks, the average, and the share of the full model's score."""
    return (
        Column("", "Method", 2.0, "left"),
        Column("tokens kept (%)", "asked", 0.5),
        Column("tokens kept (%)", "before", 0.58),
        Column("tokens kept (%)", "layers", 0.55),
        Column("", "FLOPs %", 0.62),
        *(Column(SHORT[column], task, 1.15) for column, task in tasks(tier).items()),
        Column("average", "measured", 0.98),
        Column("% of all tokens' score", "quoted", 0.72),
        Column("% of all tokens' score", "measured", 0.78),
    )


def rows(found: pd.DataFrame, model: str, tier: str, shares: Shares, named: Iterable[str] = ()) -> list[Row]:
    """The rows of one model in the order of its cells, with a line where the share that was asked for changes.

    found: ``scores.with_average``; named: rows whose share stands in their name, as HieraVid's.
    """
    mine = found[found["model"] == model]
    frames = int(mine["frames"].max())
    made = [Row(heading=f"{MODEL_NAMES.get(model, model)}, {frames} frames", rule=True)]
    last: int | None = None
    for (label, _), group in mine.groupby(["row", "setting"], sort=False):
        asked = _asked(str(label), group, named)
        made.append(Row(_cells(str(label), asked, group, model, tier, shares), rule=last is not None and asked != last))
        last = asked
    return made


def caption(tier: str, found: pd.DataFrame) -> str:
    """What the columns mean, with the number of questions."""
    counts = sorted(found[found["benchmark"] != AVERAGE]["n"].unique())
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else "0"
    stamp = TIER_STAMPS[tier][0].upper() + TIER_STAMPS[tier][1:]
    return (
        f"{stamp}. Measured: accuracy in %, ± half of the 95 % interval clustered by video, n = {n} questions per "
        "benchmark; in the second line (in brackets in text) the difference to all tokens on the same questions, * "
        "where its 95 % interval leaves out 0. Tokens kept, in % of all: asked for; got before the language model; "
        "mean over its layers. FLOPs %: of all tokens, by the papers' formula, at realised counts. Quoted shares "
        "(grey italics) are of other models on other benchmarks: compare how much a row loses, never the levels. "
    )


def _asked(label: str, group: pd.DataFrame, named: Iterable[str]) -> int:
    for name in named:
        if label.startswith(name):
            return int("".join(c for c in label.removeprefix(name).split("%")[0] if c.isdigit()))
    return round(100 * group["budget"].iloc[0])


def _cells(label: str, asked: int, group: pd.DataFrame, model: str, tier: str, shares: Shares) -> tuple[Text, ...]:
    by = {row["benchmark"]: row for _, row in group.drop_duplicates("benchmark").iterrows()}
    mean = by.get(AVERAGE)
    first = mean if mean is not None else next(iter(by.values()))
    cells = [Text(label, bold=label.startswith(("MMG-Vid", "HieraVid 3"))), Text(f"{asked}%")]
    for name in ("kept_pct", "layer_pct", "flops_pct"):
        known = not math.isnan(first[name])
        cells.append(Text(f"{first[name]:.1f}", "measured") if known else Text("–", "muted"))
    for task in (*tasks(tier).values(), AVERAGE):
        cells.append(score_text(by[task]) if task in by else Text("–", "muted"))
    cells.append(quoted(shares.get((model, label, asked), math.nan)))
    cells.append(Text(f"{retained(mean):.1f}", "measured") if mean is not None else Text("–", "muted"))
    return tuple(cells)
