"""Score over the number of sampled frames, at a fixed share of tokens."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from holitom_repro.figures.series import check_points, draw_panel, note, shared_legend
from holitom_repro.figures.style import DOUBLE, styled


def frames_figure(
    quoted: pd.DataFrame,
    measured: pd.DataFrame,
    long: pd.DataFrame,
    *,
    model: str,
    benchmark: str,
    share: float | None = None,
    trained: int | None = None,
) -> tuple[Figure, pd.DataFrame]:
    """Printed averages, measured averages, and the measured benchmark with the longest videos; x = frames, log scale.

    Values that were read off the paper's axis carry the reading error as their interval. A common legend names the
    lines, and the share of visual tokens that the reduced ones were asked for. trained: the most frames that the
    measured model was trained on, where that is known: more are out of its range.
    """
    panels = (
        ("printed", quoted, "Printed: OneVision-7B"),
        ("measured", measured, f"Measured: {model}"),
        ("long", long, f"Measured: {benchmark}"),
    )
    with styled():
        fig = Figure(figsize=(DOUBLE, 3.4), layout="constrained")
        for ax, (panel, points, title) in zip(fig.subplots(1, 3), panels, strict=True):
            ticks = sorted(check_points(points)["x"].dropna().unique())
            axis = {"xlabel": "frames (log scale)", "log": True, "ticks": ticks, "labels": False}
            draw_panel(ax, points, title=title, dodge=0.0 if panel == "printed" else 0.05, **axis)
            ax.set_xlim(ticks[0] / 1.2, ticks[-1] * 1.2)
        fig.axes[0].set_ylabel("average score (%)")
        fig.axes[2].set_ylabel("score (%)")
        note(fig.axes[0], "hollow: quoted; bars: reading error ±0.1")
        for ax, what in zip(fig.axes[1:], ("average", "one benchmark"), strict=True):
            note(ax, f"{what}; bars: 95 % intervals" + (f"\ntrained on at most {trained} frames" if trained else ""))
        asked = "" if share is None else f"reduced rows: asked for {100 * share:g} % of the visual tokens"
        shared_legend(fig, [points for _, points, _ in panels], title=asked)
    return fig, pd.concat([points.assign(panel=panel) for panel, points, _ in panels], ignore_index=True)
