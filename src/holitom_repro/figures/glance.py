"""What is reproduced, at a glance: every claim with its verdict, in groups that say how it can be judged."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from holitom_repro.claims.groups import GROUPS, group_of
from holitom_repro.claims.judging import Judged
from holitom.errors import BadUsage
from holitom_repro.figures.style import DOUBLE, INK, MUTED, styled

LOOKS = {
    "REPRODUCED": ("✓ reproduced", "#1B7F4B", "", "white"),
    "WITHIN NOISE": ("≈ within noise", "#E9B44C", "", INK),
    "NOT REPRODUCED": ("✗ not reproduced", "#B3261E", "", "white"),
    "NOT RUN": ("– not run", "#D9D9D9", "....", INK),
    "QUOTED": ("quoted, not checked", "#FFFFFF", "////", INK),
}
"""Verdict -> its name in the legend, colour, hatch, and the colour of the number on it."""
NARROW = 0.055
"""A part with less than this share of its bar has its number above it: its own width is too small for it."""
HIGH = 0.64


def counted(judged: Sequence[Judged]) -> pd.DataFrame:
    """How many claims of each group have which verdict: group, verdict, n, source."""
    lines = [(group_of(claim), str(claim.verdict), claim.source) for claim in judged]
    frame = pd.DataFrame(lines, columns=["group", "verdict", "source"])
    return frame.groupby(["group", "verdict", "source"]).size().rename("n").reset_index()


def glance_figure(judged: Sequence[Judged]) -> tuple[Figure, pd.DataFrame]:
    """One bar per group, as long for few claims as for many, its parts true to their numbers. BadUsage without a
    claim."""
    data = counted(judged)
    if data.empty:
        raise BadUsage("there is no claim to draw", fix="pass what verdicts.everything(tier) returns")
    groups = [group for group in GROUPS if group in set(data["group"])]
    with styled():
        fig = Figure(figsize=(DOUBLE, 0.75 + 0.34 * len(groups)), layout="constrained")
        ax = fig.add_subplot()
        for place, group in enumerate(groups):
            _bar(ax, place, data[data["group"] == group].groupby("verdict")["n"].sum())
            ax.text(1.02, place, GROUPS[group], va="center", fontsize=7, color=MUTED)
        ax.set(xlim=(0, 1), ylim=(len(groups) - 0.4, -0.6), xticks=[])
        ax.set_yticks(range(len(groups)), groups)
        ax.tick_params(axis="y", length=0)
        ax.grid(visible=False)
        for spine in ax.spines.values():
            spine.set_visible(False)
        seen = [word for word in LOOKS if word in set(data["verdict"])]
        key = {"loc": "upper center", "bbox_to_anchor": (0.62, 0.0), "ncols": len(seen), "columnspacing": 1.2}
        ax.legend(handles=[_patch(word) for word in seen], **key)
    return fig, data


def _bar(ax: Axes, place: int, counts: pd.Series) -> None:
    there = [word for word in LOOKS if counts.get(word, 0)]
    left, narrow = 0.0, []
    for word in there:
        name, colour, hatch, ink = LOOKS[word]
        wide = float(counts[word] / counts.sum())
        look = {"facecolor": colour, "edgecolor": "#9A9A9A", "hatch": hatch, "linewidth": 0.6}
        ax.barh(place, wide, left=left, height=HIGH, **look)
        glyph = "" if name[0].isalpha() else f"{name[0]} "  # never by colour alone
        said = f"{glyph}{counts[word]}"
        if wide < NARROW:
            narrow.append((left, left + wide, said))
        else:
            box = {"boxstyle": "round,pad=0.15", "facecolor": colour, "edgecolor": "none"} if hatch else None
            ax.text(left + wide / 2, place, said, ha="center", va="center", fontsize=7.5, color=ink, bbox=box)
        left += wide
    if narrow:
        middle, numbers = (narrow[0][0] + narrow[-1][1]) / 2, ", ".join(said for *_, said in narrow)
        there_is_room = 0.1 < middle < 0.9
        x, side = (middle, "center") if there_is_room else (1.0, "right") if middle > 0.5 else (0.0, "left")
        ax.text(x, place - HIGH / 2, numbers, ha=side, va="bottom", fontsize=6.5, color=INK)


def _patch(word: str) -> Patch:
    name, colour, hatch, _ = LOOKS[word]
    return Patch(facecolor=colour, hatch=hatch, edgecolor="#9A9A9A", label=name, linewidth=0.6)
