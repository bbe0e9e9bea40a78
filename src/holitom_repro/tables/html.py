"""A finished table as HTML that fits a notebook's page: headings that span it, words that wrap, numbers that do not.

Rows are named by their first cell and headings say what they head, so a screen reader can follow; the looks are rules
for classes, so that another style sheet can set them anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holitom_repro.tables.parts import Column, Row, Text

CSS: dict[str, str] = {
    "plain": "",
    "quoted": "color: #6b6b6b; font-style: italic",
    "derived": "",
    "measured": "color: #0b4f78; font-weight: 600",
    "good": "color: #1b7f4b; font-weight: 600",
    "noise": "color: #8a5a00; font-weight: 600",
    "bad": "color: #b3261e; font-weight: 600",
    "muted": "color: #6b6b6b",
}
"""The look of each kind; drawing.py has the same for pictures."""
ON_DARK = {
    "quoted": "#b5b5b5",
    "measured": "#8ecbf2",
    "good": "#7fd6a4",
    "noise": "#e8b964",
    "bad": "#ff9d94",
    "muted": "#a6a6a6",
}
"""The same in JupyterLab's dark theme."""
STRONG = ("measured", "good", "noise", "bad")
"""Kinds in bold type."""
NAME = "holitom-table"
MANY = 12
"""Columns beyond which the type is smaller."""
SHORT = 16
"""Letters up to which words keep to one line: a verdict, a method's name."""
RULES = (
    (f"table.{NAME}", "margin: 0 0 6px; border-collapse: collapse; font-size: 11.5px; line-height: 1.35"),
    (f".{NAME} caption", "caption-side: bottom; text-align: left; padding: 6px 0 0; line-height: 1.45"),
    (f".{NAME} thead th", "vertical-align: bottom; text-align: right; padding: 2px 5px; max-width: 8em"),
    (f".{NAME} thead th.over", "text-align: center; max-width: none; border-bottom: 1px solid #bbb"),
    (f".{NAME} tbody td, .{NAME} tbody th", "padding: 2px 5px; text-align: right; white-space: nowrap"),
    (f".{NAME} tbody th", "font-weight: normal"),
    (f".{NAME} tbody .left, .{NAME} thead .left", "text-align: left; white-space: normal"),
    (f".{NAME} tbody .center, .{NAME} thead .center", "text-align: center"),
    (f".{NAME} tbody .short", "white-space: nowrap"),
    (f".{NAME}.dense", "font-size: 11px"),
    (f".{NAME}.dense thead th, .{NAME}.dense tbody td, .{NAME}.dense tbody th", "padding: 2px 4px"),
    (f".{NAME} tr.rule > *", "border-top: 1px solid #999"),
    (f".{NAME} tbody th.across", "font-weight: 700; text-align: left; white-space: normal; padding-top: 6px"),
    (f".{NAME} th.across div", "width: 0; min-width: 100%"),  # as wide as the columns make the table, never wider
    (f".{NAME} .bold", "font-weight: 700"),
    (f".{NAME} tbody b", "font-weight: inherit"),  # the class says how bold
    (f".{NAME} small", "font-size: 88%; font-weight: normal"),
)


def table_html(key: str, columns: Sequence[Column], rows: Sequence[Row], caption: str = "") -> str:
    """The table as one element with its own style sheet. key: its name in the page, if any; caption: HTML, below it."""
    name = f' id="{escape(key.replace("_", "-"))}"' if key else ""
    lines = [f'<table class="{NAME}{" dense" * (len(columns) > MANY)}"{name}>']
    lines += [f"<caption>{caption}</caption>"] if caption else []
    lines += ["<thead>", *_heads(columns), "</thead>"]
    sections = [list(group) for _, group in groupby(_numbered(rows), key=lambda pair: pair[0])]
    for section in sections:
        lines += ["<tbody>", *(_row(row, columns) for _, row in section), "</tbody>"]
    return f"<style>{style_sheet()}</style>" + '<div style="overflow-x: auto">' + "\n".join([*lines, "</table></div>"])


def style_sheet() -> str:
    """The rules behind the classes."""
    kinds = [(f".{NAME} .{kind}", look) for kind, look in CSS.items() if look]
    dark = [(f'[data-jp-theme-light="false"] .{NAME} .{kind}', f"color: {ink}") for kind, ink in ON_DARK.items()]
    return "\n".join(f"{selector} {{ {look} }}" for selector, look in (*RULES, *kinds, *dark))


def _numbered(rows: Sequence[Row]) -> list[tuple[int, Row]]:
    """Each row with the number of headings up to it: what belongs together."""
    found, section = [], 0
    for row in rows:
        section += bool(row.heading)
        found.append((section, row))
    return found


def _heads(columns: Sequence[Column]) -> list[str]:
    upper = [(group, list(held)) for group, held in groupby(columns, key=lambda column: column.group)]
    lines = []
    if any(group for group, _ in upper):
        cells = [
            f'<th class="over" scope="colgroup" colspan="{len(held)}">{escape(group)}</th>'
            if group
            else f'<td colspan="{len(held)}"></td>'
            for group, held in upper
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return [*lines, f"<tr>{''.join(_head(column) for column in columns)}</tr>"]


def _head(column: Column) -> str:
    """A column of words may wrap, but not into a thread."""
    least = min(round(70 * column.width), 110)
    wide = f' style="min-width: {least}px; text-align: left"' if column.align == "left" else ""
    if not column.head:
        return f'<td class="{column.align}"{wide}></td>'
    words = escape(column.head).replace(" %", "&nbsp;%").replace("% interval", "%&nbsp;interval")
    return f'<th class="{column.align}" scope="col"{wide}>{words}</th>'


def _row(row: Row, columns: Sequence[Column]) -> str:
    if row.heading:
        return (
            f'<tr class="rule"><th class="across" style="text-align: left" scope="rowgroup" colspan="{len(columns)}">'
            f"<div>{escape(row.heading)}</div></th></tr>"
        )
    pairs = enumerate(zip(row.cells, columns, strict=True))
    cells = [_cell(text, column, row=place == 0) for place, (text, column) in pairs]
    return f'<tr class="{"rule" if row.rule else "line"}">' + "".join(cells) + "</tr>"


def _side(column: Column) -> str:
    """Said in the element too, for a page that keeps no style sheet: JupyterLab with a notebook it does not trust."""
    return ' style="text-align: left"' if column.align == "left" else ""


def _stressed(text: Text) -> str:
    """Quoted and measured differ without a style sheet too: italics and bold type."""
    words = escape(text.value)
    tag = "em" if text.kind == "quoted" else "b" if text.bold or text.kind in STRONG else ""
    return f"<{tag}>{words}</{tag}>" if tag and words else words


def _cell(text: Text, column: Column, *, row: bool) -> str:
    brief = len(text.value) <= SHORT and not text.second  # what stands below a name may wrap
    short = ["short"] if column.align == "left" and brief else []
    classes = " ".join([column.align, text.kind, *short, *(["bold"] if text.bold else [])])
    words = _stressed(text) + (f" <small>{escape(text.interval)}</small>" if text.interval else "")
    words += f"<br><small>{escape(text.second)}</small>" if text.second else ""
    tag, scope = ("th", ' scope="row"') if row and text.value else ("td", "")
    return f'<{tag} class="{classes}"{_side(column)}{scope}>{words}</{tag}>'
