"""What every row of a table asked for and spent, counted in every way: a part of its own beside the scores."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from holitom.budgets import WITHIN, TokenBudget
from holitom_repro.figures.style import TIER_STAMPS
from holitom_repro.scores import with_average
from holitom_repro.tables.derived import NUMBER
from holitom_repro.tables.lines import Line, further_blocks, printed_blocks, rows_of, status, tasks
from holitom_repro.tables.measured import share_text
from holitom_repro.tables.parts import Column, Part, Text
from holitom_repro.tables.plain import signed

COLUMNS = (
    Column("", "Method", 1.8, "left"),
    Column("tokens kept (%)", "asked", 0.5),
    Column("tokens kept (%)", "got", 0.55),
    Column("tokens kept (%)", "+newl.", 0.6),
    Column("tokens kept (%)", "layers", 0.6),
    Column("tokens per frame", "asked", 0.6),
    Column("tokens per frame", "off", 0.6),
    Column("tokens per frame", "farthest", 0.75),
    Column("", "FLOPs %", 0.65),
    Column("", "status", 1.3, "left"),
)


def budgets_part(name: str, scores: pd.DataFrame, tier: str) -> Part:
    """Tokens and FLOPs of all measured rows of table1 or table2, printed ones first. scores: ``scores.score_frame``."""
    found = with_average(scores, tasks(tier).values())
    blocks = [
        (heading.split("Measured: ")[-1], lines)
        for heading, lines in (*printed_blocks(name, found, tier), *further_blocks(name, found, tier))
        if any(not line.mine.empty for line in lines)
    ]
    stamp = TIER_STAMPS[tier][0].upper() + TIER_STAMPS[tier][1:]
    caption = (
        f"{stamp}. Tokens kept, in % of all: asked for and got before the language model; with newline tokens on both "
        "sides (+newl.); averaged over its layers (layers), which is where stages inside it save. Tokens per frame: "
        f"what was asked, by how many more or fewer entered the language model on average (off, red beyond {WITHIN:g}) "
        "and on the video where it is farthest from the asked ones (farthest). FLOPs %: of all tokens, by the papers' "
        "formula, at realised counts. Means over the benchmarks."
    )
    title = f"Budgets behind {NUMBER[name[-1]]} at the {tier} tier: asked and spent"
    return Part(f"{name}_budgets", title, caption, COLUMNS, rows_of(blocks, _cells), found)


def _cells(line: Line) -> Iterable[Text]:
    score = line.spent
    spent: TokenBudget | None = None if score is None else score["spent"]
    yield Text(line.label, bold=line.label == "HoliTom")
    yield Text(line.share)
    yield from (share_text(score, name) for name in ("kept_pct", "newline_pct", "layer_pct"))
    if spent is None:
        yield from (Text("–", "muted"),) * 3
    else:
        yield Text(f"{spent.asked_tokens / spent.frames:.2f}", "measured")
        yield _off(spent.off_per_frame, met=spent.met)
        yield _off(spent.farthest_off, met=True)
    yield share_text(score, "flops_pct")
    yield Text(status(line), "plain" if score is not None else "muted")


def _off(tokens: float | int, *, met: bool) -> Text:
    """Tokens per frame beyond the asked ones, red where the budget was not met."""
    if abs(tokens) < 0.005:
        return Text("0", "muted")
    return Text(signed(tokens, 2), "measured" if met else "bad")
