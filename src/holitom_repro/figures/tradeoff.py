"""Score against prefill cost: the paper's teaser as printed, and every method and control on the model at hand."""

from __future__ import annotations

import math
from typing import Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from holitom_repro.figures.series import check_points, draw_panel, limits, note
from holitom_repro.figures.style import DOUBLE, styled

OURS = "HoliTom (w/o M)"
BEFORE = (OURS, "VisionZip", "PruneVid", "FastVID", "DyCoke", "MMG-Vid", "ToMe")
INSIDE = ("HoliTom", "FastV", "PDrop", "HieraVid")
CONTROLS = (OURS, "Saliency top-k", "Average pooling", "Uniform stride", "Random", "Fewer frames")
QUOTED = "hollow: quoted, no intervals are given; its own scale"
FLOOR_DYCOKE = "DyCoke: one whole frame in four, so never below 25 %"
FLOOR_INSIDE = "FastV, PDrop: the first layers always see all tokens"
FEWER = "fewer frames: 8, 7, 5, 4, 2 and 1 of 32"
STRIDE = "uniform stride: where cells are 4 x 4, every 4th is one column"
TICKS = (1, 2, 5, 10, 20, 50)
PRINTED_TICKS = (7, 10, 15, 20, 30)
XLABEL = "prefill FLOPs (% of all tokens, log scale)"
MOST = 0.6
"""At least this share of the measured points lies in the range that has a row of its own."""
ZOOM_TINT = "#F3F1E7"
ASIDE = 0.03
"""Neighbouring methods are drawn this share of x apart, for several stand at exactly the same cost."""


def tradeoff_figure(quoted: pd.DataFrame, measured: pd.DataFrame, *, model: str) -> tuple[Figure, pd.DataFrame]:
    """Average score of the four benchmarks against FLOPs in per cent of the unreduced model. Upper row: as printed;
    measured methods with stages inside the language model. Middle: measured methods before it, and plain controls, over
    the whole range. Lower row: the same two where most points lie.

    quoted, measured: points (method, x = FLOPs %, y, low, high, source); a Vanilla row without x is the dashed line.
    model: what was measured. The printed panel has its own scale, for the benchmarks are not the same; the measured
    ones have two, the whole range and ``upper_range``. HoliTom without merging stands beside the controls too.
    """
    before, inside, controls = (_of(measured, methods) for methods in (BEFORE, INSIDE, CONTROLS))
    other = measured[~measured["method"].isin({"Vanilla", *BEFORE, *INSIDE, *CONTROLS})]
    upper = low, high = upper_range(measured)
    with styled():
        fig = Figure(figsize=(DOUBLE, 8.2), layout="constrained")
        axes = fig.subplots(3, 2, height_ratios=(1.0, 0.9, 1.25))
        title, xlim = "Printed: LLaVA-OneVision-7B", (quoted["x"].min() / 1.2, quoted["x"].max() * 1.25)
        axis = {"xlabel": XLABEL, "log": True, "ticks": PRINTED_TICKS, "xlim": xlim}
        draw_panel(axes[0, 0], quoted, title=title, margin=True, **axis)
        note(axes[0, 0], QUOTED)
        ylim = min(low, inside["low"].min() - 0.5), high
        _measured(axes[0, 1], inside, "Measured: inside the LLM", upper, side=None, room=(1.3, 1.2), ylim=ylim)
        axes[0, 1].legend(loc="lower center", bbox_to_anchor=(0.4, 0.0), handlelength=3)  # where nothing is drawn
        note(axes[0, 1], f"{model}; bars: 95 % intervals\n{FLOOR_INSIDE}")
        for column, (points, name, remark) in enumerate(
            (
                (before, "before the LLM", f"{model}; bars: 95 % intervals\n{FLOOR_DYCOKE}"),
                (controls, "plain controls", f"{STRIDE}\n{FEWER}"),
            )
        ):
            wide, near = axes[1:, column]
            ylim = limits(measured)
            _measured(wide, points, f"Measured: {name}", upper, side="left", room=(12, 1.35), ylim=ylim)
            title = f"The same, {low:g} to {high:g} points (tinted)"
            _measured(near, points, title, upper, side="right", room=(1.2, 1.25), ylim=upper)
            note(near, f"{remark}\nsame cost: drawn side by side, {100 * ASIDE:g} % of x apart")
        for ax in axes[:, 0]:
            ax.set_ylabel("average score (%)")
    panels = {"printed": quoted, "before": before, "inside": inside, "controls": controls, "other": other}
    parts = [check_points(part).assign(panel=panel) for panel, part in panels.items() if len(part)]
    return fig, pd.concat(parts, ignore_index=True)


def upper_range(measured: pd.DataFrame) -> tuple[float, float]:
    """The range, in steps of 5 points, up to the best score with its interval that holds ``MOST`` of the points."""
    low = 5.0 * math.floor(float(measured["y"].quantile(1 - MOST, interpolation="lower")) / 5)
    return low, max(5.0 * math.ceil(float(measured[["y", "high"]].max(axis=None)) / 5), low + 5.0)


def _measured(
    ax: Axes,
    points: pd.DataFrame,
    title: str,
    upper: tuple[float, float],
    *,
    side: Literal["left", "right"] | None,
    room: tuple[float | int, float | int],
    ylim: tuple[float | int, float | int],
) -> None:
    """A measured panel with its lines named on ``side``: at the left inside, at the right in the margin, or not. room:
    that many times below the least x and above the largest. upper: the scores that are tinted in every panel."""
    shown = points[points["y"] >= ylim[0]]
    xlim = shown["x"].min() / room[0], shown["x"].max() * room[1]
    axis = {"xlabel": XLABEL, "log": True, "ticks": TICKS, "xlim": xlim, "ylim": ylim}
    names = {"labels": side is not None, "side": side or "right", "margin": side == "right"}
    draw_panel(ax, points, title=title, dodge=ASIDE, **axis, **names)
    ax.axhspan(*upper, color=ZOOM_TINT, lw=0, zorder=0)
    ax.yaxis.set_major_locator(MultipleLocator(5 if ylim[1] - ylim[0] < 40 else 20))


def _of(points: pd.DataFrame, methods: tuple[str, ...]) -> pd.DataFrame:
    return points[points["method"].isin(["Vanilla", *methods])]
