"""The whole picture of one state: per setting a large frame and all frames with their tokens, and the timeline."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from holitom_repro.explorer.canvas import Canvas, rgb, text_width
from holitom_repro.explorer.cells import TINTS, draw_focus, draw_strip, segment_of, strip_height
from holitom_repro.explorer.clips import Clip
from holitom_repro.explorer.costs import cost
from holitom_repro.explorer.outcome import ALONE, CARRIED, GROUP, Outcome
from holitom_repro.explorer.state import Side
from holitom_repro.explorer.table import percent
from holitom_repro.explorer.timeline import draw_timeline, timeline_height
from holitom_repro.figures.overlay import DYNAMIC_COLOUR, STATIC_COLOUR
from holitom_repro.figures.style import GRID, MUTED

WIDTH, GAP = 1160, 24
FOCUS_HIGH, HEAD = 318, 46
STAMP = "#7A4A00"


@dataclass(frozen=True)
class Picture:
    """A PNG with the words that stand for it. As the last value of a notebook cell it shows itself."""

    png: bytes
    width: int
    height: int
    alt: str

    @property
    def html(self) -> str:
        """For a page: with its alternative text, never wider than its place."""
        from html import escape

        data = base64.b64encode(self.png).decode()
        return (
            f'<img src="data:image/png;base64,{data}" alt="{escape(self.alt)}" width="{self.width}" '
            f'height="{self.height}" style="width:100%;max-width:{self.width}px;height:auto;display:block">'
        )

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        data = base64.b64encode(self.png).decode()
        shown = {"text/html": self.html, "image/png": data, "text/plain": self.alt}  # HTML first: it carries the words
        return shown, {"image/png": {"width": self.width, "alt": self.alt}}


def draw_page(clip: Clip, pairs: Sequence[tuple[Side, Outcome]], focus: int) -> Picture:
    """Draw one or two settings on a clip; ``focus`` is the frame drawn large."""
    aspect = clip.size[0] / clip.size[1]
    column = (WIDTH - GAP) // 2
    large = _focus_size(aspect, column)
    below = 38 if large[0] > column - 150 else 6
    strip = strip_height(clip, column)
    upper = HEAD + large[1] + below + strip + 14 if len(pairs) > 1 else HEAD + max(large[1] + below, strip) + 14
    canvas = Canvas(WIDTH, round(upper + timeline_height(len(pairs)) + 30))
    for number, (side, found) in enumerate(pairs):
        x = number * (column + GAP)
        _heading(canvas, x, column, side, found)
        draw_focus(canvas, (x, HEAD), clip, found, focus, large)
        _details(canvas, x, column, large, clip, found, focus)
        at = (x, HEAD + large[1] + below) if len(pairs) > 1 else (column + GAP, HEAD - 2)
        draw_strip(canvas, at, clip, found, focus, column)
    if len(pairs) > 1:
        canvas.line([(column + GAP / 2, 0), (column + GAP / 2, upper - 14)], GRID)
    draw_timeline(canvas, upper, clip, pairs, focus)
    _legend(canvas, canvas.height - 22, clip.note)
    return Picture(canvas.png(), WIDTH, canvas.height, describe(clip, pairs, focus))


def describe(clip: Clip, pairs: Sequence[tuple[Side, Outcome]], focus: int) -> str:
    """The picture in words, for those who do not see it."""
    parts = [f"{clip.title}, {len(clip)} frames of {clip.video.cells} cells."]
    for side, found in pairs:
        asked = f"{side.label} keeps {len(found.kept)} of {found.total} tokens ({percent(found.realised)})"
        groups = int((found.size > 1).sum())
        cells = int(found.size[found.size > 1].sum())
        stands = f"{groups} of them stand for {cells} cells" if groups else "none merged"
        segments = ""
        if found.segments:
            begin = ", ".join(f"{clip.frames.seconds[first]:.1f}" for first, _ in found.segments[:8])
            more = " and later" if len(found.segments) > 8 else ""
            segments = f"; {len(found.segments)} segments, beginning at {begin} s{more}"
        here = _counts(found, focus)
        parts.append(
            f"{asked}, {stands}{segments}. In frame {focus + 1} at {clip.frames.seconds[focus]:.1f} s it keeps {here}."
        )
    return " ".join(parts)


def _focus_size(aspect: float | int, column: int) -> tuple[int, int]:
    high = min(FOCUS_HIGH, column / aspect)
    return min(column, round(high * aspect)), round(high)


def _heading(canvas: Canvas, x: float | int, column: int, side: Side, found: Outcome) -> None:
    canvas.mark((x + 8, 11), side.look.marker, side.look.colour, 14)
    wide = canvas.text((x + 21, 1), side.label, size=15, bold=True)
    canvas.text((x + 30 + wide, 4), side.settings, size=11, colour=MUTED)
    flops = cost(found.realised, side).flops / cost(1).flops
    figures = f"{len(found.kept):,} of {found.total:,} tokens"
    end = canvas.text((x, 23), figures, size=12, bold=True)
    words = f" = {percent(found.realised)} (asked {100 * found.budget:.3g} %) · {percent(flops)} of the prefill FLOPs"
    canvas.text((x + end, 23), words, size=12)


def _counts(found: Outcome, frame: int) -> str:
    alone, groups = int(found.per_frame(ALONE)[frame]), int(found.per_frame(GROUP)[frame])
    mine = (found.frame == frame) & (found.size > 1)
    cells = int(found.size[mine].sum())
    tokens = f"{alone + groups} token{'' if alone + groups == 1 else 's'}"
    return f"{tokens}: {alone} as they are, {groups} standing for {cells} cells" if groups else f"{tokens} as they are"


def _details(
    canvas: Canvas, x: float | int, column: int, large: tuple[int, int], clip: Clip, found: Outcome, frame: int
) -> None:
    """What the large frame shows: under it, or beside it where it is narrow."""
    segment = int(segment_of(found)[frame])
    place = f"frame {frame + 1} of {len(clip)} · {clip.frames.seconds[frame]:.1f} s"
    place += f" · segment S{segment + 1}" if segment >= 0 else ""
    alone, groups = int(found.per_frame(ALONE)[frame]), int(found.per_frame(GROUP)[frame])
    carried = int(found.per_frame(CARRIED)[frame])
    gone = clip.video.cells - alone - groups - carried
    if large[0] > column - 150:
        y = HEAD + large[1] + 5
        canvas.text((x, y), place, size=10.5, bold=True)
        canvas.text(
            (x, y + 15), f"{_counts(found, frame)}; {carried} cells merged into others, {gone} dropped", size=10
        )
        return
    left = x + large[0] + 14
    lines = [f"of {clip.video.cells} cells", f"{alone} kept as they are", f"{groups} kept for several"]
    canvas.text((left, HEAD), place.split(" · ")[0].capitalize(), size=11, bold=True)
    for number, words in enumerate(
        [*place.split(" · ")[1:], "", *lines, f"{carried} merged into others", f"{gone} dropped"]
    ):
        canvas.text((left, HEAD + 20 + 17 * number), words, size=10.5)


def _legend(canvas: Canvas, y: float | int, note: str) -> None:
    """What each mark means, and what the features are."""
    x = 0.0
    entries = (
        ("alone", "kept as it is"),
        ("disc", "kept, stands for several cells (how many)"),
        ("tint", "cells of one token, tinted alike"),
        ("fade", "dropped"),
    )
    for kind, words in entries:
        box = (x, y - 6, x + 18, y + 6)
        if kind == "alone":
            canvas.rectangle(box, "#8FA3AD")
            for grow in (0, 1):
                canvas.rectangle((x + grow, y - 6 + grow, x + 18 - grow, y + 6 - grow), None, DYNAMIC_COLOUR)
        elif kind == "disc":
            canvas.mark((x + 9, y), "o", STATIC_COLOUR, 14)
            canvas.text((x + 9, y), "9", size=7.5, colour="white", anchor="mm")
        elif kind == "tint":
            for k in range(3):
                canvas.rectangle((x + 6 * k, y - 6, x + 6 * k + 5.4, y + 6), _tinted(TINTS[k]))
        else:
            canvas.rectangle(box, "#E9E9E9", "#C8C8C8")
        x += 24
        x += canvas.text((x, y), words, size=10, anchor="lm") + 18
    words = f"tiny tier: {note}"
    wide = text_width(words, 9)
    canvas.rectangle((WIDTH - wide - 12, y - 8, WIDTH, y + 8), STAMP)
    canvas.text((WIDTH - 6, y), words, size=9, colour="white", anchor="rm")


def _tinted(tint: str) -> str:
    """A tint on a grey cell, as it looks in a frame."""
    red, green, blue = (rgb(tint) * 0.55 + 185 * 0.45).astype(int).tolist()
    return f"#{red:02X}{green:02X}{blue:02X}"
