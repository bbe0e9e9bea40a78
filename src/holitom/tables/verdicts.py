"""Claims with their verdicts as a table: what was claimed, what came out, and why it was judged so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import pandas as pd

from holitom.claims import Judged
from holitom.claims.judging import tally
from holitom.tables.parts import Column, Part, Row, Text, verdict

COLUMNS = (
    Column("", "verdict", 1.4, "left"),
    Column("", "claim", 4.6, "left"),
    Column("", "printed", 0.7),
    Column("", "here", 0.7),
    Column("", "reason", 5.0, "left"),
)
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
    ("NOT RUN"); what does not reproduce is always shown. The counts cover all claims."""
    wanted = {*only, "NOT REPRODUCED"}
    shown = [claim for claim in judged if not only or {claim.source, str(claim.verdict)} & wanted]
    printed = any(claim.printed is not None for claim in shown)
    columns = tuple(column for column in COLUMNS if printed or column.head != "printed")
    rows: list[Row] = []
    for place, claims in groupby(shown, key=lambda claim: claim.place):
        alike = list(claims)
        if len(alike) > 1:
            rows.append(Row(heading=place, rule=True))
        rows += [Row(_cells(claim, printed=printed, place=len(alike) == 1)) for claim in alike]
    numbers = pd.DataFrame([claim.to_dict() for claim in judged])
    title = "Claims and verdicts"
    caption = "Tolerances were stated before the computation. here: this kit's number, in the unit of the reason."
    caption += " printed: the paper's number, for its own model." if printed else ""
    return Verdicts(tally(judged), Part("verdicts", title, caption, columns, tuple(rows), numbers))


def _cells(claim: Judged, *, printed: bool, place: bool) -> tuple[Text, ...]:
    """place: say where the claim stands, for no heading says it."""
    theirs = Text(f"{claim.printed:g}", "quoted") if claim.printed is not None else Text("–", "muted")
    kind = _KIND.get(claim.source, "plain")
    ours = f"{claim.computed:.2f}".replace("-", "−") if claim.computed is not None else ""
    here = Text(ours, kind) if ours else Text("–", "muted")  # type: ignore[arg-type]
    return (
        verdict(str(claim.verdict)),
        Text(f"{claim.statement} ({claim.place})" if place else claim.statement),
        *([theirs] if printed else []),
        here,
        Text(claim.reason, "muted"),
    )
