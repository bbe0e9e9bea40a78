"""The baseline gate: the unreduced model must score what the paper prints for it, before a method is measured.

Where it does not, decoder, scorer or checkpoint differ from the paper's, and every score of a method would differ by
that much too; only shares of the full model would still mean something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from holitom_repro import paper, paths
from holitom_repro.claims.judging import SCORE_TOLERANCE, Verdict, judge_score
from holitom.errors import CannotRun
from holitom_repro.evaluation.cells import Cell
from holitom_repro.results import Record

FRAMES = {"ov-7b": 32, "ov-72b": 32, "video-7b": 64}
"""Frames at which the papers print each model's own score."""


@dataclass(frozen=True)
class Baseline:
    """One unreduced score. printed: the paper's, None where it prints none for these questions; reason: in words."""

    cell: Cell
    column: str
    printed: float | None
    value: float
    verdict: Verdict
    reason: str


def baselines(cells: Sequence[Cell]) -> list[Cell]:
    """Those of ``cells`` that a printed score of an unreduced model belongs to, each once."""
    found = {}
    for cell in cells:
        setting = cell.reduction
        full = setting.outer is None and not setting.inner and setting.decode is None and cell.saliency == "own"
        if full and FRAMES.get(cell.model) == cell.frames and cell.benchmark in paper.TASKS.values():
            found.setdefault((cell.model, cell.benchmark), cell)
    return list(found.values())


def judge(cells: Sequence[Cell], records: Sequence[Record]) -> list[Baseline]:
    """Every baseline against print: off is NOT REPRODUCED, more than SCORE_TOLERANCE points away and with the printed
    score outside its 95 % interval. EgoSchema is QUOTED: the print is of other questions. NOT RUN: only the first
    questions of a benchmark were asked, which are no sample of it."""
    columns = {task: column for column, task in paper.TASKS.items()}
    judged = []
    for cell, record in zip(cells, records, strict=True):
        column = columns[cell.benchmark]
        printed = _printed(cell.model, column)
        if printed is None:
            verdict, reason = Verdict.QUOTED, "no score is printed"
        elif column in paper.OTHER_QUESTIONS:
            verdict, reason = Verdict.QUOTED, paper.OTHER_QUESTIONS[column]
        elif cell.limit is not None:
            verdict, reason = Verdict.NOT_RUN, f"only the first {cell.limit} questions were asked"
        else:
            verdict, reason = judge_score(record, printed)
        judged.append(Baseline(cell, column, printed, record.value, verdict, reason))
    return judged


def require(judged: Sequence[Baseline]) -> None:
    """CannotRun when a baseline is off, with what is known to explain it."""
    off = [one for one in judged if one.verdict is Verdict.NOT_REPRODUCED]
    if off:
        raise CannotRun(
            "\n".join(
                ["the unreduced model is off the printed baseline, so scores of methods would be too:", *told(off)]
            ),
            fix="find the reason among the above, or go on and compare shares of the full model only: --no-gate",
        )


def told(off: Sequence[Baseline]) -> list[str]:
    """What is off, and for each what others measured and which causes are known."""
    lines = []
    for one in off:
        lines.append(f"  {paper.MODELS[one.cell.model]}, {paper.BENCHMARKS[one.column]}: {one.reason}")
        for found in offsets(one.cell.model, one.column):
            lines.append(f"    others measured {found['value']:g} ({found['setting']}; {found['source']})")
    columns = {one.column for one in off}
    lines.append(f"  known causes (tolerance {SCORE_TOLERANCE:g} points, or the 95 % interval):")
    for cause in _known()["causes"]:
        if columns & set(cause["benchmarks"]):
            lines.append(f"    {cause['what']}: {cause['why']} ({cause['source']})")
    return lines


def offsets(model: str, column: str) -> list[dict[str, Any]]:
    """What others measured for this unreduced model on this benchmark."""
    return [one for one in _known()["measured"] if (one["model"], one["benchmark"]) == (model, column)]


def _printed(model: str, column: str) -> float | None:
    for name in ("table1", "table2"):
        scores = paper.scores(name)
        own = scores[(scores["model"] == model) & (scores["method"] == "Vanilla") & (scores["benchmark"] == column)]
        if len(own):
            return float(own.iloc[0]["score"])
    return None


@cache
def _known() -> dict[str, Any]:
    return yaml.safe_load(paths.data("papers", "known_offsets.yaml").read_text(encoding="utf-8"))
