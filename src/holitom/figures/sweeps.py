"""How time, memory and throughput grow over frames, budgets and the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from holitom.figures.series import baseline_name
from holitom.figures.style import DOUBLE, LOOKS, MUTED, look, require_sources, styled


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
    """One panel for each (column, label): a line per method and budget over ``x``; what ran out of memory is a cross at
    the top of the panel."""
    frame = require_sources(frame)
    with styled():
        fig = Figure(figsize=(DOUBLE, 2.9), layout="constrained")
        axes = fig.subplots(1, len(panels), squeeze=False)[0]
        for ax, (column, label) in zip(axes, panels, strict=True):
            _sweep_panel(ax, frame, x, column, log)
            ax.set(xlabel=f"{xlabel} (log scale)" if log else xlabel, ylabel=label)
        handles, labels = axes[0].get_legend_handles_labels()
        if any(column == "ttft_ms" for column, _ in panels):
            handles.append(Line2D([], [], color=MUTED, marker="_", ls="none", markersize=6))
            labels.append("whiskers: quartiles")
        fig.legend(handles, labels, loc="outside lower center", ncols=5, borderaxespad=2.4)
    return fig, frame


def _sweep_panel(ax: Axes, frame: pd.DataFrame, x: str, column: str, log: bool) -> None:
    names = [name for name in LOOKS if name in set(frame["method"])]
    failed = []
    for name in names:
        mine = frame[frame["method"] == name]
        flat = x == "budget" and name == "Vanilla"  # the full model has one budget: a line across the panel
        if flat:
            value = float(mine[column].iloc[0])
            ax.axhline(value, color=look(name).colour, ls="--", lw=1.1, label=baseline_name(name))
            if column == "ttft_ms":
                ax.axhspan(mine["low"].iloc[0], mine["high"].iloc[0], color=look(name).colour, alpha=0.07, lw=0)
            continue
        for order, (at, part) in enumerate(mine.groupby("at" if x != "budget" else "method", sort=False)):
            done = part[part["outcome"] == "measured"].sort_values(x)
            style = {"color": look(name).colour, "marker": look(name).marker, "ls": look(name).dash}
            style |= {"markerfacecolor": "white"} if order else {}
            label = (
                baseline_name(name) if name == "Vanilla" or x == "budget" else f"{name}, {str(at).replace('%', ' %')}"
            )
            errors = [done["ttft_ms"] - done["low"], done["high"] - done["ttft_ms"]] if column == "ttft_ms" else None
            ax.errorbar(
                done[x], done[column], yerr=errors, label=label, lw=1.3, ms=5, capsize=2, elinewidth=0.8, **style
            )
            failed += [(float(place), look(name).colour) for place in part.loc[part["outcome"] != "measured", x]]
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


def _mib(number: float | int | None) -> float:
    return float("nan") if number is None else number / 2**20
