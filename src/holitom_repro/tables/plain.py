"""A data frame as a table that can be read: headings in words with units, intervals in one cell, words to the left,
numbers to the right.

``plain(frame, {"value": ("score (%)", number(1)), ("diff", "low", "high"): ("difference (points)", difference)})``
shows these columns in this order and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import pandas as pd

from holitom.errors import BadUsage
from holitom_repro.tables.html import table_html
from holitom_repro.tables.parts import Column, Row, Text, pipes

Format = Callable[..., str | Text]
"""The values of one cell -> what it says."""
Columns = Mapping[str | tuple[str, ...], tuple[str, Format]]
"""A column of the frame, or several that share a cell -> heading and format."""


@dataclass(frozen=True)
class Plain:
    """A table without a name of its own, for one place in a notebook."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    caption: str = ""

    def __repr__(self) -> str:
        """As text, where no HTML can be shown."""
        return pipes(self.columns, self.rows)

    def _repr_html_(self) -> str:
        return table_html("", self.columns, self.rows, escape(self.caption))


def plain(frame: pd.DataFrame, columns: Columns, *, caption: str = "", groups: str = "", lines: str = "") -> Plain:
    """The frame's rows in their order; a missing value is a dash. A heading "got | 10 %" stands below a common "got".

    groups: a column that heads the rows of each of its values; lines: one whose change draws a line. BadUsage for a
    column that the frame does not have.
    """
    places = [(place,) if isinstance(place, str) else place for place in columns]
    known = [str(name) for name in frame.columns]
    if unknown := [name for place in (*places, (groups, lines)) for name in place if name and name not in known]:
        raise BadUsage(f"the frame has no column {', '.join(unknown)}", fix=f"it has {', '.join(known)}")
    forms = [form for _, form in columns.values()]
    rows: list[Row] = []
    last: tuple[Any, Any] | None = None
    for line in frame.to_dict("records"):
        here = line.get(groups), line.get(lines)
        if groups and (last is None or last[0] != here[0]):
            rows.append(Row(heading=str(here[0]), rule=last is not None))
            last = here
        cells = [_cell([line[name] for name in place], form) for place, form in zip(places, forms, strict=True)]
        rows.append(Row(tuple(cells), rule=last is not None and last[1] != here[1]))
        last = here
    heads = []
    for heading, form in columns.values():
        over, _, head = heading.rpartition(" | ")
        heads.append(Column(over, head, 1.0, "left" if form in WORDS else "center" if form is mark else "right"))
    return Plain(tuple(heads), tuple(rows), caption)


def words(value: Any) -> str:
    """Words as they are, to the left."""
    return str(value)


def name(value: Any) -> Text:
    """Words that name a row, in bold type."""
    return Text(str(value), bold=True)


def small(value: Any) -> Text:
    """Words that stand back."""
    return Text(str(value), "muted")


def figures(value: Any) -> str:
    """Numbers that are written already, to the right: "25, 20, 15"."""
    return str(value)


def mark(value: Any) -> Text:
    """✓ or ✗."""
    return Text("✓", "good") if value else Text("✗", "bad")


def number(decimals: int = 0, *, unit: str = "", sign: bool = False) -> Format:
    """1,200 or 40.8 or −0.3, with so many decimals and a unit."""

    def written(value: float | int) -> str:
        return (signed(value, decimals) if sign else minus(f"{value:,.{decimals}f}")) + unit

    return written


def percent(value: float | int) -> str:
    """A share of 1: 12.5 %."""
    return f"{100 * value:.3g} %"


def share(decimals: int = 1) -> Format:
    """A share of 1 with so many decimals: 10.3 %."""
    return lambda value: f"{100 * value:.{decimals}f} %"


def estimate(value: float | int, low: float | int, high: float | int) -> Text:
    """A measured value with its interval: 95.3 [92.9, 98.1]."""
    return Text(f"{value:.1f} [{low:.1f}, {high:.1f}]", "measured")


def scored(value: float | int, low: float | int, high: float | int, *, second: str = "") -> Text:
    """A measured score with its interval in smaller type, where many stand side by side. Never ± half of it: an
    interval near 100 % is not symmetric, and no score is above 100 %."""
    return Text(f"{value:.1f}", "measured", second=second, interval=f"[{low:.1f}, {high:.1f}]")


def difference(value: float | int, low: float | int, high: float | int) -> Text:
    """−3.1 [−4.6, −1.6], in bold type where the interval leaves out 0."""
    clear = low > 0 or high < 0
    return Text(f"{signed(value)} [{signed(low)}, {signed(high)}]", "measured" if clear else "plain", bold=clear)


def p_value(value: float | int) -> str:
    """<0.001, 0.043, 0.38."""
    return "<0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def quoted(form: Format) -> Format:
    """As quoted from a paper."""

    def written(*values: Any) -> Text:
        made = form(*values)
        return replace(made, kind="quoted") if isinstance(made, Text) else Text(made, "quoted")

    return written


def signed(value: float | int, decimals: int = 1) -> str:
    """+0.4, −1.2, and 0.0 without a sign."""
    zero = abs(value) < 0.5 * 10**-decimals
    return f"{0:.{decimals}f}" if zero else minus(f"{value:+,.{decimals}f}")


def minus(text: str) -> str:
    """With the minus sign, which is as wide as a plus."""
    return text.replace("-", "−")


WORDS: tuple[Format, ...] = (words, name, small)


def _cell(values: list[Any], form: Format) -> Text:
    if any(value is None or value != value for value in values):
        return Text("–", "muted")
    made = form(*values)
    return made if isinstance(made, Text) else Text(made)
