"""Merging against dropping inside the language model: over the layer where it happens and over the share removed."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from holitom_repro.figures.series import check_points, draw_panel, limits, note
from holitom_repro.figures.style import DOUBLE, styled

AFTER = "HoliTom merges, FastV drops,\nboth behind the same outer stage"
SPREAD = {"printed": "hollow: quoted, no intervals are given", "measured": "bars and bands: 95 % intervals, unpaired"}
SWEEPS = {"K": "layer K where tokens leave (R = 50 %)", "R": "share R of visual tokens that leaves"}


def inner_figure(
    quoted: pd.DataFrame, measured: pd.DataFrame, *, model: str, fixed: str = ""
) -> tuple[Figure, pd.DataFrame]:
    """Rows: printed and measured; columns: the sweep of K and the sweep of r. HoliTom merges, FastV drops.

    quoted, measured: points with a further column ``sweep`` ("K" or "R"); fixed: the layer of the measured r sweep, in
    words.
    """
    with styled():
        fig = Figure(figsize=(DOUBLE, 4.7), layout="constrained")
        axes = fig.subplots(2, 2)
        rows = ((quoted, "Printed: LLaVA-OneVision-7B, 28 layers", "K = 14"), (measured, f"Measured: {model}", fixed))
        for line, (points, title, layer) in zip(axes, rows, strict=True):
            both = check_points(points)
            for ax, (sweep, xlabel) in zip(line, SWEEPS.items(), strict=True):
                part = both[(both["sweep"] == sweep) | both["x"].isna()]
                label = f"{xlabel} ({layer})" if sweep == "R" and layer else xlabel
                ticks = sorted(part["x"].dropna().unique())
                draw_panel(
                    ax,
                    part,
                    xlabel=label,
                    title=title if sweep == "K" else "",
                    ticks=ticks,
                    ylim=limits(both),
                    dodge=0.012 * (ticks[-1] - ticks[0]),
                    flat="beside",
                )
            note(line[0], SPREAD["measured" if points is measured else "printed"])
            note(line[1], AFTER)
            line[0].set_ylabel("average score (%)")
    parts = [part.assign(panel=panel) for part, panel in ((quoted, "printed"), (measured, "measured"))]
    return fig, pd.concat(parts, ignore_index=True)
