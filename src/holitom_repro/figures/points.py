"""From printed numbers and measured scores to the points of each figure, every one with its source and its interval."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from holitom_repro import paper
from holitom_repro.figures.style import ALIASES
from holitom_repro.scores import AVERAGE, with_average
from holitom_repro.tables.lines import tasks

NOWHERE = math.nan
"""The x of a row that is drawn as a line across the panel."""


def quoted_tradeoff() -> pd.DataFrame:
    """Table 1's averages over FLOPs %, as the paper's teaser draws them."""
    printed = paper.tradeoff()
    x = printed["flops_pct"].where(printed["method"] != "Vanilla")
    return _points(printed["method"], x, printed["avg"], source="quoted")


def measured_tradeoff(scores: pd.DataFrame, tier: str) -> pd.DataFrame:
    """Averages over the FLOPs % of the measured rows. Rows with swapped saliency and saliency bottom-k stay in Table
    1."""
    mean = _average(scores, tier)
    mean = mean[(mean["saliency"] == "own") & (mean["row"] != "Saliency bottom-k")]
    return _measured(mean, mean["row"], mean["flops_pct"].where(mean["row"] != "Vanilla"))


def quoted_inner() -> pd.DataFrame:
    """Both sweeps of the inner-merging ablation, as labelled there."""
    printed = paper.table("fig_inner")
    x = printed["layer"].where(printed["sweep"] == "K", printed["ratio"])
    return _points(printed["method"], x, printed["avg"], source="quoted").assign(sweep=printed["sweep"].to_numpy())


def measured_inner(scores: pd.DataFrame, tier: str) -> tuple[pd.DataFrame, int]:
    """The same sweeps as measured, and the layer of the r sweep: the one at which several ratios were run.

    Merging is HoliTom, dropping at the same place is FastV; the outer stage alone and all tokens are lines across.
    """
    mean = _average(scores, tier)
    inner = mean[mean["layer"].notna()]
    middle = int(inner.groupby("layer")["ratio"].nunique().idxmax())
    parts = []
    for sweep, part, x in (
        ("K", inner[inner["ratio"] == 0.5], "layer"),
        ("R", inner[inner["layer"] == middle], "ratio"),
    ):
        parts.append(_measured(part, part["row"], part[x]).assign(sweep=sweep))
    outer = mean[mean["layer"].isna()]
    parts.append(_measured(outer, outer["row"], [NOWHERE] * len(outer)).assign(sweep=""))
    return pd.concat(parts, ignore_index=True), middle


def quoted_frames() -> pd.DataFrame:
    """The more-frames figure; a value read off the axis has the reading error as its interval."""
    printed = paper.table("fig_frames")
    points = _points(printed["method"], printed["frames"], printed["avg"], source="quoted")
    error = printed["uncertainty"].where(printed["uncertainty"] > 0)
    return points.assign(low=points["y"] - error, high=points["y"] + error)


def measured_frames(scores: pd.DataFrame, tier: str, benchmark: str = AVERAGE) -> pd.DataFrame:
    """Scores over frames, averaged over the benchmarks or on one of them."""
    part = _average(scores, tier) if benchmark == AVERAGE else scores[scores["benchmark"] == benchmark]
    return _measured(part, part["row"], part["frames"])


def longest_training(model: str) -> int:
    """The most frames of a clip that a shipped tiny model was trained on."""
    from holitom_repro.tiny.recipes import RECIPES

    return max(phase.frames for _, lessons in RECIPES[model].lessons for phase in lessons.phases)


def _average(scores: pd.DataFrame, tier: str) -> pd.DataFrame:
    found = with_average(scores, tasks(tier).values())
    return found[found["benchmark"] == AVERAGE]


def _measured(part: pd.DataFrame, methods: Iterable[str], x: Iterable[Any]) -> pd.DataFrame:
    points = _points(methods, x, part["value"], source="measured")
    return points.assign(low=part["low"].to_numpy(), high=part["high"].to_numpy(), n=part["n"].to_numpy())


def _points(methods: Iterable[str], x: Iterable[Any], y: Iterable[Any], source: str) -> pd.DataFrame:
    names = [ALIASES.get(name, name) for name in methods]
    points = pd.DataFrame({"method": names, "x": list(x), "y": list(y), "low": NOWHERE, "high": NOWHERE})
    return points.astype({"x": float, "y": float}).assign(source=source)
