"""Synthetic cells, records and per-question logs: what tables and figures are drawn from, without a model."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from holitom.budgets import TokenBudget
from holitom_repro.evaluation.cells import Cell
from holitom_repro.evaluation.statistics import interval
from holitom_repro.experiments.grids import cells
from holitom_repro.results import Record

QUESTIONS = 60
PROVENANCE = {"cpu": "a processor", "cores": 2, "gpu": None, "git": {"commit": "0123456789abcdef", "dirty": False}}


@dataclass(frozen=True)
class Made:
    """An experiment as if it had been run."""

    cells: list[Cell]
    records: list[Record]
    samples: Callable[[Cell], list[dict[str, Any]]]


def answers(cell: Cell) -> list[dict[str, Any]]:
    """The same questions for every setting of a model; a lower budget loses more of them."""
    share = 0.9 if cell.row == "Vanilla" else 0.9 - 0.4 * (1 - cell.reduction.budget) ** 4
    easy = random.Random(f"{cell.model} {cell.benchmark} {cell.frames}")
    rows = [{"doc_id": i, "task": cell.benchmark, "video": f"v{i // 3}"} for i in range(QUESTIONS)]
    return [row | {"correct": float(easy.random() < share)} for row in rows]


def budget(cell: Cell, kept: float) -> TokenBudget:
    """Exactly what was asked for."""
    share, whole = cell.reduction.budget, 16.0 * cell.frames
    before = {"asked_share": share, "asked_tokens": kept, "full_tokens": whole, "full_newlines": 1.0}
    spent = {"kept_tokens": kept, "kept_newlines": 1.0, "layer_tokens": kept, "layer_newlines": 1.0}
    return TokenBudget(**before, **spent, frames=cell.frames, off_per_frame=0.0, farthest_off=0.0)


def record(cell: Cell) -> Record:
    logged = answers(cell)
    score = interval([s["correct"] for s in logged], [s["video"] for s in logged])
    kept = 16.0 * cell.frames * cell.reduction.budget
    return Record(
        value=score.value,
        low=score.low,
        high=score.high,
        n=len(logged),
        unit="points",
        metric="accuracy",
        experiment=cell.experiment,
        row=cell.row,
        tier="tiny",
        source="measured",
        method=cell.reduction.describe(),
        realised_tokens=kept,
        tokens_per_layer=(kept,) * 6,
        budget=budget(cell, kept),
        model=cell.model,
        benchmark=cell.benchmark,
        frames=cell.frames,
        provenance=PROVENANCE,
        extra={
            "flops_paper": kept**1.1,
            "limit": cell.limit,
            "by_type": {"color": 50.0},
            "questions_by_type": {"color": 60},
        },
    )


@pytest.fixture(scope="session")
def made() -> Callable[[str], Made]:
    """made("table1"): the cells of an experiment with synthetic records."""

    def build(name: str, limit: int | None = None) -> Made:
        plan = [replace(cell, limit=limit) for cell in cells(name, "tiny")]
        return Made(plan, [record(cell) for cell in plan], answers)

    return build
