"""Which cells each experiment measures: one cell is one setting of one model on one benchmark.

Every module here makes the cells of the experiments that it is named after: a function Stage -> [Cell], listed in
GRIDS under the experiment's name. A setting that two experiments share has the same Reduction in both, so the sweep
computes it once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from holitom.errors import BadUsage
from holitom_repro.evaluation.cells import Cell
from holitom_repro.experiments.grids import ablations, findings, hieravid, holitom_figures, holitom_tables, mmg_vid
from holitom_repro.experiments.grids.stage import STAGES, Stage
from holitom_repro.experiments.registry import find
from holitom.methods import FastVID

GRIDS: dict[str, Callable[[Stage], list[Cell]]] = {
    "table1": holitom_tables.table1,
    "table2": holitom_tables.table2,
    "fig_tradeoff": holitom_figures.tradeoff,
    "fig_inner": holitom_figures.inner,
    "fig_frames": holitom_figures.frames,
    "mmg_vid": mmg_vid.cells,
    "hieravid": hieravid.cells,
    "ablations": ablations.cells,
    "findings": findings.cells,
}


def cells(name: str, tier: str, limit: int | None = None) -> list[Cell]:
    """The cells of an experiment, in the order in which they are worth having; [] when it only calculates.

    limit: only the first so many documents of each benchmark. BadUsage for an unknown experiment or a tier that
    does not offer it.
    """
    experiment = find(name)
    if not experiment.measures:
        return []
    if tier not in STAGES:
        raise BadUsage(f"{experiment.target} has no cells in the {tier} tier", fix=f"use {' or '.join(STAGES)}")
    found = [replace(cell, limit=limit) for cell in GRIDS[experiment.name](STAGES[tier])]
    return [with_pooling_head(cell) for cell in found] if tier == "paper" else found


def with_pooling_head(cell: Cell) -> Cell:
    """FastVID comparing frames by SigLIP's own pooling head, which the models of the paper tier have no weights of but
    can be given (models.siglip_head); the tiny towers have none, so there a substitute stays."""
    outer = cell.reduction.outer
    if not isinstance(outer, FastVID):
        return cell
    return replace(cell, reduction=replace(cell.reduction, outer=replace(outer, head="siglip")))
