"""One look for every figure: a fixed colour and marker per method, hollow for quoted and filled for measured values.

The palette begins with seaborn's colour-blind list; every two methods stay apart for every kind of colour vision, and
none is told apart by its colour alone. Figures are built without pyplot, so drawing one leaves no state behind;
``use_style()`` is for a reader's own plots in a notebook.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import ScaledTranslation

from holitom.errors import BadUsage

SINGLE, DOUBLE = 3.4, 7.0
"""Widths in inches: one column of a paper, two columns."""

TIER_STAMPS = {
    "tiny": "tiny tier: trends only, not the paper's model",
    "speed": "speed tier: random weights, timings only",
    "paper": "paper tier: the published checkpoints",
}
SOURCES = ("measured", "derived", "quoted")

INK, MUTED, GRID = "#222222", "#6B6B6B", "#DDDDDD"
SEGMENT_COLOURS = ("#56B4E9", "#ECE133", "#CC78BC", "#029E73", "#DE8F05", "#949494")

STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9A9A9A",
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 5.5,
    "hatch.linewidth": 0.5,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "svg.fonttype": "path",
    "svg.hashsalt": "holitom",
    "path.simplify": False,
}

Marker = str | tuple[int, int, int]
"""As matplotlib names them: a letter, or number of corners, style and angle."""


@dataclass(frozen=True)
class Look:
    """How one method is drawn everywhere: colour, marker, dash."""

    colour: str
    marker: Marker
    dash: str | tuple[int, tuple[float | int, ...]] = "-"


LOOKS: dict[str, Look] = {
    "HoliTom": Look("#0173B2", "o"),
    "HoliTom (w/o M)": Look("#56B4E9", "D", (0, (4, 1.2))),
    "FastV": Look("#DE8F05", "s", (0, (3, 1))),
    "PDrop": Look("#CC78BC", "P", (0, (1, 1))),
    "DyCoke": Look("#CA9161", "X", (0, (5, 1, 1, 1))),
    "VisionZip": Look("#029E73", "^", (0, (5, 1.5))),
    "PruneVid": Look("#D55E00", "v", (0, (3, 1, 1, 1))),
    "FastVID": Look("#B8558F", "<", (0, (2, 1))),
    "MMG-Vid": Look("#5E3C99", ">", (0, (6, 1.5, 1, 1.5))),
    "HieraVid": Look("#335566", (4, 1, 0), (0, (4, 1, 1, 1))),
    "ToMe": Look("#661111", "p", (0, (2, 1.5))),
    "Random": Look("#949494", "x", (0, (1, 1.5))),
    "Uniform stride": Look("#333366", "+", (0, (4, 2))),
    "Average pooling": Look("#556655", "1", (0, (2, 2))),
    "Fewer frames": Look("#664400", "2", (0, (3, 2))),
    "Saliency top-k": Look("#AA6633", "d", (0, (6, 1))),
    "Saliency bottom-k": Look("#886644", "h", (0, (1, 2))),
    "Vanilla": Look("#222222", "*", "--"),
}
BEHIND = 1.4
"""The drawing order of names: over the grid, under every line and point, so that no halo rubs out data."""
STROKES = ("x", "+", "1", "2")
"""Markers without an inside to fill."""
ALIASES = {
    "PyramidDrop": "PDrop",
    "RandomDrop": "Random",
    "UniformStride": "Uniform stride",
    "AveragePool": "Average pooling",
    "MMGVid": "MMG-Vid",
    "SaliencyTopK": "Saliency top-k",
}
"""Class names of methods -> the names that tables and figures show."""


def look(method: str) -> Look:
    """The colour, marker and dash of a method's row label; an unknown one is refused, never given a random colour."""
    name = ALIASES.get(method, method)
    if name not in LOOKS:
        raise BadUsage(
            f"no colour is fixed for method {method!r}", fix=f"add it to LOOKS or use one of {', '.join(LOOKS)}"
        )
    return LOOKS[name]


def use_style() -> None:
    """Apply the house style to matplotlib for the rest of this session (a notebook's own plots)."""
    matplotlib.rcParams.update(STYLE)


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """The house style for the length of a ``with`` block; what was set before comes back after it."""
    with matplotlib.rc_context(STYLE):
        yield


def new_figure(width: float | int, height: float | int, **subplots: Any) -> tuple[Figure, Any]:
    """A figure of width x height inches with a constrained layout, and its axes if ``subplots`` keywords are given."""
    fig = Figure(figsize=(width, height), layout="constrained")
    return fig, (fig.subplots(**subplots) if subplots else None)


def require_sources(data: pd.DataFrame) -> pd.DataFrame:
    """Refuse a table of points in which any point lacks a source (measured, derived or quoted)."""
    if "source" not in data.columns:
        raise BadUsage(
            "the points of a figure need a column 'source'", fix=f"say for each whether it is {', '.join(SOURCES)}"
        )
    bad = data.loc[~data["source"].isin(SOURCES)]
    if len(bad):
        where = bad.iloc[0].to_dict()
        raise BadUsage(
            f"{len(bad)} points have no valid source, the first is {where}", fix=f"use one of {', '.join(SOURCES)}"
        )
    return data


def marker_style(method: str, source: str) -> dict[str, Any]:
    """Keywords for ``Axes.errorbar`` / ``plot``: filled for measured and derived values, hollow for quoted ones. A
    filled marker has a thin white rim, so that two which overlap stay two."""
    if source not in SOURCES:
        raise BadUsage(f"source {source!r} is not known", fix=f"use one of {', '.join(SOURCES)}")
    style = look(method)
    hollow = source == "quoted"
    rimmed = not hollow and style.marker not in STROKES
    return {
        "color": style.colour,
        "marker": style.marker,
        "markerfacecolor": "white" if hollow else style.colour,
        "markeredgecolor": "white" if rimmed else style.colour,
        "markeredgewidth": 0.5 if rimmed else 1.1,
    }


def direct_labels(
    ax: Axes,
    ends: list[tuple[float | int, float | int, str, str]],
    *,
    gap: float | int = 0.06,
    offset: float | int = 9.0,
    side: Literal["left", "right"] = "right",
    margin: bool = False,
) -> None:
    """Name each line at its end instead of in a legend; labels that would overlap are moved apart vertically.

    ends: (x, y, text, colour) in data coordinates; gap: the least distance of two labels, as a share of the axis
    height; offset: points beside the end, on ``side``; margin: all names begin at the edge of the axes instead, tied to
    their ends. Set the axis limits before: the places are found within them.
    """
    sign = 1 if side == "right" else -1
    low, high = ax.get_ylim()
    order = sorted(ends, key=lambda end: end[1])
    for (x, y, text, colour), place in zip(
        order, spread([(y - low) / (high - low) for _, y, _, _ in order], gap), strict=True
    ):
        target = low + place * (high - low)
        beside = ax.transData + ScaledTranslation(sign * offset / 72, 0, ax.figure.dpi_scale_trans)
        moved = margin or abs(target - y) > 0.02 * (high - low)
        tie = {"arrowstyle": "-", "color": colour, "lw": 0.5, "shrinkA": 0, "shrinkB": 4} if moved else None
        ax.annotate(
            text,
            (x, y),
            xytext=(ax.get_xlim()[side == "right"] if margin else x, target),
            textcoords=beside,
            arrowprops=tie,
            color=colour,
            fontsize=7.5,
            va="center",
            ha="left" if side == "right" else "right",
            annotation_clip=False,
            zorder=BEHIND,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],  # legible on the grid
        )


def spread(places: list[float | int], gap: float | int) -> list[float]:
    """Ascending places in [0, 1], moved apart until neighbours are ``gap`` from each other, as little as possible."""
    groups: list[list[int]] = [[i] for i in range(len(places))]
    while True:
        centre = [sum(places[i] for i in group) / len(group) for group in groups]
        for a in range(len(groups) - 1):
            room = gap * (len(groups[a]) + len(groups[a + 1])) / 2
            if centre[a + 1] - centre[a] < room - 1e-9:
                groups[a : a + 2] = [groups[a] + groups[a + 1]]
                break
        else:
            break
    found = [c + gap * (k - (len(g) - 1) / 2) for g, c in zip(groups, centre, strict=True) for k in range(len(g))]
    shift = max(0.0, -min(found, default=0.0)) - max(0.0, max(found, default=1.0) - 1.0)
    return [f + shift for f in found]
