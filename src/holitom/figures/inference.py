"""The inference figure: stacked times to the first token per method, and how time and memory grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from holitom.errors import BadUsage
from holitom.figures.series import baseline_name
from holitom.figures.style import DOUBLE, INK, LOOKS, MUTED, look, require_sources, styled

GROUPS = {
    "vision_ms": ("vision tower", "#8FB8DE"),
    "other_ms": ("between tower and language model", "#F2C14E"),
    "llm_ms": ("language model", "#5B8E7D"),
}
"""Columns of the printed figure -> names and colours."""
PARTS = {
    "vision_tower": "vision_ms",
    "saliency": "other_ms",
    "projector": "other_ms",
    "outer": "other_ms",
    "splice": "other_ms",
    "prefill": "llm_ms",
    "inner": "llm_ms",
    "first_token": "llm_ms",
}
"""Measured stage -> the printed figure's group that it belongs to."""
STAGE_LOOKS = {
    "vision_tower": ("vision tower", "#8FB8DE"),
    "saliency": ("saliency", "#D1495B"),
    "projector": ("projector, pooling", "#F2C14E"),
    "outer": ("outer reduction", "#EDAE49"),
    "splice": ("splice", "#C9B79C"),
    "prefill": ("prefill", "#5B8E7D"),
    "inner": ("inner stage", "#A23B2A"),
    "first_token": ("first token", "#30638E"),
}
ORDER = ("Vanilla", "FastV", "PDrop", "VisionZip", "PruneVid", "HoliTom (w/o M)", "HoliTom")


def quoted_bars(printed: pd.DataFrame) -> pd.DataFrame:
    """The printed figure as bars; the budget of a row is what its own score points to."""
    full = printed.loc[printed["method"] == "Vanilla", "ttft_ms"].iloc[0]
    rows = printed.assign(
        at=[f"{budget} %" for budget in printed["implied_retained_pct"]],
        speedup=full / printed["ttft_ms"],
        low=float("nan"),
        high=float("nan"),
        score=[f"{score:.1f}" for score in printed["avg"]],
        source="quoted",
    )
    columns = ["method", "at", *GROUPS, "ttft_ms", "low", "high", "speedup", "decode_tok_s", "score", "source"]
    return _ordered(rows[columns])


def measured_bars(records: Sequence[Mapping[str, Any]], at: str) -> pd.DataFrame:
    """Bars of the part "rows": the full model and the settings at ``at`` ("printed", or a budget). Groups are medians
    of passes with marks, ttft_ms and its quartiles of passes without."""
    chosen = [
        r for r in records if r["part"] == "rows" and r["outcome"] == "measured" and r["at"] in (at, "all tokens")
    ]
    base = next((r["summary"]["ttft_ms"]["median"] for r in chosen if r["row"] == "Vanilla"), float("nan"))
    rows = []
    for record in chosen:
        summary = record["summary"]
        groups = dict.fromkeys(GROUPS, 0.0)
        for stage, group in PARTS.items():
            groups[group] += summary["stages_ms"][stage]["median"]
        rate = summary["decode_tok_s"]
        rows.append(
            {
                "method": record["row"],
                "at": kept_share(record),
                **groups,
                "ttft_ms": summary["ttft_ms"]["median"],
                "low": summary["ttft_ms"]["q1"],
                "high": summary["ttft_ms"]["q3"],
                "speedup": base / summary["ttft_ms"]["median"],
                "decode_tok_s": rate["median"] if rate else float("nan"),
                "score": "",
                "source": "measured",
            }
        )
    return _ordered(pd.DataFrame(rows)) if rows else pd.DataFrame(columns=["method", "source"])


def kept_share(record: Mapping[str, Any]) -> str:
    """Visual tokens that entered the language model, and the mean over its layers where that is less, in per cent."""
    layers = record["tokens_per_layer"]
    full = record["frames"] * record["cells_per_frame"]
    first, mean = 100 * layers[0] / full, 100 * sum(layers) / len(layers) / full
    return f"{first:.0f} %" if first - mean < 0.5 else f"{first:.0f} % ({mean:.0f} %)"


def bars_figure(panels: Sequence[tuple[str, pd.DataFrame]]) -> tuple[Figure, pd.DataFrame]:
    """One panel of horizontal stacked bars for each (title, bars); empty ones say so. Beside each bar: TTFT with the
    speed-up, decode rate, and the quoted score where the paper prints one."""
    drawn = [(title, bars) for title, bars in panels if len(bars)]
    if not drawn:
        raise BadUsage("no bars to draw", fix="give the printed rows at least")
    heights = [len(bars) + 1.6 for _, bars in drawn]
    with styled():
        fig = Figure(figsize=(DOUBLE, 0.26 * sum(heights) + 0.9), layout="constrained")
        shape = {"height_ratios": heights, "width_ratios": [1, 0.42], "wspace": 0.0}
        axes = fig.subplots(len(drawn), 2, gridspec_kw=shape, squeeze=False)
        for (ax, beside), (title, bars) in zip(axes, drawn, strict=True):
            _panel(ax, title, require_sources(bars))
            _columns(beside, bars, ax.get_ylim())
        handles = [
            axes[0][0].barh([0], [0], color=colour, edgecolor="white", label=name) for name, colour in GROUPS.values()
        ]
        fig.legend(handles, [n for n, _ in GROUPS.values()], loc="outside lower center", ncols=3, borderaxespad=2.4)
    return fig, pd.concat([bars.assign(panel=title) for title, bars in drawn], ignore_index=True)


def _panel(ax: Axes, title: str, bars: pd.DataFrame) -> None:
    widest = float(bars[list(GROUPS)].sum(axis=1).max())
    quoted = bars["source"].iloc[0] == "quoted"
    for place, row in enumerate(bars.itertuples()):
        left = 0.0
        for group, (_, colour) in GROUPS.items():
            width = getattr(row, group)
            ax.barh(
                place,
                width,
                left=left,
                height=0.66,
                color=colour,
                alpha=0.55 if quoted else 1.0,
                edgecolor="white",
                lw=0.5,
            )
            if width > 0.07 * widest:
                ax.text(left + width / 2, place, _short(width), ha="center", va="center", fontsize=6.5, color=INK)
            left += width
        if pd.notna(row.low):
            ends = [[max(row.ttft_ms - row.low, 0)], [max(row.high - row.ttft_ms, 0)]]
            ax.errorbar(row.ttft_ms, place, xerr=ends, color=INK, capsize=2, elinewidth=0.8, fmt="none")
    ax.set_yticks(range(len(bars)), [f"{baseline_name(row.method)}, {row.at}" for row in bars.itertuples()])
    ax.set_ylim(len(bars) - 0.4, -1.3)
    ax.set_xlim(0, widest * 1.02)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("ms to the first token")
    ax.set_title(title)


def _columns(ax: Axes, bars: pd.DataFrame, ylim: tuple[float | int, float | int]) -> None:
    """Beside the bars, as in the paper: TTFT with the speed-up, decode rate, and the printed score."""
    ax.axis("off")
    ax.set(xlim=(0, 1), ylim=ylim)
    heads = ("TTFT ms (speed-up)", "tok/s", "score" if any(bars["score"]) else "")
    for x, head in zip((0.52, 0.76, 0.98), heads, strict=True):
        ax.text(x, -0.95, head, ha="right", va="center", fontsize=6.5, color=MUTED)
    for place, row in enumerate(bars.itertuples()):
        rate = f"{row.decode_tok_s:.1f}" if pd.notna(row.decode_tok_s) else "-"
        weight = "bold" if row.method.startswith("HoliTom") else "normal"
        for x, text in ((0.52, f"{_short(row.ttft_ms)} ({row.speedup:.2f}x)"), (0.76, rate), (0.98, row.score)):
            ax.text(x, place, text, ha="right", va="center", fontsize=7, weight=weight)


def stage_frame(records: Sequence[Mapping[str, Any]], at: str) -> pd.DataFrame:
    """One row per setting and stage: median ms and share of the sum of the stages."""
    rows = []
    for record in records:
        if record["part"] != "rows" or record["outcome"] != "measured" or record["at"] not in (at, "all tokens"):
            continue
        stages = {name: part["median"] for name, part in record["summary"]["stages_ms"].items()}
        whole = sum(stages.values())
        rows += [
            {"method": record["row"], "stage": name, "ms": ms, "share": 100 * ms / whole, "source": "measured"}
            for name, ms in stages.items()
        ]
    return pd.DataFrame(rows)


def stages_figure(stages: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Share of each stage in the time to the first token, a bar per method."""
    stages = require_sources(stages)
    methods = [name for name in ORDER if name in set(stages["method"])]
    with styled():
        fig = Figure(figsize=(DOUBLE, 0.3 * len(methods) + 1.5), layout="constrained")
        ax = fig.subplots()
        for place, method in enumerate(methods):
            left = 0.0
            mine = stages[stages["method"] == method].set_index("stage")
            for stage, (_, colour) in STAGE_LOOKS.items():
                width = float(mine.loc[stage, "share"])
                ax.barh(place, width, left=left, height=0.7, color=colour, edgecolor="white", lw=0.4)
                if width > 4:
                    ax.text(left + width / 2, place, f"{width:.0f}", ha="center", va="center", fontsize=6.5, color=INK)
                left += width
        ax.set_yticks(range(len(methods)), [baseline_name(name) for name in methods])
        ax.set_ylim(len(methods) - 0.5, -0.5)
        ax.set_xlim(0, 100)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("share of the time to the first token (%)")
        handles = [ax.barh([0], [0], color=colour, label=name) for name, colour in STAGE_LOOKS.values()]
        names = [name for name, _ in STAGE_LOOKS.values()]
        fig.legend(handles, names, loc="outside lower center", ncols=4, borderaxespad=2.4)
    return fig, stages


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
            ax.set(xlabel=xlabel, ylabel=label)
        handles, labels = axes[0].get_legend_handles_labels()
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
            continue
        for order, (at, part) in enumerate(mine.groupby("at" if x != "budget" else "method", sort=False)):
            done = part[part["outcome"] == "measured"].sort_values(x)
            style = {"color": look(name).colour, "marker": look(name).marker, "ls": look(name).dash}
            style |= {"markerfacecolor": "white"} if order else {}
            label = baseline_name(name) if name == "Vanilla" or x == "budget" else f"{name}, {at}"
            errors = [done["ttft_ms"] - done["low"], done["high"] - done["ttft_ms"]] if column == "ttft_ms" else None
            ax.errorbar(
                done[x], done[column], yerr=errors, label=label, lw=1.3, ms=5, capsize=2, elinewidth=0.8, **style
            )
            failed += [(float(place), look(name).colour) for place in part.loc[part["outcome"] != "measured", x]]
    ax.set_ylim(bottom=0)
    for place, colour in failed:
        ax.plot([place], [0.96], "x", transform=ax.get_xaxis_transform(), color=colour, ms=7, mew=1.6, clip_on=False)
    if failed:
        ax.text(0.01, 0.93, "x: out of memory", transform=ax.transAxes, fontsize=6.5, color=MUTED, va="top")
    if log:
        ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(sorted(frame.loc[frame["method"] != "Vanilla", x].unique())))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def measured_order(method: str) -> int:
    """The place of a row: the full model first, HoliTom last."""
    return ORDER.index(method) if method in ORDER else len(ORDER)


def _ordered(bars: pd.DataFrame) -> pd.DataFrame:
    return bars.sort_values("method", key=lambda names: names.map(measured_order)).reset_index(drop=True)


def _short(ms: float | int) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}"


def _mib(number: float | int | None) -> float:
    return float("nan") if number is None else number / 2**20
