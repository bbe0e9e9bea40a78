"""A table drawn by matplotlib: the same cells and looks as in HTML, as PNG and SVG that need no browser."""

from __future__ import annotations

import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from holitom_repro.figures.style import INK, MUTED, styled
from holitom_repro.tables.html import STRONG
from holitom_repro.tables.parts import Column, Part, Text

LINE, SECOND, HEAD, MARGIN = 0.21, 0.145, 0.23, 0.12  # inches
COLOURS = {
    "plain": INK,
    "quoted": "#6b6b6b",
    "derived": INK,
    "measured": "#0b4f78",
    "good": "#1b7f4b",
    "noise": "#8a5a00",
    "bad": "#b3261e",
    "muted": "#8a8a8a",
}
SIZE, SMALL = 8.0, 6.8


def draw(part: Part) -> Figure:
    """One part as a figure of its natural size: title, two header lines, the rows, the caption below. Headings too long
    for the table take several lines."""
    width = sum(c.width for c in part.columns) + 2 * MARGIN
    caption = textwrap.wrap(part.caption, width=int(width * 17.5))
    headings = [textwrap.wrap(row.heading, width=int(width * 12.5)) for row in part.rows]
    heights = [
        LINE + SECOND * (max(len(lines) - 1, 0) + any(t.second for t in row.cells))
        for row, lines in zip(part.rows, headings, strict=True)
    ]
    head = 0.36 + 2 * HEAD + 0.05
    height = head + sum(heights) + 0.12 + 0.145 * len(caption) + 0.12
    with styled():
        fig = Figure(figsize=(width, height), layout="constrained")
        fig.get_layout_engine().set(w_pad=0, h_pad=0)  # type: ignore[union-attr]
        ax = fig.add_subplot()
        ax.set(xlim=(0, width), ylim=(height, 0))
        ax.axis("off")
        ax.text(MARGIN, 0.12, part.title, fontsize=10, fontweight="bold", va="center", color=INK)
        top = _header(ax, part.columns, 0.34, width)
        for place, (row, lines, high) in enumerate(zip(part.rows, headings, heights, strict=True)):
            if lines:
                ax.add_patch(Rectangle((MARGIN, top), width - 2 * MARGIN, high, facecolor="#E8EEF2", lw=0))
                look = {"fontsize": SIZE, "fontweight": "bold", "va": "center", "color": INK}
                ax.text(MARGIN + 0.05, top + high / 2, "\n".join(lines), **look)
            elif place % 2:
                ax.add_patch(Rectangle((MARGIN, top), width - 2 * MARGIN, high, facecolor="#F7F7F7", lw=0))
            if row.rule:
                ax.plot([MARGIN, width - MARGIN], [top, top], color="#9A9A9A", lw=0.6)
            left = MARGIN
            for column, text in zip(part.columns, row.cells, strict=False):
                _cell(ax, column, text, left, top, high)
                left += column.width
            top += high
        ax.plot([MARGIN, width - MARGIN], [top, top], color=INK, lw=1)
        for number, line in enumerate(caption):
            ax.text(MARGIN, top + 0.16 + 0.145 * number, line, fontsize=7, color=MUTED, va="center")
    return fig


def _header(ax: Axes, columns: tuple[Column, ...], top: float | int, width: float | int) -> float:
    ax.plot([MARGIN, width - MARGIN], [top, top], color=INK, lw=1)
    left, begin = MARGIN, MARGIN
    for number, column in enumerate(columns):
        _cell(ax, column, Text(column.head, bold=True), left, top + HEAD, HEAD, size=7.5)
        left += column.width
        last = number + 1 == len(columns) or columns[number + 1].group != column.group
        if last:
            if column.group:
                ax.text(
                    (begin + left) / 2,
                    top + HEAD / 2,
                    column.group,
                    fontsize=SIZE,
                    fontweight="bold",
                    ha="center",
                    va="center",
                    color=INK,
                )
                ax.plot([begin + 0.06, left - 0.06], [top + HEAD, top + HEAD], color="#9A9A9A", lw=0.6)
            begin = left
    bottom = top + 2 * HEAD + 0.05
    ax.plot([MARGIN, width - MARGIN], [bottom, bottom], color=INK, lw=0.7)
    return bottom


def _cell(
    ax: Axes,
    column: Column,
    text: Text,
    left: float | int,
    top: float | int,
    high: float | int,
    size: float | int = SIZE,
) -> None:
    x = {"left": left + 0.05, "right": left + column.width - 0.05, "center": left + column.width / 2}[column.align]
    strong = text.bold or text.kind in STRONG
    look = {
        "ha": column.align,
        "va": "center",
        "color": COLOURS[text.kind],
        "style": "italic" if text.kind == "quoted" else "normal",
    }
    if not text.value:
        return
    middle = top + high * (0.30 if text.second else 0.5)
    value = {"fontsize": size, "fontweight": "bold" if strong else "normal", **look}
    if text.interval:
        beside = ax.text(x, middle, text.interval, fontsize=SMALL, **look)
        at = {"xy": (0, 0.5), "xycoords": beside, "xytext": (-3, 0), "textcoords": "offset points"}
        ax.annotate(text.value, **at, **value)  # ends where its interval begins
    else:
        ax.text(x, middle, text.value, **value)
    if text.second:
        ax.text(x, top + high * 0.72, text.second, fontsize=SMALL, **look)
