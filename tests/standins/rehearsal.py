"""Every row of the paper tier's experiments, once: rehearsal.py RUNS TASKS MODEL (a folder, 28 layers deep). Prints
each row that could not be measured, and how many could."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import holitom.models.llava_onevision as host
from holitom.errors import KitError
from holitom_repro.evaluation.cells import Cell
from holitom_repro.evaluation.sweep import run_cells
from holitom_repro.experiments import EXPERIMENTS, cells


def rows(model: str) -> list[Cell]:
    """Each row of each experiment at its lowest budget, one question of one benchmark, on this model."""
    found: dict[str, Cell] = {}
    for name in EXPERIMENTS:
        for cell in cells(name, "paper", 1):
            if cell.model != "ov-7b":
                continue
            here = dataclasses.replace(cell, model=model, benchmark="egoschema_subset", frames=8)
            lowest = found.setdefault(cell.row, here)
            if cell.reduction.budget < lowest.reduction.budget:
                found[cell.row] = here
    return list(found.values())


if __name__ == "__main__":
    runs, tasks, model = sys.argv[1:]
    host.HUB = str(Path(model) / "head")  # SigLIP's pooling head for a tower of this width
    done = 0
    for cell in rows(model):
        try:
            (record,) = run_cells([cell], "paper", runs=runs, progress=False, include=(tasks,))
            done += record.n == 1
        except KitError as error:
            print("FAILED", cell.row, error)
    print("DONE", done)
