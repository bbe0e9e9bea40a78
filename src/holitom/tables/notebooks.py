"""Frames that several notebooks show, each with its headings: the plan, the full model, paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from holitom import paths
from holitom.describing import settings
from holitom.figures.saving import Saved
from holitom.scores import BASELINE
from holitom.tables.plain import Plain, difference, estimate, figures, name, number, p_value, percent, plain, words

if TYPE_CHECKING:
    from holitom.evaluation.cells import Cell


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


def paired(frame: pd.DataFrame) -> Plain:
    """``comparing.compare``'s lines: one row minus another on the same questions."""
    columns = {
        "model": ("model", words),
        "budget": ("asked", percent),
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
    names = dict.fromkeys(path.stem for path in files)
    texts = [f"{stem}.md" for stem in names if (folder / f"{stem}.md").is_file()]
    tables = [path.name for path in files if path.suffix == ".csv"]
    shown = folder.relative_to(paths.root()) if folder.is_relative_to(paths.root()) else folder
    return f"written to {shown}: {', '.join([*texts, *tables, *(f'{stem}.png, .svg' for stem in names)])}"
