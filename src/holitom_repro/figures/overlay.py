"""Tokens drawn on the frames they come from: what survives stays in full colour, what is dropped fades."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int, UInt8
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, PatchCollection
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from holitom_repro.figures.style import LOOKS
from holitom_repro.walkthrough import CARRIED, DYNAMIC, FATES, MERGED

STATIC_COLOUR = LOOKS["HoliTom"].colour
DYNAMIC_COLOUR = LOOKS["FastV"].colour
CARRIED_COLOUR = "#A9CDE4"
DROPPED_COLOUR = "#E6E6E6"
HATCH = {"hatch": "/////", "edgecolor": "white"}
"""Of static cells that a merged token carries, wherever they are drawn."""
LONGEST_SIDE = 240  # pixels: about what a frame takes at 200 dpi


def draw_tokens(
    ax: Axes,
    picture: UInt8[np.ndarray, "height width 3"],
    fate: Int[np.ndarray, " cells"],
    grid: tuple[int, int],
    size: dict[int, float] | None = None,
) -> None:
    """One frame with its tokens: dynamic kept = orange frame around the cell in full colour; merged static = blue disc,
    larger the more tokens it stands for; static cells carried by a disc = blue tint and hatching; dropped = faded.

    fate: one of walkthrough.FATES per cell, raster order; size: source tokens per cell with a merged token.
    """
    rows, columns = grid
    picture = thumbnail(picture)
    height, width = picture.shape[:2]
    state = fate.reshape(rows, columns)
    row_of = np.minimum(np.arange(height) * rows // height, rows - 1)
    column_of = np.minimum(np.arange(width) * columns // width, columns - 1)
    cell = state[row_of][:, column_of][..., None]
    faded = 0.22 * picture + 0.78 * 255
    carried = 0.50 * picture + 0.50 * np.array([205, 228, 244])
    shown = np.where(cell == DYNAMIC, picture, np.where(np.isin(cell, (CARRIED, MERGED)), carried, faded))
    ax.imshow(
        shown.astype(np.uint8),
        extent=(0, columns, rows, 0),
        aspect=(height / rows) / (width / columns),
        interpolation="lanczos",
    )
    place = lambda code: [(int(i) % columns, int(i) // columns) for i in np.flatnonzero(fate == code)]  # noqa: E731
    ax.add_collection(
        PatchCollection(
            [Rectangle((x, y), 1, 1) for x, y in place(CARRIED)],
            facecolor="none",
            linewidth=0,
            alpha=0.5,
            **HATCH,
        )
    )
    ax.add_collection(
        PatchCollection(
            [Rectangle((x + 0.08, y + 0.08), 0.84, 0.84) for x, y in place(DYNAMIC)],
            facecolor="none",
            edgecolor=DYNAMIC_COLOUR,
            linewidth=0.9,
        )
    )
    discs = np.flatnonzero(fate == MERGED)
    if len(discs):
        weight = np.array([(size or {}).get(int(i), 1.0) for i in discs])
        side = math.sqrt((width / columns) / (height / rows))  # of a square as large as a cell, in its heights
        across = side * np.clip(0.7 + 0.06 * np.log2(np.maximum(weight, 1.0)), 0.7, 1.05)
        ax.add_collection(
            EllipseCollection(
                across,
                across,
                np.zeros(len(discs)),
                units="y",
                facecolor=STATIC_COLOUR,
                edgecolor="white",
                linewidth=0.6,
                offsets=[(i % columns + 0.5, i // columns + 0.5) for i in discs],
                offset_transform=ax.transData,
            )
        )
    ax.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[])
    ax.grid(visible=False)


def thumbnail(picture: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "small_height small_width 3"]:
    """The picture reduced to at most LONGEST_SIDE pixels on its longer side."""
    reduced = Image.fromarray(picture)
    reduced.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return np.asarray(reduced)


def legend_handles() -> list[Patch]:
    """What each mark of ``draw_tokens`` means, for a legend."""
    return [
        Patch(facecolor="white", edgecolor=DYNAMIC_COLOUR, linewidth=1.4, label=FATES[DYNAMIC]),
        Patch(facecolor=STATIC_COLOUR, edgecolor=STATIC_COLOUR, label=FATES[MERGED] + " (disc)"),
        Patch(facecolor=CARRIED_COLOUR, label=FATES[CARRIED], linewidth=0, **HATCH),
        Patch(facecolor=DROPPED_COLOUR, edgecolor="#BBBBBB", label=FATES[0]),
    ]
