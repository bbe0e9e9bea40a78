"""Measured cells in the shape that tables and figures need: one row per setting and benchmark, paired with the full
model.

A difference to the full model is taken question by question on the same model, benchmark and frames, and its interval
is clustered by video. Only a row of fewer frames is compared with the full model at the most frames there are. The
average over benchmarks is the mean of their scores, as in the papers, not of their questions.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from holitom_repro import paths
from holitom.budgets import TokenBudget
from holitom.errors import BadUsage
from holitom_repro.evaluation.cells import Cell, load_samples
from holitom_repro.evaluation.statistics import paired_difference
from holitom_repro.results import Record

BASELINE = "Vanilla"
AVERAGE = "average"
FEWER_FRAMES = "Fewer frames"
"""The row of a control: all tokens of fewer frames."""
SHARES = ("kept_pct", "newline_pct", "layer_pct", "off_per_frame", "flops_pct")
Samples = Callable[[Cell], list[dict[str, Any]]]
_SETTING = ["row", "model", "budget", "layer", "ratio", "saliency", "frames", "setting"]


def score_frame(
    cells: Sequence[Cell],
    records: Sequence[Record],
    tier: str,
    *,
    runs: Path | None = None,
    samples: Samples | None = None,
) -> pd.DataFrame:
    """One row per cell: its labels, value with low and high, difference to the full model (diff, diff_low, diff_high,
    p), and what it spent. spent: the record's TokenBudget, and of it in per cent of the whole video's tokens what
    enters the language model (kept_pct), the same with newline tokens (newline_pct), the average over the layers
    (layer_pct), and off_per_frame, tokens per frame kept beyond what was asked; flops_pct: FLOPs by the papers'
    formula, in per cent of the full model's. NaN and None in records that do not tell.

    records: what ``run_cells(cells, tier)`` returned, in that order. samples: gives the per-question log of a cell
    (default: from ``runs``). BadUsage when the two do not belong together.
    """
    if len(cells) != len(records):
        raise BadUsage(
            f"{len(cells)} cells but {len(records)} records", fix="pass what run_cells returned for these cells"
        )
    read = samples or (lambda cell: load_samples(cell, tier, runs=runs or paths.runs()))
    full = {_where(c): (c, r) for c, r in zip(cells, records, strict=True) if c.row == BASELINE}
    most = {_place(c): (c, r) for c, r in sorted(full.values(), key=lambda pair: pair[0].frames)}
    rows = []
    for cell, record in zip(cells, records, strict=True):
        fewer = cell.row == FEWER_FRAMES
        base = most.get(_place(cell)) if fewer else full.get(_where(cell))
        row = _labels(cell) | {
            "benchmark": cell.benchmark,
            "value": record.value,
            "low": record.low,
            "high": record.high,
            "n": record.n,
            **dict.fromkeys(SHARES, math.nan),
            "spent": None,
            "source": record.source,
            "tier": record.tier,
            "diff": math.nan,
            "diff_low": math.nan,
            "diff_high": math.nan,
            "p": math.nan,
        }
        if base is not None:
            if fewer:
                row["budget"] = cell.frames / base[0].frames
            row |= _spent(record, base[1], row["budget"] if fewer else None)
            if cell.row != BASELINE:
                row |= _difference(read(cell), read(base[0]))
        rows.append(row)
    return pd.DataFrame(rows)


def with_average(scores: pd.DataFrame, benchmarks: Iterable[str]) -> pd.DataFrame:
    """``score_frame`` plus one row per setting with benchmark "average", where all of ``benchmarks`` are measured.

    The mean's interval combines those of the benchmarks as independent estimates (MOVER: squared distances to each end
    add).
    """
    wanted = list(benchmarks)
    means = []
    for _, group in scores.groupby(_SETTING, sort=False, dropna=False):
        part = group[group["benchmark"].isin(wanted)].drop_duplicates("benchmark")
        if len(part) < len(wanted):
            continue
        mean = part.iloc[0].to_dict() | {"benchmark": AVERAGE, "n": int(part["n"].sum()), "p": math.nan}
        mean |= {name: float(part[name].mean(skipna=False)) for name in SHARES}
        mean["spent"] = _mean(part["spent"].tolist())
        for value, low, high in (("value", "low", "high"), ("diff", "diff_low", "diff_high")):
            mean[value], mean[low], mean[high] = _mover(part[value], part[low], part[high])
        means.append(mean)
    return pd.concat([scores, pd.DataFrame(means, columns=scores.columns)], ignore_index=True)


def averages(scores: pd.DataFrame, benchmarks: Iterable[str]) -> pd.DataFrame:
    """Only the rows with benchmark "average"."""
    both = with_average(scores, benchmarks)
    return both[both["benchmark"] == AVERAGE].reset_index(drop=True)


def _labels(cell: Cell) -> dict[str, Any]:
    setting = {key: value for key, value in cell.reduction.describe().items() if key != "name"}
    inner = setting["inner"][0] if setting["inner"] else {}
    return {
        "row": cell.row,
        "model": cell.model,
        "budget": float(cell.reduction.budget),
        "layer": inner.get("layer", math.nan),
        "ratio": inner.get("ratio", math.nan),
        "saliency": cell.saliency,
        "frames": cell.frames,
        "setting": json.dumps(setting, sort_keys=True),
    }


def _where(cell: Cell) -> tuple[Any, ...]:
    return cell.model, cell.benchmark, cell.frames, cell.limit


def _place(cell: Cell) -> tuple[Any, ...]:
    return cell.model, cell.benchmark, cell.limit


def _spent(record: Record, base: Record, fewer: float | None = None) -> dict[str, Any]:
    """What the record's budget says, and FLOPs in per cent of the full model's. fewer: the share of frames of a control
    that sees fewer of them, whose tokens count against those of the full model's video."""
    spent, whole = _budget(record), _budget(base)
    if spent is not None and fewer is not None:
        full = {"full_tokens": whole.full_tokens, "full_newlines": whole.full_newlines} if whole is not None else {}
        spent = dataclasses.replace(spent, asked_share=fewer, **full) if full else None
    found = {"flops_pct": _percent(record.extra.get("flops_paper"), base.extra.get("flops_paper")), "spent": spent}
    if spent is not None:
        found |= {"kept_pct": 100 * spent.share, "newline_pct": 100 * spent.share_with_newlines}
        found |= {"layer_pct": 100 * spent.layer_share, "off_per_frame": spent.off_per_frame}
    return found


def _budget(record: Record) -> TokenBudget | None:
    return record.budget if isinstance(record.budget, TokenBudget) else None


def _mean(budgets: Sequence[TokenBudget | None]) -> TokenBudget | None:
    """Field by field; farthest_off: the one farthest from 0. None when one is not known."""
    known = [budget for budget in budgets if budget is not None]
    if not known or len(known) < len(budgets):
        return None
    names = [field.name for field in dataclasses.fields(TokenBudget)]
    mean = {name: sum(getattr(budget, name) for budget in known) / len(known) for name in names}
    return TokenBudget(**mean | {"farthest_off": max((budget.farthest_off for budget in known), key=abs)})


def _percent(part: float | None, whole: float | None) -> float:
    return 100 * part / whole if part and whole else math.nan


def _difference(mine: list[dict[str, Any]], full: list[dict[str, Any]]) -> dict[str, float]:
    """The same questions of both, in the same order; BadUsage when the logs hold different ones."""
    name = lambda s: (s.get("task", ""), s["doc_id"])  # noqa: E731
    theirs = {name(s): s for s in full}
    if {name(s) for s in mine} != set(theirs):
        raise BadUsage(
            "two settings answered different questions, so they cannot be paired", fix="run both with the same limit"
        )
    pairs = [(s["correct"], theirs[name(s)]["correct"], f"{s.get('task', '')}/{s['video']}") for s in mine]
    found = paired_difference([a for a, _, _ in pairs], [b for _, b, _ in pairs], [v for _, _, v in pairs])
    return {
        "diff": found.value,
        "diff_low": found.low,
        "diff_high": found.high,
        "p": found.p if found.p is not None else math.nan,
    }


def _mover(value: pd.Series, low: pd.Series, high: pd.Series) -> tuple[float, float, float]:
    mean = float(value.mean())
    below = math.sqrt(float(((value - low) ** 2).sum(skipna=False))) / len(value)
    above = math.sqrt(float(((high - value) ** 2).sum(skipna=False))) / len(value)
    return mean, mean - below, mean + above


def by_type(cells: Sequence[Cell], records: Sequence[Record], names: Iterable[str]) -> pd.DataFrame:
    """Accuracy per question type over all benchmarks, one column per setting ("HoliTom at 10 %"), for the rows
    ``names``; the last column counts the questions. Types are ordered by the loss of the last setting."""
    wanted = list(names)
    right: dict[str, dict[str, float]] = {}
    counts: dict[str, dict[str, int]] = {}
    for cell, record in zip(cells, records, strict=True):
        if cell.row not in wanted:
            continue
        label = cell.row if cell.reduction.budget == 1 else f"{cell.row} at {cell.reduction.budget:.0%}"
        for kind, score in record.extra.get("by_type", {}).items():
            n = record.extra["questions_by_type"][kind]
            right.setdefault(label, {})[kind] = right.get(label, {}).get(kind, 0.0) + score * n
            counts.setdefault(label, {})[kind] = counts.get(label, {}).get(kind, 0) + n
    table = pd.DataFrame(right) / pd.DataFrame(counts)
    if table.empty:
        return table
    loss = table.iloc[:, -1] - table.iloc[:, 0]
    return table.loc[loss.sort_values().index].assign(questions=pd.DataFrame(counts).iloc[:, 0].astype(int))


def changed_answers(cell: Cell, base: Cell, tier: str, *, runs: Path | None = None, most: int = 8) -> pd.DataFrame:
    """Questions that the full model (``base``) answers right and ``cell`` does not, from the per-question logs."""
    mine = load_samples(cell, tier, runs=runs or paths.runs())
    full = {(s.get("task"), s["doc_id"]): s for s in load_samples(base, tier, runs=runs or paths.runs())}
    lost = [s for s in mine if s["correct"] < full[s.get("task"), s["doc_id"]]["correct"]]
    columns = ["video", "type", "question", "target", "answer", "kept"]
    return pd.DataFrame([{name: s[name] for name in columns} for s in lost[:most]], columns=columns)
