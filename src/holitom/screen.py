"""What the terminal shows at the end: the tables an experiment wrote, and one line per experiment for ``all``.

On a terminal, tables are drawn by rich; piped or redirected, the Markdown itself is printed, which reads as well.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from holitom import paths

_RULE = re.compile(r"^\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?$")
_MARKS = re.compile(r"\*\*|(?<!\w)_|_(?!\w)|`")


def duration(seconds: float | int) -> str:
    """45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def written_since(tier: str, moment: float) -> list[Path]:
    """The Markdown tables below figures/<tier> that were written after ``moment`` (time.time), oldest first."""
    found = [path for path in paths.figures(tier).glob("*.md") if path.stat().st_mtime >= moment]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def show_tables(files: Iterable[Path]) -> None:
    """Print Markdown files; pipe tables are drawn as tables when standard output is a terminal."""
    for path in files:
        text = path.read_text(encoding="utf-8").strip()
        if sys.stdout.isatty():
            draw(text, Console())
        else:
            print(text)
        print(f"({path.relative_to(paths.root())})\n")


def draw(markdown: str, console: Console) -> None:
    """Draw Markdown's pipe tables with rich; every other line is printed as it is."""
    lines = markdown.split("\n")
    at = 0
    while at < len(lines):
        if at + 1 < len(lines) and lines[at].lstrip().startswith("|") and _RULE.match(lines[at + 1].strip()):
            end = at + 2
            while end < len(lines) and lines[end].lstrip().startswith("|"):
                end += 1
            console.print(_table(lines[at], lines[at + 1], lines[at + 2 : end]))
            at = end
        else:
            console.print(Text(_MARKS.sub("", lines[at].lstrip("# "))))
            at += 1


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def _table(head: str, rule: str, body: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, mark in zip(_cells(head), _cells(rule), strict=False):
        table.add_column(_MARKS.sub("", name), justify="right" if mark.endswith(":") else "left")
    for line in body:
        table.add_row(*(Text(_MARKS.sub("", cell), style="bold" if "**" in cell else "") for cell in _cells(line)))
    return table


def rows(lines: Sequence[Sequence[str]], header: Sequence[str]) -> None:
    """Print plain aligned columns; the last one may be long and is left to wrap."""
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header) - 1)]
    for line in [header, *lines]:
        print("  ".join([*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line[-1]]).rstrip())
