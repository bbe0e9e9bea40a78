"""A finished table as text with a meaning per cell, and its three written forms: Markdown, HTML for notebooks, CSV.

The meaning decides the look in every form: quoted numbers are grey italics and never look like reproduced ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd
from pandas.io.formats.style import Styler

Kind = Literal["plain", "quoted", "derived", "measured", "good", "bad", "muted"]

CSS: dict[str, str] = {
    "plain": "color: #222222",
    "quoted": "color: #6b6b6b; font-style: italic",
    "derived": "color: #222222",
    "measured": "color: #0b4f78; font-weight: 600",
    "good": "color: #1b7f4b; font-weight: 600",
    "bad": "color: #b3261e; font-weight: 600",
    "muted": "color: #8a8a8a",
}
"""The look of each kind in HTML; drawing.py uses the same colours."""

VERDICTS: dict[str, tuple[str, Kind]] = {
    "REPRODUCED": ("✓", "good"),
    "WITHIN NOISE": ("≈", "good"),
    "NOT REPRODUCED": ("✗", "bad"),
    "NOT RUN": ("–", "muted"),
    "QUOTED": ("“", "quoted"),
}


@dataclass(frozen=True)
class Text:
    """What one cell says, in one or two lines, and what kind of statement it is."""

    value: str = ""
    kind: Kind = "plain"
    bold: bool = False
    second: str = ""

    def markdown(self) -> str:
        text = f"{self.value} ({self.second})" if self.second else self.value
        if not text:
            return ""
        if self.kind == "quoted":
            return f"_{text}_"
        return f"**{text}**" if self.bold else text


def verdict(word: str) -> Text:
    """A verdict as glyph and word."""
    glyph, kind = VERDICTS[word]
    return Text(f"{glyph} {word}", kind)


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
    """One table with its caption. numbers: every number in it, one per line, each with its source."""

    key: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    numbers: pd.DataFrame = field(repr=False, compare=False)
    wrap: Literal["nowrap", "normal"] = "nowrap"

    def __post_init__(self) -> None:
        for row in self.rows:
            if row.cells and len(row.cells) != len(self.columns):
                raise ValueError(f"a row of {self.key} has {len(row.cells)} cells for {len(self.columns)} columns")

    def markdown(self) -> str:
        """A pipe table; headings become rows of their own."""
        heads = [f"{c.group} {c.head}".strip() for c in self.columns]
        rules = [{"left": ":---", "right": "---:", "center": ":---:"}[c.align] for c in self.columns]
        lines = [_pipe(heads), _pipe(rules)]
        for row in self.rows:
            cells = [t.markdown() for t in row.cells] or [f"**{row.heading}**", *[""] * (len(self.columns) - 1)]
            lines.append(_pipe(cells))
        return f"### {self.title}\n\n" + "\n".join(lines) + f"\n\n{self.caption}\n"

    def styler(self) -> Styler:
        """The same as a pandas Styler, for a notebook."""
        columns = pd.MultiIndex.from_tuples([(c.group, c.head) for c in self.columns])
        texts = [_line(row, len(self.columns)) for row in self.rows]
        frame = pd.DataFrame([[_html(t) for t in line] for line in texts], columns=columns)
        looks = pd.DataFrame([[_css(t) for t in line] for line in texts], columns=columns)
        styler = Styler(frame, uuid=self.key.replace("_", "-"), cell_ids=False).hide(axis="index")
        styler = styler.apply(lambda _: looks, axis=None).set_caption(f"<b>{self.title}.</b> {self.caption}")
        rules = [i for i, row in enumerate(self.rows) if row.rule or row.heading]
        border = [{"selector": f"tbody tr:nth-child({i + 1}) td", "props": "border-top: 1px solid #999"} for i in rules]
        aligned = [
            {"selector": f"td.col{i}, th.col{i}", "props": f"text-align: {c.align}"} for i, c in enumerate(self.columns)
        ]
        return styler.set_table_styles(
            [
                {
                    "selector": "caption",
                    "props": "caption-side: bottom; text-align: left; font-size: 90%; max-width: 70em",
                },
                {"selector": "th.col_heading.level0", "props": "text-align: center"},
                {"selector": "td, th", "props": f"padding: 2px 8px; white-space: {self.wrap}"},
                *aligned,
                *border,
            ]
        )


def _line(row: Row, width: int) -> Sequence[Text]:
    return row.cells or (Text(row.heading, "plain", bold=True), *[Text()] * (width - 1))


def _html(text: Text) -> str:
    return f"{text.value}<br><small>{text.second}</small>" if text.second else text.value


def _css(text: Text) -> str:
    return CSS[text.kind] + ("; font-weight: 700" if text.bold else "")


def _pipe(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
