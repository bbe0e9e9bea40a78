"""Two settings on the same questions: the difference of their average scores, paired, clustered by video, corrected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from holitom_repro import paths
from holitom.errors import BadUsage
from holitom_repro.evaluation.cells import Cell, load_samples
from holitom_repro.evaluation.statistics import Estimate, paired_difference

Answers = dict[tuple[str, Any], tuple[float, str]]
"""(benchmark, question) -> right or wrong, and the video it is about."""


def compare(
    cells: Sequence[Cell],
    tier: str,
    pairs: Iterable[tuple[str, str]],
    *,
    runs: Path | None = None,
    samples: Callable[[Cell], list[dict[str, Any]]] | None = None,
    at: Callable[[Cell], Any] = lambda cell: cell.reduction.budget,
) -> pd.DataFrame:
    """Each pair of rows (a, b) on every model where both were measured ``at`` the same, by default the same budget:
    score of a minus score of b in points with its interval, p, p corrected for all comparisons of the table, and how
    many answers differ. The column "at" holds what they share."""
    read = samples or (lambda cell: load_samples(cell, tier, runs=runs or paths.runs()))
    rows = []
    for a, b in pairs:
        for model, common in dict.fromkeys((cell.model, at(cell)) for cell in cells if cell.row == a):
            mine = [cell for cell in cells if cell.model == model and cell.row in (a, b) and at(cell) == common]
            sides = [[cell for cell in mine if cell.row == row] for row in (a, b)]
            if not all(sides):
                continue
            names = list(dict.fromkeys(cell.benchmark for cell in sides[0]))
            found = difference(answers(sides[0], read), answers(sides[1], read), names)
            keep = {name: found[name] for name in ("diff", "diff_low", "diff_high", "p", "changed", "videos")}
            rows.append({"model": model, "at": common, "a": a, "b": b} | keep)
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p"].tolist())) if rows else table


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: below a level together, they hold the chance of any false alarm below it."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def answers(cells: Iterable[Cell], read: Callable[[Cell], list[dict[str, Any]]]) -> Answers:
    """All answers of a setting's cells; read: gives the per-question log of a cell."""
    return {
        (cell.benchmark, (s.get("task", ""), s["doc_id"])): (float(s["correct"]), f"{cell.benchmark}/{s['video']}")
        for cell in cells
        for s in read(cell)
    }


def difference(mine: Answers, base: Answers, names: Sequence[str]) -> dict[str, Any]:
    """Average score of ``mine`` minus that of ``base`` (diff, diff_low, diff_high, p; every benchmark counts the same,
    however many questions it has), the same per benchmark under its name, how many answers changed, and the videos.
    BadUsage when the two answered different questions."""
    if set(mine) != set(base):
        raise BadUsage("two settings answered different questions", fix="run all of them with the same limit")
    counts = {name: sum(benchmark == name for benchmark, _ in base) for name in names}
    weight = {name: len(base) / (len(names) * counts[name]) for name in names}
    whole = _paired(mine, base, list(base), weight)
    found: dict[str, Any] = {"diff": whole.value, "diff_low": whole.low, "diff_high": whole.high, "p": whole.p}
    found |= {"changed": sum(mine[q][0] != base[q][0] for q in base), "videos": whole.groups}
    for name in names:
        one = _paired(mine, base, [question for question in base if question[0] == name], {name: 1.0})
        found |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
    return found


def _paired(mine: Answers, base: Answers, questions: list[tuple[str, Any]], weight: dict[str, float]) -> Estimate:
    scale = [weight[name] for name, _ in questions]
    a = [w * mine[question][0] for w, question in zip(scale, questions, strict=True)]
    b = [w * base[question][0] for w, question in zip(scale, questions, strict=True)]
    return paired_difference(a, b, [base[question][1] for question in questions])
