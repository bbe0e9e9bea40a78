"""The share of each stage in the time to the first token, a bar per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from holitom_repro.figures.inference import ORDER, kept_share
from holitom_repro.figures.series import baseline_name
from holitom_repro.figures.style import DOUBLE, INK, require_sources, styled

STAGE_LOOKS = {
    "vision_tower": ("vision tower", "#8FB8DE"),
    "saliency": ("saliency", "#CC78BC"),
    "projector": ("projector, pooling", "#F5DE8A"),
    "outer": ("outer reduction", "#DE8F05"),
    "splice": ("splice (builds the prompt)", "#C9C9C9"),
    "prefill": ("prefill", "#5B8E7D"),
    "inner": ("inner stage", "#D55E00"),
    "first_token": ("first token", "#30638E"),
}
ADDED = {"saliency": "////", "outer": "....", "inner": "\\\\\\\\"}
"""Stages that only a reduction has -> their hatch; each has its own, for their greys are alike."""


def stage_frame(records: Sequence[Mapping[str, Any]], at: str) -> pd.DataFrame:
    """One row per setting and stage: median ms and share of the sum of the stages."""
    rows = []
    for record in records:
        if record["part"] != "rows" or record["outcome"] != "measured" or record["at"] not in (at, "all tokens"):
            continue
        stages = {name: part["median"] for name, part in record["summary"]["stages_ms"].items()}
        whole = sum(stages.values())
        rows += [
            {
                "method": record["row"],
                "at": kept_share(record),
                "stage": name,
                "ms": ms,
                "share": 100 * ms / whole,
                "source": "measured",
            }
            for name, ms in stages.items()
        ]
    return pd.DataFrame(rows)


def stages_figure(stages: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Share of each stage in the time to the first token, a bar per method. stages: as from ``stage_frame``."""
    stages = require_sources(stages)
    methods = [name for name in ORDER if name in set(stages["method"])]
    with styled():
        fig = Figure(figsize=(DOUBLE, 0.3 * len(methods) + 1.5), layout="constrained")
        ax = fig.subplots()
        for place, method in enumerate(methods):
            _bar(ax, place, stages[stages["method"] == method].set_index("stage")["share"])
        kept = stages.drop_duplicates("method").set_index("method")["at"]
        ax.set_yticks(range(len(methods)), [f"{baseline_name(name)}, {kept[name]}" for name in methods])
        ax.set_ylim(len(methods) - 0.5, -0.5)
        ax.set_xlim(0, 100)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("share of the time to the first token (%); hatched: what only a reduction adds")
        handles = [
            Patch(facecolor=colour, edgecolor="white", lw=0, hatch=ADDED.get(name, ""))
            for name, (_, colour) in STAGE_LOOKS.items()
        ]
        names = [name for name, _ in STAGE_LOOKS.values()]
        fig.legend(handles, names, loc="outside lower center", ncols=4, borderaxespad=2.4, columnspacing=1.2)
    return fig, stages


def _bar(ax: Axes, place: int, shares: pd.Series) -> None:
    left = 0.0
    for stage, (_, colour) in STAGE_LOOKS.items():
        width = float(shares[stage])
        ax.barh(
            place, width, left=left, height=0.7, color=colour, hatch=ADDED.get(stage, ""), edgecolor="white", lw=0.4
        )
        if width > 4:
            rim = [withStroke(linewidth=2, foreground=colour)]  # no hatch behind a number
            middle = left + width / 2
            ax.text(middle, place, f"{width:.0f}", ha="center", va="center", fontsize=6.5, color=INK, path_effects=rim)
        left += width
