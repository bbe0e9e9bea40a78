"""HoliTom's inner stage with and without a causal mask, paired on the same questions: what notebooks/findings.ipynb
draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from holitom_repro import paths
from holitom_repro.comparing import answers, difference
from holitom_repro.evaluation.cells import Cell, load_samples
from holitom_repro.experiments.grids.findings import CLEAN, NOT_CAUSAL, RELEASED
from holitom_repro.experiments.grids.holitom_figures import PAPER_K
from holitom_repro.experiments.grids.stage import STAGES


def mask_differences(
    cells: Sequence[Cell],
    tier: str,
    *,
    runs: Path | None = None,
    samples: Callable[[Cell], list[dict[str, Any]]] | None = None,
) -> pd.DataFrame:
    """Average score without the mask, or as released, minus that of the text's inner stage, at every model, budget and
    layer where both are cells of "findings": label, model, budget, layer, depth (the layer in words), changed
    (answers), videos, diff with diff_low and diff_high in points, p. Every benchmark counts the same."""
    read = samples or (lambda cell: load_samples(cell, tier, runs=runs or paths.runs()))
    names = list(dict.fromkeys(cell.benchmark for cell in cells))
    groups: dict[tuple[str, str, float, int], list[Cell]] = {}
    for cell in cells:
        if cell.reduction.inner:
            where = cell.row, cell.model, cell.reduction.budget, cell.reduction.inner[0].layer
            groups.setdefault(where, []).append(cell)
    usual = min((layer for row, model, _, layer in groups if row == RELEASED and model == cells[0].model), default=0)
    rows = []
    for (row, model, budget, layer), mine in groups.items():
        clean = groups.get((CLEAN, model, budget, layer))
        if row not in (NOT_CAUSAL, RELEASED) or clean is None:
            continue
        found = difference(answers(mine, read), answers(clean, read), names)
        keep = {name: found[name] for name in ("diff", "diff_low", "diff_high", "p", "changed", "videos")}
        words = "as released" if row == RELEASED else "no mask"
        depth = _depth(tier, layer)
        label = f"{words}, {100 * budget:g} %" + (f", K = {depth}" if layer != usual else "")
        label += ", video model" if model != cells[0].model else ""
        here = {"label": label, "row": row, "model": model, "budget": budget, "layer": layer, "depth": depth}
        rows.append(here | keep | {"source": "measured"})
    columns = ["label", "row", "model", "budget", "layer", "depth", "diff", "diff_low", "diff_high", "p", "changed"]
    return pd.DataFrame(rows, columns=[*columns, "videos", "source"])


def _depth(tier: str, layer: int) -> str:
    """ "2 of 6 (7 of 28)": a layer of the tier's model, in brackets the papers' that move there in a smaller one."""
    stage = STAGES[tier]
    there = " or ".join(str(k) for k in PAPER_K if stage.depth(k) == layer) if stage.layers != 28 else ""
    return f"{layer} of {stage.layers}" + (f" ({there} of 28)" if there else "")
