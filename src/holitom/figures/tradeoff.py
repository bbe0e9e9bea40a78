"""Score against prefill cost: the paper's teaser as printed, and every method and control on the model at hand."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from holitom.figures.series import check_points, draw_panel, limits, note
from holitom.figures.style import DOUBLE, styled

OURS = "HoliTom (w/o M)"
BEFORE = (OURS, "VisionZip", "PruneVid", "FastVID", "DyCoke", "MMG-Vid", "ToMe")
INSIDE = ("HoliTom", "FastV", "PDrop", "HieraVid")
CONTROLS = (OURS, "Saliency top-k", "Average pooling", "Uniform stride", "Random", "Fewer frames")
FLOOR_DYCOKE = "DyCoke: one whole frame in four, so never below 25 %"
FLOOR_INSIDE = "FastV, PDrop: the first layers always see all tokens"
FEWER = "fewer frames: 8, 7, 5, 4, 2 and 1 of 32"
STRIDE = "uniform stride: where cells are 4 x 4, every 4th is one column"
TICKS = (1, 2, 3, 5, 10, 20, 50, 100)
XLABEL = "prefill FLOPs (% of all tokens, log scale)"


def tradeoff_figure(quoted: pd.DataFrame, measured: pd.DataFrame, *, model: str) -> tuple[Figure, pd.DataFrame]:
    """Average score of the four benchmarks against FLOPs in per cent of the unreduced model, four panels: as printed;
    measured methods before the language model; those with stages inside it; plain controls.

    quoted, measured: points (method, x = FLOPs %, y, low, high, source); a Vanilla row without x is the dashed line.
    model: what was measured. The measured panels share their scale; the printed one has its own, for the benchmarks are
    not the same. HoliTom without merging stands in two panels, to compare with.
    """
    known = {"Vanilla", *BEFORE, *INSIDE, *CONTROLS}
    panels = (
        ("printed", quoted, "Printed: LLaVA-OneVision-7B", "hollow: quoted, no intervals are given"),
        ("before", _of(measured, BEFORE), "Measured: before the LLM", f"{model}; bars: 95 % intervals\n{FLOOR_DYCOKE}"),
        ("inside", _of(measured, INSIDE), "Measured: inside the LLM", f"{model}; bars: 95 % intervals\n{FLOOR_INSIDE}"),
        ("controls", _of(measured, CONTROLS), "Measured: plain controls", f"{STRIDE}\n{FEWER}"),
        ("other", measured[~measured["method"].isin(known)], "", ""),
    )
    span = measured["x"].min(), measured["x"].max()
    with styled():
        fig = Figure(figsize=(DOUBLE, 6.5), layout="constrained")
        for ax, (panel, points, title, remark) in zip(fig.subplots(2, 2).flat, panels, strict=False):
            printed = panel == "printed"
            ylim = None if printed else _room_below(limits(measured))
            # Measured lines part at the low end, which is where they are named; the printed ones at the high end.
            side = "right" if printed else "left"
            crossing = panel == "inside"  # its lines begin inside one another: a legend where nothing is drawn
            draw_panel(
                ax, points, xlabel=XLABEL, title=title, labels=not crossing, log=True, ticks=TICKS, side=side, ylim=ylim
            )
            if crossing:
                ax.legend(loc="center left", handlelength=3)
            low, high = (points["x"].min(), points["x"].max()) if printed else span
            ax.set_xlim(*((low / 1.3, high * 5) if printed else (low / 9, high * 1.2)))
            ax.set_xticks([tick for tick in TICKS if low / 1.3 <= tick <= high * 1.2])
            note(ax, remark)
        for ax in fig.axes[::2]:
            ax.set_ylabel("average score (%)")
    parts = [check_points(part).assign(panel=panel) for panel, part, _, _ in panels if len(part)]
    return fig, pd.concat(parts, ignore_index=True)


def _room_below(ylim: tuple[float, float]) -> tuple[float, float]:
    """For a remark of two lines."""
    low, high = ylim
    return low - 0.06 * (high - low), high


def _of(points: pd.DataFrame, methods: tuple[str, ...]) -> pd.DataFrame:
    return points[points["method"].isin(["Vanilla", *methods])]
