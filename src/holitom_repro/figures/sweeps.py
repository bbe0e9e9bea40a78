"""How time, memory and throughput grow over frames, budgets and the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from holitom_repro.figures.series import MARKER, SIZES, baseline_name, note
from holitom_repro.figures.style import DOUBLE, LOOKS, MUTED, look, marker_style, require_sources, styled

BUDGET_DASHES = ("-", (0, (1.2, 1.2)), (0, (5, 1.5)))
"""Of the first, second and third budget of a method in one panel; hollow markers mean quoted values, never a budget."""
ASIDE = 0.02
"""Lines are drawn this share of the axis apart, for where they coincide."""


def sweep_frame(records: Sequence[Mapping[str, Any]], part: str) -> pd.DataFrame:
    """One row per setting of a sweep: x (frames, budget or batch), TTFT with quartiles, peak memory, cache size, videos
    per second. Settings that ran out of memory stay, with their outcome and no numbers."""
    rows = []
    for record in (r for r in records if r["part"] == part):
        row: dict[str, Any] = {
            "method": record["row"],
            "at": record["at"],
            "frames": record["frames"],
            "batch": record["batch"],
            "budget": 100.0 if record["at"] == "all tokens" else float(record["at"].rstrip("%")),
            "outcome": record["outcome"],
            "source": "measured",
        }
        if record["outcome"] == "measured":
            ttft, memory = record["summary"]["ttft_ms"], record["memory"]
            row |= {"ttft_ms": ttft["median"], "low": ttft["q1"], "high": ttft["q3"]}
            row |= {"videos_per_s": record["summary"]["videos_per_s"]}
            row |= {"above_mib": _mib(memory.get("above_bytes")), "cache_mib": _mib(sum(memory["kv_bytes_per_layer"]))}
        rows.append(row)
    columns = ["method", "at", "ttft_ms", "low", "high", "videos_per_s", "above_mib", "cache_mib", "outcome", "source"]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)


def sweep_figure(
    frame: pd.DataFrame, x: str, panels: Sequence[tuple[str, str]], *, xlabel: str, log: bool = False
) -> tuple[Figure, pd.DataFrame]:
    """One panel for each (column, label): a line per method and budget over ``x``, side by side where they coincide;
    the dash is the budget. What ran out of memory is a cross at the top of the panel."""
    frame = require_sources(frame)
    with styled():
        fig = Figure(figsize=(DOUBLE, 3.1), layout="constrained")
        axes = fig.subplots(1, len(panels), squeeze=False)[0]
        for ax, (column, label) in zip(axes, panels, strict=True):
            _sweep_panel(ax, frame, x, column, log)
            ax.set(xlabel=f"{xlabel} (log scale)" if log else xlabel, ylabel=label)
            whiskers = "whiskers: quartiles; " if column == "ttft_ms" else ""
            note(ax, f"{whiskers}lines are drawn side by side, {100 * ASIDE:g} % of the axis apart")
        handles, labels = axes[0].get_legend_handles_labels()
        fig.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=4 if len(labels) < 5 else 3,
            borderaxespad=2.4,
            handlelength=3,
        )
    return fig, frame


def _sweep_panel(ax: Axes, frame: pd.DataFrame, x: str, column: str, log: bool) -> None:
    names = [name for name in LOOKS if name in set(frame["method"])]
    if x == "budget" and "Vanilla" in names:  # the full model has one budget: a line across the panel
        names.remove("Vanilla")
        full, colour = frame[frame["method"] == "Vanilla"].iloc[0], look("Vanilla").colour
        frame = frame[frame["method"] != "Vanilla"]
        ax.axhline(float(full[column]), color=colour, ls="--", lw=1.1, label=baseline_name("Vanilla"))
        if column == "ttft_ms":
            ax.axhspan(full["low"], full["high"], color=colour, alpha=0.07, lw=0)
    lines = [
        (name, order, str(at), part)
        for name in names
        for order, (at, part) in enumerate(
            frame[frame["method"] == name].groupby("at" if x != "budget" else "method", sort=False)
        )
    ]
    failed = []
    for rank, (name, order, at, part) in enumerate(lines):
        beside = _aside(frame[x], rank - (len(lines) - 1) / 2, log)
        done = part[part["outcome"] == "measured"].sort_values(x)
        several = sum(other == name for other, *_ in lines) > 1
        dash = BUDGET_DASHES[order % len(BUDGET_DASHES)] if several else look(name).dash
        plain = name == "Vanilla" or x == "budget"
        label = baseline_name(name) if plain else f"{name}, {at.replace('%', ' %')}"
        style = marker_style(name, "measured") | {
            "ls": dash,
            "lw": 1.2,
            "ms": MARKER * SIZES.get(look(name).marker, 1.0),
            "capsize": 1.5,
            "elinewidth": 0.8,
        }
        errors = [done["ttft_ms"] - done["low"], done["high"] - done["ttft_ms"]] if column == "ttft_ms" else None
        ax.errorbar(beside(done[x]), done[column], yerr=errors, label=label, **style)
        failed += [(float(place), look(name).colour) for place in beside(part.loc[part["outcome"] != "measured", x])]
    ax.set_ylim(0, 1.04 * ax.get_ylim()[1])
    for place, colour in failed:
        ax.plot([place], [0.96], "x", transform=ax.get_xaxis_transform(), color=colour, ms=7, mew=1.6, clip_on=False)
    if failed:
        ax.text(0.01, 0.93, "x: out of memory", transform=ax.transAxes, fontsize=6.5, color=MUTED, va="top")
    if log:
        ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(sorted(frame.loc[frame["method"] != "Vanilla", x].unique())))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _aside(places: pd.Series, rank: float, log: bool) -> Callable[[pd.Series], pd.Series]:
    """Moves a line's points along x by ``rank`` times ASIDE of what the axis shows."""
    low, high = float(places.min()), float(places.max())
    if log:
        return lambda xs: xs * (high / low) ** (rank * ASIDE)
    return lambda xs: xs + rank * ASIDE * (high - low)


def _mib(number: float | int | None) -> float:
    return float("nan") if number is None else number / 2**20
