"""One change at a time against the default: paired differences, corrected for their number, and what holds of the
expectation that was stated for each factor beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from holitom_repro import paths
from holitom_repro.comparing import answers, difference, holm
from holitom.errors import BadUsage
from holitom_repro.evaluation.cells import Cell, load_samples
from holitom_repro.results import Record
from holitom_repro.scores import averages, score_frame

DEFAULT = "default"
MARGIN = 1.5
"""Points. "Matters little" means a 95 % interval inside +- this much, as in the trends: 1,200 questions show it."""
LEVEL = 0.05
FEWEST_VIDEOS = 30


@dataclass(frozen=True)
class Factor:
    """What is varied, and what is expected of it.

    expected: a statement, judged by ``test``: "needed": the default scores clearly above every rival; "not beaten": no
    rival scores clearly above it, and none can be ahead by more than MARGIN; "robust": every rival stays within +-
    MARGIN. rivals: the variants that the statement is about (empty: all); why: where the expectation comes from.
    """

    name: str
    expected: str
    test: Literal["needed", "not beaten", "robust"]
    why: str
    rivals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """A factor's verdict: "holds", "does not hold", "within noise", or "not decided" with fewer than FEWEST_VIDEOS."""

    factor: Factor
    verdict: str


def against_default(
    cells: Sequence[Cell],
    records: Sequence[Record],
    tier: str,
    *,
    runs: Path | None = None,
    samples: Callable[[Cell], list[dict[str, Any]]] | None = None,
) -> pd.DataFrame:
    """One row per setting of the ablations: factor and variant; value, the average score, with low and high; diff, the
    difference of the averages to the default on the same questions, with diff_low and diff_high, p and p_holm (over all
    variants), clustered by video; the same per benchmark, under its name; changed, how many answers are now right that
    were wrong or the reverse; tokens per layer; flops_pct.

    records: what ``run_cells(cells, tier)`` returned. Every benchmark counts the same, however many questions it has.
    """
    read = samples or (lambda cell: load_samples(cell, tier, runs=runs or paths.runs()))
    names = list(dict.fromkeys(cell.benchmark for cell in cells))
    mean = averages(score_frame(cells, records, tier, samples=read), names).set_index("row")
    logs = {
        row: answers([cell for cell in cells if cell.row == row], read) for row in dict.fromkeys(c.row for c in cells)
    }
    if DEFAULT not in logs:
        raise BadUsage("the cells hold no default to compare with", fix='give the cells of "ablations"')
    rows = []
    for row, log in logs.items():
        factor, _, variant = row.rpartition(": ")
        score = mean.loc[row]
        found = {"factor": factor, "variant": variant, "value": score["value"], "low": score["low"]}
        tokens = score["spent"].layer_tokens if score["spent"] is not None else math.nan
        found |= {"high": score["high"], "n": int(score["n"]), "tokens": tokens, "flops_pct": score["flops_pct"]}
        found |= difference(log, logs[DEFAULT], names) if row != DEFAULT else {}
        rows.append(found | {"source": "measured"})
    table = pd.DataFrame(rows)
    tested = table["factor"] != ""
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"].tolist())
    return table


def findings(table: pd.DataFrame, factors: Iterable[Factor]) -> list[Finding]:
    """What holds of each factor's expectation, from ``against_default``."""
    return [_finding(table[table["factor"] == factor.name], factor) for factor in factors]


def clear(row: pd.Series) -> int:
    """-1 or 1 where a variant scores below or above the default after Holm's correction, else 0."""
    return int(math.copysign(1, row["diff"])) if row["p_holm"] < LEVEL and row["diff"] else 0


def within_margin(row: pd.Series) -> bool:
    """Whether the whole interval of the difference lies inside +- MARGIN."""
    return bool(row["diff_low"] >= -MARGIN and row["diff_high"] <= MARGIN)


def _finding(mine: pd.DataFrame, factor: Factor) -> Finding:
    rivals = [row for _, row in mine.iterrows() if not factor.rivals or row["variant"] in factor.rivals]
    signs = [clear(row) for row in rivals]
    if not rivals or min(row["videos"] for row in rivals) < FEWEST_VIDEOS:
        verdict = "not decided"
    elif factor.test == "needed":
        close = any(row["diff_low"] > -MARGIN for row in rivals)
        verdict = "holds" if all(s < 0 for s in signs) else "does not hold" if close else "within noise"
    elif factor.test == "not beaten":
        bounded = all(row["diff_high"] <= MARGIN for row in rivals)
        verdict = "does not hold" if any(s > 0 for s in signs) else "holds" if bounded else "within noise"
    else:
        outside = [s for s, row in zip(signs, rivals, strict=True) if not within_margin(row)]
        verdict = "does not hold" if any(outside) else "within noise" if outside else "holds"
    return Finding(factor, verdict)
