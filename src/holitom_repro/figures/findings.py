"""Printed differences between HoliTom and other rows beside the noise of a benchmark, and what the release's unmasked
layer does to scores."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, NullLocator

from holitom_repro import paper
from holitom.errors import BadUsage
from holitom_repro.figures.series import note
from holitom_repro.figures.style import DOUBLE, INK, LOOKS, MUTED, look, require_sources, styled

MARGIN = 1.5
"""Points: the margin of the trends that expect no difference."""
BAND = "#D9E6F2"
WHOLE = "as released"
"""How the label of a setting begins that changes all that the release changes; the others lift the mask alone."""


def findings_figure(printed: pd.DataFrame, mask: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Left: every printed difference of HoliTom to another row by benchmark, over the band in which 95 % of two
    independent runs of one model would fall. Right: score without minus score with the causal mask, paired.

    printed: ``claims.findings.printed_differences``; mask: ``masking.mask_differences`` (may be empty). Returns the
    figure and both as one frame. BadUsage for a difference without an interval.
    """
    require_sources(printed)
    if len(mask) and mask[["diff_low", "diff_high"]].isna().any(axis=None):
        raise BadUsage("a measured difference has no interval", fix="give diff_low and diff_high")
    with styled():
        fig = Figure(figsize=(DOUBLE, 4.1), layout="constrained")
        left, right = fig.subplots(1, 2, width_ratios=(1.2, 1))
        _printed_panel(left, printed)
        _mask_panel(right, mask)
        methods = [name for name in LOOKS if name in set(printed["rival"])]
        handles = [
            left.plot([], [], ls="none", ms=4.5, mfc="white", marker=look(n).marker, color=look(n).colour)[0]
            for n in methods
        ]
        names = ["all tokens" if name == "Vanilla" else name for name in methods]
        place = {"loc": "outside lower center", "borderaxespad": 2.2, "handletextpad": 0.3}
        fig.legend(handles, names, ncols=len(names), columnspacing=1.1, title="HoliTom minus", **place)
    parts = [printed.assign(panel="printed"), mask.assign(panel="mask")]
    return fig, pd.concat([part for part in parts if len(part)], ignore_index=True)


def _printed_panel(ax: Axes, printed: pd.DataFrame) -> None:
    names = list(paper.BENCHMARKS)
    rivals = [name for name in LOOKS if name in set(printed["rival"])]
    for place, name in enumerate(names):
        mine = printed[printed["benchmark"] == name]
        half = 1.96 * float(mine["se_difference"].mean())
        ax.fill_between([place - 0.44, place + 0.44], -half, half, color=BAND, lw=0, zorder=1)
        for rank, rival in enumerate(rivals):
            part = mine[mine["rival"] == rival]
            at = place + 0.72 * (rank - (len(rivals) - 1) / 2) / len(rivals)
            style = {"marker": look(rival).marker, "ms": 4, "mfc": "white", "mec": look(rival).colour, "mew": 0.9}
            ax.plot([at] * len(part), part["difference"], ls="none", zorder=3, **style)
        inside = (mine["difference"].abs() <= 1.96 * mine["se_difference"]).sum()
        ax.annotate(f"{inside} of {len(mine)}\ninside", (place, 0.985), xycoords=("data", "axes fraction"),
                    ha="center", va="top", fontsize=7, color=INK)  # fmt: skip
    ax.axhline(0, color=MUTED, lw=0.8, zorder=2)
    low, high = printed["difference"].min(), printed["difference"].max()
    ax.set_ylim(low - 0.6, high + 0.22 * (high - low))
    words = [paper.BENCHMARKS[name].replace("LongVideo", "LongVideo-\n").replace("Ego", "Ego-\n") for name in names]
    ax.set_xticks(range(len(names)), words, fontsize=7)
    ax.yaxis.set_major_locator(MultipleLocator(2))
    ax.grid(axis="x", visible=False)
    ax.set(ylabel="printed difference (points)", title="Printed: mostly inside one run's noise")
    note(ax, "band: 1.96 standard errors of an unpaired difference")


def _mask_panel(ax: Axes, mask: pd.DataFrame) -> None:
    ax.axvspan(-MARGIN, MARGIN, color=BAND, lw=0, zorder=1)
    ax.axvline(0, color=MUTED, lw=0.8, zorder=2)
    style = look("HoliTom")
    for place, row in enumerate(mask.itertuples()):
        errors = [[row.diff - row.diff_low], [row.diff_high - row.diff]]
        whole = row.label.startswith(WHOLE)
        ax.errorbar(row.diff, place, xerr=errors, marker="s" if whole else style.marker, color=style.colour, ms=5,
                    capsize=2, elinewidth=0.9, mfc=style.colour, ls="none", zorder=3)  # fmt: skip
    ax.set_yticks(range(len(mask)), list(mask["label"]), fontsize=7)
    ax.yaxis.set_minor_locator(NullLocator())
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    low, high = (mask["diff_low"].min(), mask["diff_high"].max()) if len(mask) else (0.0, 0.0)
    ax.set_xlim(min(1.1 * low, -MARGIN - 0.5), max(1.1 * high, MARGIN + 0.5))
    ax.set(xlabel="score minus that with the mask\n(points)", title="Measured: the mask")
    if len(mask):
        unnamed = mask.loc[~mask["label"].str.contains("K = "), "depth"]
        usual = f"\nK if not named: {unnamed.iloc[0]}" if len(unnamed) else ""
        note(ax, f"bars: paired 95 % intervals, not corrected\nband: within {MARGIN:g} points{usual}")
    else:
        ax.annotate("not measured", (0.5, 0.5), xycoords="axes fraction", ha="center", color=MUTED)
