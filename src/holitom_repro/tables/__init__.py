"""Tables 1 and 2 in the paper's layout: what can be calculated, judged to the printed digit, and what was measured
here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from holitom.errors import BadUsage
from holitom_repro.figures.saving import Saved, Stamp, here, save
from holitom_repro.results import write_atomic
from holitom_repro.tables.derived import derived_part
from holitom_repro.tables.drawing import draw
from holitom_repro.tables.measured import further_part, measured_numbers, measured_part
from holitom_repro.tables.parts import Column, Part, Row, Text
from holitom_repro.tables.spent import budgets_part

__all__ = ["Column", "Part", "Row", "TableView", "Text", "render"]
TABLES = ("table1", "table2")
DERIVED = "derived, no model was run"
"""What the stamp of a part says in which nothing is measured."""


@dataclass(frozen=True)
class TableView:
    """A table in all its parts: (a) the paper's own, calculated again; (b) the same rows, measured; (c) controls and
    other rows that the paper does not print; and what each row asked for and spent."""

    name: str
    parts: tuple[Part, ...]

    def markdown(self) -> str:
        """All parts with their captions, for a terminal and for git."""
        return "\n".join(part.markdown() for part in self.parts)

    def __repr__(self) -> str:
        """As text, where no HTML can be shown."""
        return self.markdown()

    def _repr_html_(self) -> str:
        return "<br>".join(part.html() for part in self.parts)

    @property
    def numbers(self) -> pd.DataFrame:
        """Every number of the table, one per line, with its source (quoted, derived, measured)."""
        held = ("_further", "_budgets")  # in the numbers of (b)
        parts = [part for part in self.parts if not part.key.endswith(held)]
        return pd.concat([_long(part) for part in parts], ignore_index=True)

    def save(self, origin: Stamp, *, folder: Path | str | None = None) -> list[Saved]:
        """Write <name>.md and <name>.csv, and a picture of each part: <name>.png, <name>_measured.png,
        <name>_further.png and <name>_budgets.png (.svg beside). origin: of what was measured; a part without anything
        measured says that it is derived, with no number of questions and no hardware."""
        target = Path(folder) if folder else origin.folder
        note = f"\n_{origin.headline}_" + (f" · {origin.footer}" if origin.footer else "") + "\n"
        write_atomic(target / f"{self.name}.md", (self.markdown() + note).encode())
        saved = []
        for place, part in enumerate(self.parts):
            table, _, kind = part.key.rpartition("_")
            name = self.name if place == 0 else f"{self.name}_{kind if table == self.name else table}"
            measured = "measured" in set(part.numbers["source"])
            mark = origin if measured else here(origin.tier, note=DERIVED)
            saved.append(save(draw(part), name, mark, self.numbers if place == 0 else None, folder=target))
        return saved


def render(table: str, scores: pd.DataFrame | None = None, tier: str = "tiny") -> TableView:
    """The view of "table1" or "table2". scores: ``scores.score_frame`` of its measured cells; without any, only part
    (a) is there, and nothing in it is measured. "flops" is part (a) of both tables. BadUsage for another table."""
    name = table.replace("-", "").replace("_", "")
    if name == "flops":
        return TableView(name, tuple(derived_part(one) for one in TABLES))
    if name not in TABLES:
        raise BadUsage(f"there is no table {table!r}", fix=f"use one of {', '.join(TABLES)}, flops")
    parts = [derived_part(name)]
    if scores is not None and len(scores):
        parts.append(measured_part(name, scores, tier))
        if further := further_part(name, scores, tier):
            parts.append(further)
        parts.append(budgets_part(name, scores, tier))
    return TableView(name, tuple(parts))


def _long(part: Part) -> pd.DataFrame:
    return pd.DataFrame(measured_numbers(part.numbers)) if part.key.endswith("_measured") else part.numbers
