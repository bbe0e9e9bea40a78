"""A finished table as text with a meaning per cell, and its three written forms: Markdown, HTML for notebooks, CSV.

The meaning decides the look in every form: quoted numbers are grey italics and never look like reproduced ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Literal

import pandas as pd

from holitom_repro.tables.html import table_html

Kind = Literal["plain", "quoted", "derived", "measured", "good", "noise", "bad", "muted"]

NAMING = 2
"""Columns that say which row it is: the method and its share of tokens."""
VERDICTS: dict[str, tuple[str, Kind]] = {
    "REPRODUCED": ("✓", "good"),
    "WITHIN NOISE": ("≈", "noise"),
    "NOT REPRODUCED": ("✗", "bad"),
    "NOT RUN": ("–", "muted"),
    "QUOTED": ("", "quoted"),
}


@dataclass(frozen=True)
class Text:
    """What one cell says, in one or two lines, and what kind of statement it is. interval: what stands beside the
    value in smaller type."""

    value: str = ""
    kind: Kind = "plain"
    bold: bool = False
    second: str = ""
    interval: str = ""

    def markdown(self) -> str:
        text = f"{self.value} {self.interval}".strip()
        text += f" ({self.second})" if self.second else ""
        if not text:
            return ""
        if self.kind == "quoted":
            return f"_{text}_"
        return f"**{text}**" if self.bold else text


def verdict(word: str) -> Text:
    """A verdict as glyph and word; QUOTED, which judges nothing, as a word alone."""
    glyph, kind = VERDICTS[word]
    return Text(f"{glyph} {word}".strip(), kind)


@dataclass(frozen=True)
class Column:
    """A column: the group above it, its own head, its width in inches when drawn, and its alignment."""

    group: str
    head: str
    width: float | int = 0.6
    align: Literal["left", "right", "center"] = "right"


@dataclass(frozen=True)
class Row:
    """One line of cells, or a heading across the table (``heading``); rule: a line above it."""

    cells: tuple[Text, ...] = ()
    heading: str = ""
    rule: bool = False


@dataclass(frozen=True)
class Part:
    """One table with its caption. numbers: every number in it, one per line, each with its source; cut: the column from
    which on a page of Markdown, which is narrow, has a second table whose rows begin with the same NAMING cells (0: one
    table)."""

    key: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    numbers: pd.DataFrame = field(repr=False, compare=False)
    cut: int = 0

    def __post_init__(self) -> None:
        for row in self.rows:
            if row.cells and len(row.cells) != len(self.columns):
                raise ValueError(f"a row of {self.key} has {len(row.cells)} cells for {len(self.columns)} columns")

    def markdown(self) -> str:
        """Pipe tables; headings become rows of their own, and italics have no colour."""
        everything = range(len(self.columns))
        shown = [everything]
        if self.cut:
            shown = [everything[: self.cut], (*everything[:NAMING], *everything[self.cut :])]
        tables = "\n\n".join(self._pipes(places) for places in shown)
        caption = self.caption.replace("grey italics", "italics").replace("Grey italics", "Italics")
        return f"### {self.title}\n\n{tables}\n\n{caption}\n"

    def _pipes(self, places: Sequence[int]) -> str:
        """These columns alone."""
        rows = [replace(row, cells=tuple(row.cells[i] for i in places)) if row.cells else row for row in self.rows]
        return pipes([self.columns[i] for i in places], rows)

    def __repr__(self) -> str:
        """As text, where no HTML can be shown."""
        return self.markdown()

    def html(self) -> str:
        """The same for a notebook or a page."""
        return table_html(self.key, self.columns, self.rows, f"<b>{escape(self.title)}.</b> {escape(self.caption)}")

    def _repr_html_(self) -> str:
        return self.html()


def pipes(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """Columns and rows as a Markdown table."""
    sides = {"left": ":---", "right": "---:", "center": ":---:"}
    lines = [_pipe([f"{c.group} {c.head}".strip() for c in columns]), _pipe([sides[c.align] for c in columns])]
    for row in rows:
        heading = [f"**{row.heading}**", *[""] * (len(columns) - 1)]
        lines.append(_pipe([text.markdown() for text in row.cells] or heading))
    return "\n".join(lines)


def _pipe(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
