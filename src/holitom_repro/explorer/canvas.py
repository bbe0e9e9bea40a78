"""A sheet to draw on, in logical pixels, made of Pillow and numpy: an update must not wait for a plotting library."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.markers import MarkerStyle
from PIL import Image, ImageColor, ImageDraw, ImageFont

from holitom_repro.figures.style import INK, Marker

SCALE = 1.5
"""Device pixels per logical one: sharp on a dense screen, and quick to write."""
Point = tuple[float | int, float | int]


class Canvas:
    """Drawing in logical pixels from the upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.image = Image.new("RGB", (device(width), device(height)), "white")
        self._draw = ImageDraw.Draw(self.image)

    def text(
        self,
        at: Point,
        words: str,
        *,
        size: float | int = 11,
        colour: str = INK,
        bold: bool = False,
        anchor: str = "la",
    ) -> float:
        """Write one line; returns its width. anchor: Pillow's two letters (l, m, r; a, m, s)."""
        font = _font(size, bold)
        self._draw.text((at[0] * SCALE, at[1] * SCALE), words, fill=colour, font=font, anchor=anchor)
        return font.getlength(words) / SCALE

    def rectangle(self, box: tuple[float | int, ...], fill: str | None = None, outline: str | None = None) -> None:
        """box: left, upper, right, lower; the right and lower edge lie outside."""
        left, upper, right, lower = (round(v * SCALE) for v in box)
        if right > left and lower > upper:
            self._draw.rectangle((left, upper, right - 1, lower - 1), fill=fill, outline=outline, width=device(1))

    def hatch(self, box: tuple[float | int, ...], colour: str = "white", gap: float | int = 4) -> None:
        """Diagonal lines inside a box, so that a fill is not told by its colour alone."""
        left, upper, right, lower = (round(v * SCALE) for v in box)
        if right <= left or lower <= upper:
            return
        y, x = np.mgrid[upper:lower, left:right]
        mask = Image.fromarray(((x + y) % device(gap) < SCALE).astype(np.uint8) * 255)
        self.image.paste(colour, (left, upper), mask)

    def line(
        self, points: Sequence[Point], colour: str = INK, width: float | int = 1, dash: float | int | None = None
    ) -> None:
        """A line through the points; dashed only between two."""
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        if dash is None:
            self._draw.line(scaled, fill=colour, width=device(width), joint="curve")
            return
        (x0, y0), (x1, y1) = scaled[0], scaled[-1]
        parts = max(1, round(float(np.hypot(x1 - x0, y1 - y0)) / (2 * dash * SCALE)))
        for k in range(parts):
            a, b = k / parts, (k + 0.55) / parts
            ends = (x0 + a * (x1 - x0), y0 + a * (y1 - y0), x0 + b * (x1 - x0), y0 + b * (y1 - y0))
            self._draw.line(ends, fill=colour, width=device(width))

    def picture(self, at: Point, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
        """Pixels of the device, not logical ones."""
        self.image.paste(Image.fromarray(pixels), (round(at[0] * SCALE), round(at[1] * SCALE)))

    def mark(self, at: Point, marker: Marker, colour: str, size: float | int, ring: bool = False) -> None:
        """One of matplotlib's markers, ``size`` across, smooth; ``ring`` puts white around it."""
        if ring:
            self.mark(at, marker, "white", size + 2)
        mask = _marker(marker, device(size))
        self.image.paste(colour, (round(at[0] * SCALE - mask.width / 2), round(at[1] * SCALE - mask.height / 2)), mask)

    def png(self) -> bytes:
        """The finished picture, packed quickly rather than tightly."""
        file = io.BytesIO()
        self.image.save(file, format="png", compress_level=1, dpi=(96 * SCALE, 96 * SCALE))
        return file.getvalue()


def device(length: float | int) -> int:
    """Device pixels of a logical length, at least one."""
    return max(1, round(length * SCALE))


def text_width(words: str, size: float | int = 11, bold: bool = False) -> float:
    """Logical width of one line."""
    return _font(size, bold).getlength(words) / SCALE


def rgb(colour: str) -> np.ndarray:
    """A colour's three numbers."""
    return np.array(ImageColor.getrgb(colour), dtype=np.uint16)


@lru_cache(maxsize=64)
def _font(size: float | int, bold: bool) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"  # the font of every figure of the kit
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size * SCALE)


@lru_cache(maxsize=256)
def _marker(marker: Marker, across: int) -> Image.Image:
    """A mask, drawn large and reduced."""
    style = MarkerStyle(marker)
    path = style.get_path().transformed(style.get_transform())
    large, middle = 8 * across, 4 * across
    mask = Image.new("L", (large, large))
    draw = ImageDraw.Draw(mask)
    reach = float(np.abs(path.vertices).max()) or 1.0
    for polygon in path.to_polygons(closed_only=False):
        points = [(middle + x / reach * middle * 0.97, middle - y / reach * middle * 0.97) for x, y in polygon]
        if style.is_filled():
            draw.polygon(points, fill=255)
        else:
            draw.line(points, fill=255, width=across)
    return mask.resize((across, across), Image.Resampling.BOX)
