"""A forest of differences: every variant of the ablations as a point with its interval, grouped by factor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from holitom_repro.ablations import DEFAULT, LEVEL, MARGIN, Finding, clear
from holitom.errors import BadUsage
from holitom_repro.figures.style import DOUBLE, INK, MUTED, require_sources, styled

LOOKS = {-1: ("#B3261E", "v", "below the default"), 0: (MUTED, "o", "not told apart"), 1: ("#1B7F4B", "^", "above")}
LINE, TOP, BOTTOM = 0.155, 0.45, 1.05  # inches
ABOVE, BELOW = 0.5, 1.25  # a heading's distance from the line before it and the one after, in lines
ALIKE = 0.02  # tokens that differ by no more than this share are not named
ROOM = 0.06  # of the axis between the widest intervals and its ends


def ablation_figure(
    table: pd.DataFrame, findings: Sequence[Finding], defaults: Mapping[str, str], *, model: str
) -> tuple[Figure, pd.DataFrame]:
    """Differences to the default in points, below it on the left; the band is the margin within which a change matters
    little. table: ``ablations.against_default``; findings: their verdicts; defaults: factor -> what the default has
    there. Both are written beside each factor.
    """
    require_sources(table)
    drawn = table[table["factor"] != ""].reset_index(drop=True)
    if drawn.empty:
        raise BadUsage("there is no variant to draw", fix="give the result of ablations.against_default")
    lines = len(drawn) + (ABOVE + BELOW) * len(findings)
    with styled():
        fig = Figure(figsize=(DOUBLE, TOP + BOTTOM + LINE * lines), layout="constrained")
        ax = fig.subplots()
        y, places, labels = 0.0, [], []
        low, high = min(drawn["diff_low"].min(), -2 * MARGIN), max(drawn["diff_high"].max(), 2 * MARGIN)
        edge = ROOM * (high - low)
        for finding in findings:
            y += ABOVE
            _heading(ax, finding, y, defaults.get(finding.factor.name, ""))
            y += BELOW
            for _, row in drawn[drawn["factor"] == finding.factor.name].iterrows():
                _point(ax, row, y)
                places.append(y)
                labels.append(_label(row, table))
                y += 1
        ax.axvline(0, color=INK, lw=0.9, zorder=1)
        ax.axvspan(-MARGIN, MARGIN, color="#0173B2", alpha=0.08, lw=0, zorder=0)
        ax.set_yticks(places, labels)
        ax.set(ylim=(y, ABOVE - 1.0), xlim=(low - edge, high + edge))
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("score minus the default's, average of the benchmarks (points)")
        ax.set_title(f"One change at a time around HoliTom at 10 %: {model}")
        _legend(fig, tested=int(table["p_holm"].notna().sum()))
    return fig, drawn


def _point(ax: Axes, row: pd.Series, y: float) -> None:
    colour, marker, _ = LOOKS[clear(row)]
    error = [[row["diff"] - row["diff_low"]], [row["diff_high"] - row["diff"]]]
    ax.errorbar(row["diff"], y, xerr=error, fmt=marker, color=colour, ms=4.5, elinewidth=1.1, capsize=2, zorder=3)


def _heading(ax: Axes, finding: Finding, y: float, default: str) -> None:
    across = ax.get_yaxis_transform()
    ax.axhline(y - 0.8, color="#DDDDDD", lw=0.6, zorder=0)
    usual = f" (default {default})" if default else ""
    last = ax.text(-0.01, y, usual, transform=across, ha="right", va="center", fontsize=7, color=INK)
    name = {"xycoords": last, "ha": "right", "va": "center", "fontweight": "bold", "color": INK}
    ax.annotate(finding.factor.name, (0, 0.5), annotation_clip=False, **name)
    text = f"{finding.factor.expected} {finding.verdict.upper()}"
    look = {"fontsize": 6.3, "color": INK, "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.6}}
    ax.text(0.004, y, text, transform=across, ha="left", va="center", zorder=4, **look)


def _label(row: pd.Series, table: pd.DataFrame) -> str:
    """The variant, a bare number with its factor's name, and its tokens per layer where they are not ``ALIKE`` the
    default's."""
    base = float(table[(table["factor"] == "") & (table["variant"] == DEFAULT)]["tokens"].iloc[0])
    name = f"{row['factor']} {row['variant']}" if re.match(r"[\d.]+(,|$)", row["variant"]) else row["variant"]
    return f"{name} ({row['tokens']:.0f} tokens)" if abs(row["tokens"] / base - 1) > ALIKE else name


def _legend(fig: Figure, *, tested: int) -> None:
    handles = [Line2D([], [], color=c, marker=m, ls="-", lw=1.1, markersize=4.5) for c, m, _ in LOOKS.values()]
    names = [name for _, _, name in LOOKS.values()]
    handles.append(Line2D([], [], color="#0173B2", alpha=0.2, lw=7))
    names.append(f"within {MARGIN:g} points")
    told = (
        f"Told apart: p < {LEVEL:g} after Holm's correction for {tested} comparisons. Bars are 95 % intervals without "
        f"it,\nso one may leave out 0. In brackets: tokens per layer, where over {100 * ALIKE:g} % from the default's."
        "\nHOLDS is said of this kit's own expectations, written down before; REPRODUCED of claims in the ledger."
    )
    place = {"loc": "outside lower center", "borderaxespad": 2.4}
    fig.legend(handles, names, ncols=4, title=told, title_fontproperties={"size": 6.5}, **place)
