"""One panel of scores: a line per method, intervals, hollow quoted and filled measured points, the unreduced model
dashed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from holitom.errors import BadUsage
from holitom_repro.figures.style import BEHIND, INK, LOOKS, MUTED, direct_labels, look, marker_style, require_sources

COLUMNS = ("method", "x", "y", "low", "high", "source")
MOST_DIRECT = 8  # more lines than this get a legend instead of labels at their ends
GAP = 0.08  # of the axis between two names
MARKER = 4.6
"""Points across, smaller than most intervals are high."""
SIZES = {"*": 1.5, "D": 0.85, "P": 1.3, "X": 1.3, (4, 1, 0): 1.6, "x": 1.15, "+": 1.3, "1": 1.4, "2": 1.4}
"""Times MARKER, for markers that look larger or smaller than a disc of the same width."""


def check_points(points: pd.DataFrame) -> pd.DataFrame:
    """Points to plot: method, x, y, low, high (NaN where no interval is known) and a source for each. BadUsage
    otherwise."""
    missing = [name for name in COLUMNS if name not in points.columns]
    if "source" in points.columns:
        require_sources(points)
    if missing:
        raise BadUsage(
            f"the points of a panel lack {', '.join(missing)}", fix="give one row per point with these columns"
        )
    bare = points[(points["source"] == "measured") & points[["low", "high"]].isna().any(axis=1)]
    if len(bare):
        raise BadUsage(
            f"{len(bare)} measured points have no interval, the first is {bare.iloc[0].to_dict()}",
            fix="give low and high",
        )
    return points


def draw_panel(
    ax: Axes,
    points: pd.DataFrame,
    *,
    xlabel: str,
    ylabel: str = "",
    title: str = "",
    log: bool = False,
    ticks: Sequence[float | int] = (),
    labels: bool = True,
    side: Literal["left", "right"] = "right",
    xlim: tuple[float | int, float | int] | None = None,
    ylim: tuple[float | int, float | int] | None = None,
    dodge: float | int = 0.0,
    flat: Literal["inside", "beside"] = "inside",
    margin: bool = False,
) -> None:
    """Draw ``check_points`` data. The rows of ``baseline`` that have no x become a dashed line across the panel with
    its interval as a band; all other methods become lines (or single points) through their rows in the order of x.
    labels: name the lines at their ends, on ``side``, while there are few of them. dodge: moves methods apart along x,
    so that their intervals can be told apart, as a share of x on a logarithmic axis. flat: where the dashed lines have
    their names; "beside" the panel where points would lie under them. margin: lines (not single points) are named
    outside the panel, where no line runs."""
    points = check_points(points)
    across = points[points["x"].isna()]
    lines = points[points["x"].notna()]
    for row in across.itertuples():
        if pd.notna(row.low):
            ax.axhspan(row.low, row.high, color=look(row.method).colour, alpha=0.07, lw=0)
        ax.axhline(row.y, color=look(row.method).colour, lw=1.1, ls="--", zorder=1.5)
    for method in set(points["method"]):
        look(method)  # refuse a method without a look before anything is drawn
    order = [name for name in LOOKS if name in set(lines["method"])]
    ends: dict[str, list[tuple[float, float, str, str]]] = {"left": [], "right": [], "point": []}
    for rank, method in enumerate(order):
        mine = lines[lines["method"] == method].sort_values("x")
        aside = dodge * (rank - (len(order) - 1) / 2)
        mine = mine.assign(x=mine["x"] * (1 + aside) if log else mine["x"] + aside)
        for source, part in mine.groupby("source", sort=False):
            style = marker_style(method, str(source))
            ax.errorbar(
                part["x"],
                part["y"],
                yerr=_errors(part),
                ls=look(method).dash if len(part) > 1 else "none",
                capsize=1.5,
                elinewidth=0.8,
                capthick=0.8,
                lw=1.2 if source != "quoted" else 1.1,
                ms=MARKER * SIZES.get(look(method).marker, 1.0),
                zorder=3 if method.startswith("HoliTom") else 2,
                label=method,
                **style,
            )
        alone = len(mine) == 1
        where = "right" if alone else side  # a single point is named where lines end, not where they begin
        end = mine.iloc[-1 if where == "right" else 0]
        x = float(end["x"]) - (0.0 if log else aside)  # names stand in line whatever the points' own places are
        if ylim is None or ylim[0] <= end["y"] <= ylim[1]:  # no name for an end that the panel does not show
            place = "point" if alone and margin else where
            ends[place].append((x, float(end["y"]), baseline_name(method), look(method).colour))
    if log:
        ax.set_xscale("log")
    if ticks:
        ax.xaxis.set_major_locator(FixedLocator(list(ticks)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_ylim(*(ylim or limits(points)))
    if xlim:
        ax.set_xlim(*xlim)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if title:
        ax.set_title(title)
    for row in across.itertuples():
        name = f"{baseline_name(row.method)} {row.y:.1f}"
        if flat == "beside":
            last = max((x for x, *_ in ends["right"]), default=float(ax.get_xlim()[1]))
            ends["right"].append((last, float(row.y), name, look(row.method).colour))
            continue
        ax.annotate(
            name,
            (0.01, row.y),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            fontsize=7,
            color=INK,
            zorder=BEHIND,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )
    if labels and max(len(here) for here in ends.values()) <= MOST_DIRECT:
        direct_labels(ax, ends["left"], side="left", gap=GAP, margin=margin)
        direct_labels(ax, ends["right"], gap=GAP, margin=margin, offset=4 if margin else 9)
        direct_labels(ax, ends["point"])
    elif labels:
        ax.legend(ncols=2, loc="lower right")


def shared_legend(fig: Figure, panels: Sequence[pd.DataFrame], columns: int = 5, title: str = "") -> None:
    """One legend below all panels, in the fixed order of the methods; it names every method drawn as points."""
    drawn = {method for points in panels for method in points.loc[points["x"].notna(), "method"]}
    names = [name for name in LOOKS if name in drawn]
    handles = [
        Line2D([], [], color=look(n).colour, marker=look(n).marker, ls=look(n).dash, lw=1.3, markersize=MARKER)
        for n in names
    ]
    labels = [baseline_name(name) for name in names]
    place = {"loc": "outside lower center", "borderaxespad": 2.4}  # room for the footer below
    fig.legend(handles, labels, ncols=min(columns, len(names)), handlelength=2.6, title=title or None, **place)


def baseline_name(method: str) -> str:
    """How the unreduced model is called in a figure."""
    return "all tokens" if method == "Vanilla" else method


def limits(points: pd.DataFrame) -> tuple[float, float]:
    """Room below and above the data, intervals included."""
    low = float(points[["y", "low"]].min(axis=None))
    high = float(points[["y", "high"]].max(axis=None))
    return low - max((high - low) * 0.06, 0.2), high + max((high - low) * 0.08, 0.2)


def note(ax: Axes, text: str) -> None:
    """A remark under a panel, below the name of its x axis, where no line and no grid crosses it."""
    place = {"xycoords": ("axes fraction", ax.xaxis.label), "xytext": (0, -3), "textcoords": "offset points"}
    ax.annotate(text, (0, 0), **place, fontsize=6.5, color=MUTED, va="top", ha="left", annotation_clip=False)


def _errors(part: pd.DataFrame) -> list[list[float]] | None:
    if part[["low", "high"]].isna().any(axis=None):
        return None
    return [(part["y"] - part["low"]).clip(lower=0).tolist(), (part["high"] - part["y"]).clip(lower=0).tolist()]
