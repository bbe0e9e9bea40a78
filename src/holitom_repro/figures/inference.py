"""The inference figure: stacked times to the first token per method, printed and measured."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from holitom.errors import BadUsage
from holitom_repro.figures.remarks import between_panels
from holitom_repro.figures.series import baseline_name
from holitom_repro.figures.style import DOUBLE, INK, MUTED, require_sources, styled

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
PLACES = (0.38, 0.84, 1.0)
"""Right ends of the columns beside the bars."""
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


def measured_bars(records: Sequence[Mapping[str, Any]], at: str, part: str = "rows") -> pd.DataFrame:
    """Bars of one part: the full model and the settings at ``at`` ("printed", or a budget). Groups are medians of
    passes with marks, ttft_ms and decode_tok_s with their quartiles of passes without."""
    chosen = [r for r in records if r["part"] == part and r["outcome"] == "measured" and r["at"] in (at, "all tokens")]
    base = next((r["summary"]["ttft_ms"]["median"] for r in chosen if r["row"] == "Vanilla"), float("nan"))
    rows = []
    for record in chosen:
        summary = record["summary"]
        groups = dict.fromkeys(GROUPS, 0.0)
        for stage, group in PARTS.items():
            groups[group] += summary["stages_ms"][stage]["median"]
        rate = summary["decode_tok_s"] or dict.fromkeys(("median", "q1", "q3"), float("nan"))
        rows.append(
            {
                "method": record["row"],
                "at": kept_share(record),
                **groups,
                "ttft_ms": summary["ttft_ms"]["median"],
                "low": summary["ttft_ms"]["q1"],
                "high": summary["ttft_ms"]["q3"],
                "speedup": base / summary["ttft_ms"]["median"],
                "decode_tok_s": rate["median"],
                "decode_low": rate["q1"],
                "decode_high": rate["q3"],
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


def bars_figure(panels: Sequence[tuple[str, pd.DataFrame]], *, remark: str = "") -> tuple[Figure, pd.DataFrame]:
    """One panel of horizontal stacked bars for each (title, bars); an empty one is left out. Beside each bar: TTFT with
    the speed-up, decode rate with its quartiles, and the quoted score where the paper prints one. Under all:
    ``between_panels``, and a ``remark``, for instance ``remarks.left_out``."""
    drawn = [(title, bars) for title, bars in panels if len(bars)]
    if not drawn:
        raise BadUsage("no bars to draw", fix="give the printed rows at least")
    heights = [len(bars) + 1.6 for _, bars in drawn]
    with styled():
        fig = Figure(figsize=(DOUBLE, 0.26 * sum(heights) + 0.9), layout="constrained")
        shape = {"height_ratios": heights, "width_ratios": [1, 0.55], "wspace": 0.0}
        axes = fig.subplots(len(drawn), 2, gridspec_kw=shape, squeeze=False)
        for (ax, beside), (title, bars) in zip(axes, drawn, strict=True):
            _panel(ax, title, require_sources(bars))
            _columns(beside, bars, ax.get_ylim())
        handles = [
            axes[0][0].barh([0], [0], color=colour, edgecolor="white", label=name) for name, colour in GROUPS.values()
        ]
        names = [name for name, _ in GROUPS.values()]
        if any(bars["low"].notna().any() for _, bars in drawn):
            handles.append(Line2D([], [], color=INK, marker="|", lw=0.8, markersize=6))
            names.append("quartiles, end to end")
        said = "\n".join(textwrap.fill(part, 125) for part in (between_panels(drawn), remark) if part)
        small = {"title": said or None, "title_fontproperties": {"size": 6.5}}
        fig.legend(handles, names, loc="outside lower center", ncols=4, borderaxespad=2.4, columnspacing=1.4, **small)
    return fig, pd.concat([bars.assign(panel=title) for title, bars in drawn], ignore_index=True)


def _panel(ax: Axes, title: str, bars: pd.DataFrame) -> None:
    unit, ms = _unit(bars)
    bars = bars.assign(**{name: bars[name] / ms for name in (*GROUPS, "ttft_ms", "low", "high")})
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
    ax.set_xlim(0, 1.02 * max(widest, bars["high"].max() if bars["high"].notna().any() else 0.0))
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"{unit} to the first token")
    kept = "budget that its\nscore points to" if quoted else "tokens that enter\n(mean over layers)"
    across = ax.get_yaxis_transform()
    ax.text(-0.015, -0.95, kept, transform=across, ha="right", va="center", fontsize=6.5, color=MUTED)
    ax.set_title(title)


def _columns(ax: Axes, bars: pd.DataFrame, ylim: tuple[float | int, float | int]) -> None:
    """Beside the bars, as in the paper: TTFT with the speed-up, decode rate, and the printed score."""
    ax.axis("off")
    ax.set(xlim=(0, 1), ylim=ylim)
    unit, ms = _unit(bars)
    quoted = bars["source"].iloc[0] == "quoted"
    heads = (
        f"TTFT {unit}\n(speed-up)",
        f"decode tok/s\n{'' if quoted else '(quartiles)'}",
        "score" if any(bars["score"]) else "",
    )
    for x, head in zip(PLACES, heads, strict=True):
        ax.text(x, -0.95, head, ha="right", va="center", fontsize=6.5, color=MUTED)
    for place, row in enumerate(bars.itertuples()):
        rate = f"{row.decode_tok_s:.1f}" if quoted else _rate(row)
        weight = "bold" if row.method.startswith("HoliTom") else "normal"
        texts = f"{_short(row.ttft_ms / ms)} ({row.speedup:.2f}x)", rate, row.score
        for x, text in zip(PLACES, texts, strict=True):
            ax.text(x, place, text, ha="right", va="center", fontsize=7, weight=weight)


def _rate(row: Any) -> str:
    """A measured decode rate with its quartiles, to the digits that its passes share: whole tokens, two digits when
    slow; no quartiles where these digits are alike."""
    if pd.isna(row.decode_tok_s):
        return "-"
    middle, low, high = (
        f"{v:.0f}" if v >= 10 else f"{v:.2g}" for v in (row.decode_tok_s, row.decode_low, row.decode_high)
    )
    return middle if low == middle == high else f"{middle} ({low}–{high})"


def measured_order(method: str) -> int:
    """The place of a row: the full model first, HoliTom last."""
    return ORDER.index(method) if method in ORDER else len(ORDER)


def _ordered(bars: pd.DataFrame) -> pd.DataFrame:
    return bars.sort_values("method", key=lambda names: names.map(measured_order)).reset_index(drop=True)


def _unit(bars: pd.DataFrame) -> tuple[str, int]:
    """In which unit a panel's times read best, and how many ms that is."""
    return ("s", 1000) if bars["ttft_ms"].max() > 10_000 else ("ms", 1)


def _short(value: float | int) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
