"""Frames that several notebooks show, each with its headings: the plan, the full model, paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from holitom_repro import paths
from holitom_repro.describing import settings
from holitom_repro.figures.saving import Saved
from holitom_repro.scores import BASELINE
from holitom_repro.tables.parts import Text
from holitom_repro.tables.plain import (
    Format,
    Plain,
    difference,
    estimate,
    figures,
    name,
    number,
    p_value,
    percent,
    plain,
    scored,
    words,
)

if TYPE_CHECKING:
    from holitom_repro.evaluation.cells import Cell


TYPES = {
    "color": "colour of a shape",
    "shape": "shape of a colour",
    "count": "number of shapes",
    "order": "which shape was first or last",
    "where": "place of a shape",
    "motion": "direction of a shape",
    "change": "colour that a shape becomes",
    "scenes": "number of scenes",
    "scene_of": "scene of a shape",
    "needle": "colour of the star",
    "needle_scene": "scene of the star",
}
"""The tiny tier's types of question, in words; its star is seen for a moment only."""


def type_name(kind: str) -> str:
    """A type of question in words; other benchmarks' types by their own names."""
    return TYPES.get(kind, str(kind).replace("_", " "))


def plan_table(cells: Sequence[Cell]) -> Plain:
    """Every row of a sweep with its setting, by model."""
    found = settings(cells)
    names = ", ".join(dict.fromkeys(cell.benchmark for cell in cells))
    caption = f"{len(cells)} cells on {names}. Of a stage, only what differs from its defaults is said."
    columns = {
        "row": ("row", name),
        "setting": ("stages", words),
        "budgets": ("asked (%)", figures),
        "frames": ("frames", figures),
        "cells": ("cells", number()),
    }
    several = found["model"].nunique() > 1
    return plain(found, columns, caption=caption, groups="model" if several else "")


def full_model(scores: pd.DataFrame) -> Plain:
    """The unreduced model on every benchmark. scores: ``scores.score_frame``."""
    columns = {
        "model": ("model", words),
        "benchmark": ("benchmark", words),
        "frames": ("frames", number()),
        ("value", "low", "high"): ("accuracy (%) [95 % interval]", estimate),
        "n": ("questions", number()),
    }
    return plain(scores[scores["row"] == BASELINE], columns, lines="model")


def paired(frame: pd.DataFrame, at: tuple[str, Format] = ("asked", percent)) -> Plain:
    """``comparing.compare``'s lines: one row minus another on the same questions. at: heading and format of what the
    two have in common."""
    columns: dict[str | tuple[str, ...], tuple[str, Format]] = {
        "model": ("model", words),
        "at": at,
        "a": ("this row", name),
        "b": ("minus this one", words),
        ("diff", "diff_low", "diff_high"): ("difference (points) [95 % interval]", difference),
        "p_holm": ("p (Holm)", p_value),
        "changed": ("answers that differ", number()),
    }
    caption = (
        "Mean accuracy over the benchmarks, paired on the same questions, intervals clustered by video; bold where 0 "
        "is outside. p: sign flips of whole videos, corrected by Holm for all lines of this table."
    )
    return plain(frame, columns, caption=caption, lines="b")


def written(saved: Iterable[Saved]) -> str:
    """Where files were written: a folder of this checkout and the names in it."""
    files = [path for one in saved for path in (one.png, one.svg, one.csv) if path is not None]
    folder = files[0].parent
    names = list(dict.fromkeys(path.stem for path in files))
    whole = [f"{stem}.md" for stem in names if (folder / f"{stem}.md").is_file()]
    whole += [path.name for path in files if path.suffix == ".csv"]
    shown = folder.relative_to(paths.root()) if folder.is_relative_to(paths.root()) else folder
    return f"in {shown}: {', '.join(whole)}\nas .png and .svg: {', '.join(names)}"


def by_model(mean: pd.DataFrame) -> Plain:
    """A row's difference to all tokens on every model side by side. mean: ``scores.averages``."""
    found = mean[mean["row"] != BASELINE]
    asked = [f" at {100 * share:.3g} %" if share < 1 else "" for share in found["budget"]]
    found = found.assign(row=[row + share for row, share in zip(found["row"], asked, strict=True)])
    parts = []
    for model, lines in found.groupby("model", sort=False):
        lines = lines.set_index("row")[["diff", "diff_low", "diff_high"]]
        parts.append(lines.set_axis([f"{model} {column}" for column in lines.columns], axis=1))
    frame = pd.concat(parts, axis=1).rename_axis("row").reset_index()
    columns: dict[str | tuple[str, ...], Any] = {"row": ("row", words)}
    for model in found["model"].unique():
        place = tuple(f"{model} {column}" for column in ("diff", "diff_low", "diff_high"))
        columns[place] = (f"mean over the benchmarks | {model}", difference)
    caption = "Difference to all tokens of the same model in points, with 95 % interval; bold where 0 is outside."
    return plain(frame, columns, caption=caption)


def losses(types: pd.DataFrame) -> Plain:
    """What each type of question loses. types: ``scores.by_type`` with the full model first."""
    full, *others = [column for column in types.columns if column != "questions"]
    frame = types.assign(type=[type_name(kind) for kind in types.index])
    frame = frame.assign(**{other: types[other] - types[full] for other in others})
    columns: dict[str | tuple[str, ...], Any] = {"type": ("type of question", words), full: (f"{full} (%)", number(1))}
    for other in others:
        row, _, share = other.rpartition(" at ")
        columns |= {other: (f"{row}, change in points | {share}", number(1, sign=True))}
    columns |= {"questions": ("questions", number())}
    return plain(frame, columns, caption="Points: difference to the first column. One answer of n is 100/n points.")


def curves(points: pd.DataFrame) -> Plain:
    """A line per method, its points from the dearest to the cheapest: score, its interval, and below it what it
    costs. points: ``figures.points.measured_tradeoff``."""
    lines: dict[str, dict[str, Any]] = {}
    for method, found in points.sort_values("x", ascending=False).groupby("method", sort=False):
        cells = [_point(point) for point in found.to_dict("records")]
        lines[str(method)] = {"method": method} | {str(place): cell for place, cell in enumerate(cells, 1)}
    most = max(len(line) for line in lines.values())
    columns: dict[str | tuple[str, ...], Any] = {"method": ("method", name)}
    over = "average accuracy (%), and its FLOPs in % of all tokens'"
    columns |= {str(place): (f"{over} | {_nth(place)}", lambda cell: cell) for place in range(1, most)}
    counts = sorted({int(n) for n in points["n"]})
    caption = f"Square brackets: 95 % intervals; n = {' to '.join(map(str, counts))} questions per point."
    frame = pd.DataFrame([lines[method] for method in dict.fromkeys(points["method"])])
    return plain(frame, columns, caption=caption)


def _nth(place: int) -> str:
    return {1: "dearest", 2: "2nd", 3: "3rd"}.get(place, f"{place}th")


def _point(point: dict[str, Any]) -> Text:
    cost = "" if pd.isna(point["x"]) else f"{point['x']:.1f} % FLOPs"
    return scored(point["y"], point["low"], point["high"], second=cost)
