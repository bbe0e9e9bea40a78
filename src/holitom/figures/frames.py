"""Score over the number of sampled frames, at a fixed share of tokens."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from holitom.figures.series import check_points, draw_panel, note
from holitom.figures.style import DOUBLE, styled


def frames_figure(quoted: pd.DataFrame, measured: pd.DataFrame, *, model: str) -> tuple[Figure, pd.DataFrame]:
    """Printed curves on the left, measured ones on the right; x = frames, log scale. Values that were read off the
    paper's axis carry the reading error as their interval."""
    with styled():
        fig = Figure(figsize=(DOUBLE, 3.2), layout="constrained")
        panels = ((quoted, "Printed: LLaVA-OneVision-7B, 15 % kept"), (measured, f"Measured: {model}, 15 % kept"))
        for ax, (points, title) in zip(fig.subplots(1, 2), panels, strict=True):
            ticks = sorted(check_points(points)["x"].dropna().unique())
            draw_panel(
                ax, points, xlabel="frames (log scale)", ylabel="average score (%)", title=title, log=True, ticks=ticks
            )
            ax.set_xlim(ticks[0] / 1.15, ticks[-1] * 1.15)
        note(fig.axes[0], "hollow: quoted; bars ±0.1: read off the axis")
        note(fig.axes[1], "filled: measured, bars: 95 % intervals")
    parts = [part.assign(panel=panel) for part, panel in ((quoted, "printed"), (measured, "measured"))]
    return fig, pd.concat(parts, ignore_index=True)
