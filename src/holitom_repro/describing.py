"""A setting in one line, for readers: which stages, at which budget, and only what differs from their defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from holitom.types import Reduction

if TYPE_CHECKING:
    from holitom_repro.evaluation.cells import Cell

ALWAYS = {"layer", "ratio"}
"""Fields that are said in any case: where a stage inside the language model acts, and what it removes."""


def in_words(reduction: Reduction, *, budget: bool = True) -> str:
    """``HoliTom(tau 0.65) at 10 %, inside: HoliTomMerge(layer 4, ratio 0.5)``; "all tokens" where nothing is reduced.

    budget False: without the share, for a table that has it in a column of its own.
    """
    parts = []
    if reduction.outer is not None:
        parts.append(stage(reduction.outer) + (f" at {100 * reduction.budget:.3g} %" if budget else ""))
    if reduction.inner:
        parts.append(f"inside: {_in_turn(reduction.inner)}")
    if reduction.decode is not None:
        parts.append(f"while generating: {stage(reduction.decode)}")
    return ", ".join(parts) or "all tokens"


def stage(made: Any) -> str:
    """A stage as its class, where it acts, and the fields that the class does not set by itself."""
    told = []
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if value != default or field.name in ALWAYS:
            told.append(f"{field.name} {_short(value)}")
    return type(made).__name__ + (f"({', '.join(told)})" if told else "")


def settings(cells: Iterable[Cell]) -> pd.DataFrame:
    """What a sweep runs, a line for each row, model and setting inside it: row, model, frames and budgets (all that
    occur, the budgets in per cent as asked), setting (``in_words`` without the budget), cells (how many)."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.row, cell.model, in_words(cell.reduction, budget=False)), []).append(cell)
    lines = []
    first = {(row, model): place for place, (row, model, _) in reversed(list(enumerate(groups)))}
    for (row, model, setting), mine in sorted(groups.items(), key=lambda group: first[group[0][:2]]):
        budgets = sorted({cell.reduction.budget for cell in mine}, reverse=True)
        frames = sorted({cell.frames for cell in mine})
        asked, seen = (", ".join(f"{100 * one:.3g}" for one in budgets), ", ".join(map(str, frames)))
        lines.append({"row": row, "model": model, "setting": setting, "budgets": asked, "frames": seen})
        lines[-1] |= {"cells": len(mine)}
    return pd.DataFrame(lines)


def _in_turn(stages: Sequence[Any]) -> str:
    """Stages of one class say its name once."""
    texts = []
    for number, one in enumerate(stages):
        again = number and type(stages[number - 1]) is type(one)
        texts.append(stage(one).removeprefix(type(one).__name__) if again else stage(one))
    return ", ".join(texts)


def _short(value: Any) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return stage(value)
    if isinstance(value, (tuple, list)):
        return "[" + " ".join(_short(one) for one in value) + "]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
