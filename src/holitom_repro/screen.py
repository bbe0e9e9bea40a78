"""What the terminal shows at the end: the tables an experiment wrote, and one line per experiment for ``all``.

On a terminal, tables are drawn to its width; piped or redirected, the Markdown itself is printed, which reads as well.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from holitom_repro import paths

_RULE = re.compile(r"^\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?$")
_MARKS = re.compile(r"\*\*|(?<!\w)_|_(?!\w)|`")
_SHORTER = (  # what a table that is too wide for the terminal loses first
    (r"( ·)? tiny_\w+", ""),
    (r"([✓≈✗·]) (NOT REPRODUCED|REPRODUCED|WITHIN NOISE|NOT RUN|QUOTED)", r"\1"),
    (r"\(([+−-]?[\d.]+) ±[\d.]+", r"(\1"),  # the interval of a difference
    (r" \[[\d.]+, [\d.]+\]", ""),
    (r" \([+−-]?[\d.]+ ?\*?\)", ""),
)
LAST_COLUMN = 14


def duration(seconds: float | int) -> str:
    """45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def written_since(tier: str, moment: float | int) -> list[Path]:
    """The files that were written after ``moment`` (time.time), oldest first: below figures/<tier>, or below
    runs/<tier>/trial by a run with a limit."""
    places = (paths.figures(tier), paths.runs(tier, "trial"))
    found = [path for place in places for path in place.glob("*.*") if path.stat().st_mtime >= moment]
    return sorted(found, key=lambda path: (path.stat().st_mtime, path.name))


def show(files: Iterable[Path]) -> None:
    """Print the Markdown tables among the files, then where everything was written."""
    files = list(files)
    for path in files:
        if path.suffix == ".md":
            text = path.read_text(encoding="utf-8").strip()
            print(draw(text, shutil.get_terminal_size().columns) if sys.stdout.isatty() else text, end="\n\n")
    suffixes: dict[Path, list[str]] = {}
    for path in files:
        suffixes.setdefault(path.relative_to(paths.root()).with_suffix(""), []).append(path.suffix)
    for stem, found in suffixes.items():
        print(f"wrote {stem}{' '.join(found)}")


def draw(markdown: str, width: int) -> str:
    """Markdown with its pipe tables as aligned columns of at most ``width`` characters where that is possible without
    cutting a number; every other line is wrapped."""
    lines = markdown.split("\n")
    drawn: list[str] = []
    at = 0
    while at < len(lines):
        if at + 1 < len(lines) and lines[at].lstrip().startswith("|") and _RULE.match(lines[at + 1].strip()):
            end = at + 2
            while end < len(lines) and lines[end].lstrip().startswith("|"):
                end += 1
            head, rule, *body = (_cells(line) for line in lines[at:end])
            drawn += _table(head, rule, body, width)
            at = end
        else:
            drawn += textwrap.wrap(_plain(lines[at].lstrip("# ")), width) or [""]
            at += 1
    return "\n".join(drawn)


def _cells(line: str) -> list[str]:
    return [_plain(cell).strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:].removesuffix("|"))]


def _plain(text: str) -> str:
    return _MARKS.sub("", text).replace("\\|", "|")


def _table(head: list[str], rule: list[str], body: list[list[str]], width: int) -> list[str]:
    """The lines of one table. A row with only its first cell filled is a heading. Cells lose their least needed parts,
    step by step, until the table fits."""
    shortened = False
    for pattern, short in (("", ""), *_SHORTER):
        if pattern:
            head = [re.sub(pattern, short, cell) for cell in head]
            body = [[re.sub(pattern, short, cell) for cell in line] for line in body]
            shortened = True
        widths = _widths(head, body)
        if sum(widths) + 2 * len(widths) - 2 <= width:
            break
    right = [mark.endswith(":") for mark in rule]
    drawn = _row(head, widths, right, at_bottom=True)
    drawn.append("  ".join("─" * wide for wide in widths))
    for line in body:
        drawn += _row(line, widths, right) if any(line[1:]) else [line[0]]
    return [*drawn, *(["(shortened to fit this terminal)"] if shortened else [])]


def _widths(head: list[str], body: list[list[str]]) -> list[int]:
    """The widest cell or header word of each column; headings span the table, and the last column may wrap."""
    lines = [line for line in body if any(line[1:])]
    words = [max(map(len, name.split()), default=1) for name in head]
    widths = [max([word, *(len(line[i]) for line in lines if i < len(line))]) for i, word in enumerate(words)]
    widths[-1] = min(widths[-1], max(words[-1], LAST_COLUMN))
    return widths


def _row(cells: list[str], widths: list[int], right: list[bool], *, at_bottom: bool = False) -> list[str]:
    """One row, as many lines high as its highest cell."""
    wrapped = [textwrap.wrap(cell, wide) or [""] for cell, wide in zip(cells, widths, strict=False)]
    height = max(map(len, wrapped))
    columns = []
    for part, wide, to_right in zip(wrapped, widths, right, strict=False):
        empty = [""] * (height - len(part))
        full = [*empty, *part] if at_bottom else [*part, *empty]
        columns.append([text.rjust(wide) if to_right else text.ljust(wide) for text in full])
    return ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]


def rows(lines: Sequence[Sequence[str]], header: Sequence[str]) -> None:
    """Print plain aligned columns; the last one may be long and is left to wrap."""
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header) - 1)]
    for line in [header, *lines]:
        print("  ".join([*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line[-1]]).rstrip())
