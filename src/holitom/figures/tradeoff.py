"""Score against prefill cost: the paper's teaser on the left (quoted), the same rows on the model at hand on the
right."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from holitom.figures.series import check_points, draw_panel, note, shared_legend
from holitom.figures.style import DOUBLE, styled

TICKS = (2, 3, 5, 7, 10, 15, 20, 30, 50, 100)


def tradeoff_figure(quoted: pd.DataFrame, measured: pd.DataFrame, *, model: str) -> tuple[Figure, pd.DataFrame]:
    """Average score of the four benchmarks against FLOPs in per cent of the unreduced model, two panels.

    quoted, measured: points (method, x = FLOPs %, y, low, high, source); a Vanilla row without x is the dashed line.
    model: what the right panel was measured with. The panels keep their own scales: the benchmarks are not the same.
    """
    with styled():
        fig = Figure(figsize=(DOUBLE, 3.7), layout="constrained")
        left, right = fig.subplots(1, 2)
        axis = {
            "xlabel": "prefill FLOPs of the LLM (% of all tokens, log scale)",
            "log": True,
            "ticks": TICKS,
            "labels": False,
        }
        draw_panel(left, quoted, title="Printed: LLaVA-OneVision-7B", ylabel="average score (%)", **axis)
        note(left, "hollow: quoted from the paper, no intervals there")
        draw_panel(right, measured, title=f"Measured: {model}", ylabel="average score (%)", **axis)
        note(right, "filled: measured, bars: 95 % intervals")
        for ax in (left, right):
            ax.set_xlim(0.9 * min(5, quoted["x"].min(), measured["x"].min()), 105)
        shared_legend(fig, [quoted, measured])
    parts = [check_points(part).assign(panel=panel) for part, panel in ((quoted, "printed"), (measured, "measured"))]
    return fig, pd.concat(parts, ignore_index=True)
