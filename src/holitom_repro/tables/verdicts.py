"""Claims with their verdicts as a table: what was claimed, what came out, and why it was judged so."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import pandas as pd

from holitom_repro.claims import Judged, Verdict
from holitom_repro.claims.judging import tally
from holitom_repro.tables.parts import Column, Part, Row, Text, verdict
from holitom_repro.tables.plain import minus

COLUMNS = (
    Column("", "verdict", 1.4, "left"),
    Column("", "claim", 4.6, "left"),
    Column("", "printed", 0.7),
    Column("", "here", 0.7),
    Column("", "reason", 5.0, "left"),
)
FIRST = (Verdict.NOT_REPRODUCED, Verdict.NOT_RUN, Verdict.WITHIN_NOISE, Verdict.REPRODUCED, Verdict.QUOTED)
"""The order of the lines: what a reader has to know first."""
COUNTS = ("cells", "budgets")
"""Units that are counted, so a number of them has no decimals."""
_INTERNAL = (r"^as [a-z_0-9]+/[^:]*: ", r" \((?:[a-z]+_)+[a-z]+\)")
"""Names of other claims and, in brackets, of drawing functions: they say nothing to a reader."""
_KIND = {"derived": "derived", "measured": "measured", "quoted": "quoted"}


@dataclass(frozen=True)
class Verdicts:
    """Judged claims for a notebook: a count of the verdicts, and a line for each claim that was selected."""

    counts: dict[str, int]
    part: Part

    @property
    def summary(self) -> str:
        """ "90 REPRODUCED, 2 WITHIN NOISE": only what occurs."""
        return ", ".join(f"{n} {word}" for word, n in self.counts.items() if n) or "no claim is judged here"

    def markdown(self) -> str:
        return f"{self.summary}\n\n{self.part.markdown()}"

    def __repr__(self) -> str:
        """As text, where no HTML can be shown."""
        return self.markdown()

    def _repr_html_(self) -> str:
        table = self.part.html() if self.part.rows else ""
        return f"<p><b>{self.summary}</b></p>{table}"


def verdicts_of(judged: Sequence[Judged], *, only: Sequence[str] = ()) -> Verdicts:
    """The verdicts on ``judged``. only: show the lines of these sources ("derived", "measured", "quoted") or verdicts
    ("NOT RUN"); what does not reproduce is always shown, and first (FIRST). The counts cover all claims."""
    wanted = {*only, "NOT REPRODUCED"}
    shown = [claim for claim in judged if not only or {claim.source, str(claim.verdict)} & wanted]
    shown.sort(key=lambda claim: FIRST.index(claim.verdict))  # stable
    printed = any(claim.printed is not None for claim in shown)
    columns = tuple(column for column in COLUMNS if printed or column.head != "printed")
    rows: list[Row] = []
    for place, claims in groupby(shown, key=lambda claim: claim.place):
        alike = list(claims)
        if len(alike) > 1:
            rows.append(Row(heading=readable(place), rule=True))
        rows += [Row(_cells(claim, printed=printed, place=len(alike) == 1)) for claim in alike]
    numbers = pd.DataFrame([claim.to_dict() for claim in judged])
    title = "Claims and verdicts"
    caption = "Tolerances were stated before the computation. here: this kit's number"
    caption += "; printed: the paper's, for its own model (scores without a unit)" if printed else ""
    caption += "."
    return Verdicts(tally(judged), Part("verdicts", title, caption, columns, tuple(rows), numbers))


def _cells(claim: Judged, *, printed: bool, place: bool) -> tuple[Text, ...]:
    """place: say where the claim stands, for no heading says it."""
    theirs = Text("–", "muted")
    if claim.printed is not None:
        theirs = Text(_with_unit(f"{claim.printed:g}", "" if claim.unit == "points" else claim.unit), "quoted")
    here = Text("–", "muted")
    if claim.computed is not None:
        ours = f"{claim.computed:.{0 if claim.unit in COUNTS else 2}f}"
        here = Text(_with_unit(ours, claim.unit), _KIND.get(claim.source, "plain"))  # type: ignore[arg-type]
    return (
        verdict(str(claim.verdict)),
        Text(readable(f"{claim.statement} ({claim.place})" if place else claim.statement)),
        *([theirs] if printed else []),
        here,
        Text(readable(claim.reason), "muted"),
    )


def readable(text: str) -> str:
    """A claim's words without internal names, with one minus sign throughout and no zero below zero."""
    for name in _INTERNAL:
        text = re.sub(name, "", text)
    text = re.sub(r"(?<![\w.])[-−+](0(?:\.0+)?)(?![\d.]*\d)", r"\1", text)
    return re.sub(r"(?<![\w.)-])-(?=\d)", "−", text)


def _with_unit(number: str, unit: str) -> str:
    """ "36 cells", "2.40 x", "78.95 %", "−3.00 points"."""
    short = {"% of the score": "%", "% of the differences": "%"}.get(unit, unit)
    return f"{minus(readable(number))} {short}".strip()
