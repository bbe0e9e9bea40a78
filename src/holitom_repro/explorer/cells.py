"""Frames with their tokens: what is kept stays in full colour, what one token stands for is tinted alike, the rest
fades."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Int, UInt8

from holitom_repro.explorer.canvas import Canvas, device, rgb
from holitom_repro.explorer.clips import Clip, enlarged, thumbnails
from holitom_repro.explorer.outcome import ALONE, CARRIED, COLOURS, GROUP, Outcome
from holitom_repro.figures.overlay import DYNAMIC_COLOUR, STATIC_COLOUR
from holitom_repro.figures.style import INK, LOOKS, MUTED, SEGMENT_COLOURS

TINTS = (LOOKS["HoliTom"].colour, LOOKS["VisionZip"].colour, LOOKS["PDrop"].colour, "#ECE133", "#56B4E9", "#8C510A")
"""One for each colour number of ``Outcome.paint``; orange is left out, for it frames the tokens kept as they are."""
FADE, TINT = 200, 104  # of 256
PER_ROW, SPACE, HEAD = 8, 6, 14


def paint(
    pictures: UInt8[np.ndarray, "frames height width 3"],
    fate: Int[np.ndarray, "frames cells"],
    owner: Int[np.ndarray, "frames cells"],
    colour: Int[np.ndarray, " kept"],
    grid: tuple[int, int],
    line: int = 1,
) -> UInt8[np.ndarray, "frames height width 3"]:
    """Tint, fade and frame the cells of every picture; white lines of ``line`` device pixels part the groups.

    fate and owner as in ``Outcome``; colour: per kept token the number of its tint.
    """
    rows, columns = grid
    frames, height, width, _ = pictures.shape
    row_of, column_of = _index(height, rows), _index(width, columns)
    state = np.where(np.isin(fate, (CARRIED, GROUP)), 2 + colour[np.maximum(owner, 0)], (fate == ALONE).astype(int))
    pixel = state.reshape(frames, rows, columns)[:, row_of][:, :, column_of]
    hue = np.stack([np.full(3, 255, np.uint16), np.zeros(3, np.uint16), *(rgb(tint) for tint in TINTS)])
    share = np.array([FADE, 0] + [TINT] * COLOURS, dtype=np.uint16)
    strength = share[pixel][..., None]
    out = ((pictures * (256 - strength) + (hue * share[:, None])[pixel]) >> 8).astype(np.uint8)
    if line:
        _part_groups(out, owner.reshape(frames, rows, columns), fate.reshape(frames, rows, columns), line)
    inside = min(height // rows, width // columns)
    out[(pixel == 1) & _edge(height, width, grid, max(1, min(1 + line, inside // 3)))] = rgb(DYNAMIC_COLOUR)
    return out


def draw_focus(
    canvas: Canvas, at: tuple[float | int, float | int], clip: Clip, found: Outcome, frame: int, size: tuple[int, int]
) -> None:
    """One frame large; a disc on every token that stands for several cells says how many."""
    width, height = size
    part = slice(frame, frame + 1)
    picture = enlarged(clip, frame, device(width), device(height))[None]
    canvas.picture(at, paint(picture, found.fate[part], found.owner[part], found.paint, found.grid, 2)[0])
    rows, columns = found.grid
    across = min(19.0, 0.92 * height / rows, 0.92 * width / columns)
    for token in np.flatnonzero((found.frame == frame) & (found.size > 1)):
        row, column = divmod(int(found.cell[token]), columns)
        x, y = at[0] + (column + 0.5) * width / columns, at[1] + (row + 0.5) * height / rows
        canvas.mark((x, y), "o", STATIC_COLOUR, across, ring=True)
        number = str(int(found.size[token]))
        if across >= 14:
            canvas.text((x, y), number, size=(7.5, 7.5, 6.5, 5.5)[min(len(number), 4) - 1], colour="white", anchor="mm")


def draw_strip(
    canvas: Canvas, at: tuple[float | int, float | int], clip: Clip, found: Outcome, focus: int, width: int
) -> None:
    """Every frame small, in rows of PER_ROW; the time, the segment and its band above each."""
    canvas.picture(at, np.asarray(_strip(clip, found, width).image))
    x, y, wide, high = _place(clip, width, focus)
    left, upper = at[0] + x, at[1] + y
    for grow in (1, 2):
        canvas.rectangle((left - grow, upper - grow, left + wide + grow, upper + high + grow), None, INK)


def strip_height(clip: Clip, width: int) -> float:
    """Logical height of ``draw_strip``."""
    _, y, _, high = _place(clip, width, len(clip) - 1)
    return y + high + 3


@lru_cache(maxsize=64)
def _strip(clip: Clip, found: Outcome, width: int) -> Canvas:
    """The strip without its cursor: moving through the frames does not change it."""
    canvas = Canvas(width, round(strip_height(clip, width)))
    _, _, wide, high = _place(clip, width, 0)
    every = thumbnails(clip, device(wide), device(high))
    drawn = paint(every, found.fate, found.owner, found.paint, found.grid, 0)
    segment = segment_of(found)
    dot = min(0.62 * high / found.grid[0], 0.62 * wide / found.grid[1])
    for t, picture in enumerate(drawn):
        x, y, _, _ = _place(clip, width, t)
        canvas.text((x, y - HEAD), f"{clip.frames.seconds[t]:.1f} s", size=9, colour=MUTED)
        if segment[t] >= 0:
            canvas.text((x + wide, y - HEAD), f"S{segment[t] + 1}", size=9, colour=MUTED, anchor="ra")
            colour = SEGMENT_COLOURS[segment[t] % len(SEGMENT_COLOURS)]
            canvas.rectangle((x, y - 3, x + wide, y - 0.5), colour)
        canvas.picture((x, y), picture)
        for token in np.flatnonzero((found.frame == t) & (found.size > 1)):
            r, c = divmod(int(found.cell[token]), found.grid[1])
            place = (x + (c + 0.5) * wide / found.grid[1], y + (r + 0.5) * high / found.grid[0])
            canvas.mark(place, "o", STATIC_COLOUR, max(2.6, min(dot, 8)), ring=dot > 4)
    return canvas


def _place(clip: Clip, width: int, frame: int) -> tuple[float, float, float, float]:
    """Left, upper, width and height of a frame in the strip."""
    row, column = divmod(frame, PER_ROW)
    wide = (width - SPACE * (PER_ROW - 1)) / PER_ROW
    high = wide * clip.size[1] / clip.size[0]
    return column * (wide + SPACE), HEAD + row * (high + HEAD + 5), wide, high


def segment_of(found: Outcome) -> Int[np.ndarray, " frames"]:
    """The number of the segment of every frame; -1 where the method has none."""
    if not found.segments:
        return np.full(len(found.owner), -1)
    return np.repeat(np.arange(len(found.segments)), [last - first + 1 for first, last in found.segments])


def _index(length: int, parts: int) -> np.ndarray:
    return np.minimum(np.arange(length) * parts // length, parts - 1)


def _edge(height: int, width: int, grid: tuple[int, int], thick: int) -> np.ndarray:
    """[height, width] True within ``thick`` pixels of the border of a cell."""
    sides = []
    for length, parts in ((height, grid[0]), (width, grid[1])):
        index = _index(length, parts)
        before = np.concatenate([[-1] * thick, index[:-thick]])
        after = np.concatenate([index[thick:], [-1] * thick])
        sides.append((before != index) | (after != index))
    return sides[0][:, None] | sides[1][None]


def _part_groups(out: np.ndarray, owner: np.ndarray, fate: np.ndarray, line: int) -> None:
    """White lines, in place, between cells that different tokens stand for."""
    grouped = np.isin(fate, (CARRIED, GROUP))
    for axis in (1, 2):
        length, parts = out.shape[axis], owner.shape[axis]
        here, there = np.delete(owner, 0, axis), np.delete(owner, -1, axis)
        border = (here != there) & (np.delete(grouped, 0, axis) | np.delete(grouped, -1, axis))
        other = _index(out.shape[3 - axis], owner.shape[3 - axis])
        border = np.take(border, other, axis=3 - axis)
        starts = np.searchsorted(_index(length, parts), np.arange(1, parts))
        for shift in range(-(line + 1) // 2, line // 2):
            place = (slice(None), starts + shift) if axis == 1 else (slice(None), slice(None), starts + shift)
            part = out[place]
            part[border] = 255
            out[place] = part
