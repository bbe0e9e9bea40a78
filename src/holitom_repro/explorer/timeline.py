"""The video over time: the similarity of neighbouring frames, the segments of each method, the tokens kept per frame.
One slot per frame; all panels share it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import matplotlib
import numpy as np
from PIL import Image

from holitom_repro.explorer.canvas import Canvas, device, text_width
from holitom_repro.explorer.clips import Clip
from holitom_repro.explorer.outcome import ALONE, GROUP, Outcome, similarity
from holitom_repro.explorer.state import Side
from holitom_repro.figures.overlay import DYNAMIC_COLOUR, STATIC_COLOUR
from holitom_repro.figures.style import GRID, INK, MUTED, SEGMENT_COLOURS

GUTTER, MARGIN = 128, 84
MAP_HIGH, BAND, BARS_HIGH = 112, 15, 66
_CIVIDIS = (matplotlib.colormaps["cividis"](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)


def timeline_height(sides: int) -> int:
    """Logical height of the panels for one or two settings."""
    return 24 + BAND + MAP_HIGH + sides * (BAND + BARS_HIGH + 20) - BAND + (sides - 1) * BAND + 34


def draw_timeline(
    canvas: Canvas, top: float | int, clip: Clip, pairs: Sequence[tuple[Side, Outcome]], focus: int
) -> None:
    """From ``top`` on, over the whole width of the canvas."""
    left, right = GUTTER, canvas.width - MARGIN
    slot = (right - left) / len(clip)
    first = pairs[0][1]
    y = top
    canvas.text((0, y), "Over time", size=12, bold=True)
    words = "similarity of each cell to the next frame, the segments found, and the tokens kept in each frame"
    canvas.text((text_width("Over time", 12, True) + 10, y + 1.5), words, size=10, colour=MUTED)
    y += 24
    stripe = (left + focus * slot, y, left + (focus + 1) * slot)
    low = top + timeline_height(len(pairs)) - 32
    canvas.rectangle((stripe[0], stripe[1], stripe[2], low), "#EFEFEF")
    _band(canvas, y, left, slot, first, pairs[0][0])
    y += BAND
    _map(canvas, y, left, slot, clip, [found for _, found in pairs])
    y += MAP_HIGH
    highest = max(int((found.per_frame(ALONE) + found.per_frame(GROUP)).max()) for _, found in pairs)
    for number, (side, found) in enumerate(pairs):
        if number:
            y += 4
            _band(canvas, y, left, slot, found, side)
            y += BAND
        _bars(canvas, y + 14, left, slot, side, found, highest)
        y += 20 + BARS_HIGH
    _axis(canvas, y, left, slot, clip)
    for x in (stripe[0], stripe[2]):
        canvas.line([(x, stripe[1]), (x, low)], INK, 0.7)


def _band(canvas: Canvas, y: float | int, left: float | int, slot: float | int, found: Outcome, side: Side) -> None:
    canvas.mark((8, y + BAND / 2 - 1), side.look.marker, side.look.colour, 9)
    canvas.text((18, y + BAND / 2 - 1), "segments", size=10, colour=MUTED, anchor="lm")
    if not found.segments:
        words = f"no token of {side.label} spans several frames"
        canvas.text((left + 2, y + BAND / 2 - 1), words, size=10, colour=MUTED, anchor="lm")
    for number, (first, last) in enumerate(found.segments):
        x0, x1 = left + first * slot, left + (last + 1) * slot
        canvas.rectangle((x0 + 0.7, y, x1 - 0.7, y + BAND - 2), SEGMENT_COLOURS[number % len(SEGMENT_COLOURS)])
        if x1 - x0 > 20:
            canvas.text(((x0 + x1) / 2, y + BAND / 2 - 1), f"S{number + 1}", size=10, anchor="mm")


def _map(
    canvas: Canvas, y: float | int, left: float | int, slot: float | int, clip: Clip, found: Sequence[Outcome]
) -> None:
    rows, columns = clip.video.grid
    canvas.text((left - 8, y + 6), "cell 1", size=10, colour=MUTED, anchor="rm")
    canvas.text((left - 8, y + MAP_HIGH - 8), f"{rows * columns}", size=10, colour=MUTED, anchor="rm")
    canvas.text((0, y + MAP_HIGH / 2 - 8), "similarity", size=10, bold=True, anchor="lm")
    canvas.text((0, y + MAP_HIGH / 2 + 7), "(cosine)", size=10, colour=MUTED, anchor="lm")
    values = similarity(clip)
    if not len(values):
        middle = (left + len(clip) * slot / 2, y + MAP_HIGH / 2)
        canvas.text(middle, "one frame: no neighbour to compare with", size=11, colour=MUTED, anchor="mm")
        return
    canvas.picture((left + slot / 2, y), _map_pixels(clip, device(len(values) * slot)))  # pairs lie between frames
    middle = y + MAP_HIGH * (0.5 if len(found) > 1 and found[1].segments else 1.0)
    spans = ((found[0], y, middle), *((other, middle, y + MAP_HIGH) for other in found[1:]))
    for one, above, below in spans:
        for first, _ in one.segments[1:]:
            canvas.line([(left + first * slot, above), (left + first * slot, below)], "white", 1.3, dash=3)
    _colour_bar(canvas, left + len(clip) * slot + 14, y)


@lru_cache(maxsize=16)
def _map_pixels(clip: Clip, width: int) -> np.ndarray:
    image = Image.fromarray(_CIVIDIS[(similarity(clip).clip(0, 1).T * 255).round().astype(np.uint8)])
    return np.asarray(image.resize((width, device(MAP_HIGH)), Image.Resampling.NEAREST))


def _colour_bar(canvas: Canvas, x: float | int, y: float | int) -> None:
    ramp = np.repeat(_CIVIDIS[::-1][:, None], device(9), axis=1)
    ramp = np.asarray(Image.fromarray(ramp).resize((device(9), device(MAP_HIGH))))
    canvas.picture((x, y), ramp)
    for value, name in ((1.0, "1: the same"), (0.5, "0.5"), (0.0, "≤ 0")):
        canvas.text((x + 13, y + (1 - value) * (MAP_HIGH - 10) + 5), name, size=9.5, colour=MUTED, anchor="lm")


def _bars(
    canvas: Canvas, y: float | int, left: float | int, slot: float | int, side: Side, found: Outcome, highest: int
) -> None:
    alone, groups = found.per_frame(ALONE), found.per_frame(GROUP)
    base, unit = y + BARS_HIGH - 10, (BARS_HIGH - 12) / max(1, highest)
    canvas.mark((8, y + 10), side.look.marker, side.look.colour, 9)
    canvas.text((18, y + 10), "tokens kept", size=10, bold=True, anchor="lm")
    canvas.text((18, y + 24), "in each frame", size=10, colour=MUTED, anchor="lm")
    for level in (0, highest):
        canvas.line([(left, base - level * unit), (left + len(alone) * slot, base - level * unit)], GRID, 1)
        canvas.text((left - 8, base - level * unit), str(level), size=10, colour=MUTED, anchor="rm")
    for t in range(len(alone)):
        x0, x1 = left + t * slot + slot * 0.1, left + (t + 1) * slot - slot * 0.1
        split, end = base - alone[t] * unit, base - (alone[t] + groups[t]) * unit
        canvas.rectangle((x0, split, x1, base), DYNAMIC_COLOUR)
        canvas.rectangle((x0, end, x1, split), STATIC_COLOUR)
        canvas.hatch((x0, end, x1, split))


def _axis(canvas: Canvas, y: float | int, left: float | int, slot: float | int, clip: Clip) -> None:
    seconds, frames = clip.frames.seconds, len(clip)
    canvas.line([(left, y), (left + frames * slot, y)], "#9A9A9A")
    every = max(1, -(-frames // 16))
    for t in range(0, frames, every):
        x = left + (t + 0.5) * slot
        canvas.line([(x, y), (x, y + 4)], "#9A9A9A")
        canvas.text((x, y + 6), f"{seconds[t]:.1f}", size=10, colour=MUTED, anchor="ma")
    canvas.text((left + frames * slot + 12, y + 6), "seconds", size=10, colour=MUTED)
