"""Measure cells of the paper tier: the plan in words, the unreduced models and their gate, then every method."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from holitom_repro import paths
from holitom.errors import BadUsage, CannotRun
from holitom_repro.evaluation import sweep
from holitom_repro.evaluation.cells import Cell, CellFiles, check
from holitom_repro.paper_tier import gate, planning
from holitom_repro.results import Record

TIER = "paper"


@dataclass(frozen=True)
class Settings:
    """gate: stop where a baseline is off; only_gate: measure nothing but baselines; part (i, n): the i-th of n shares
    of the cells, for an array of jobs; include: folders of task files taken before lmms-eval's own."""

    gate: bool = True
    only_gate: bool = False
    part: tuple[int, int] = (0, 1)
    fresh: bool = False
    include: tuple[Path, ...] = ()
    progress: bool = True


def measure(cells: Sequence[Cell], settings: Settings, *, runs: Path | None = None) -> list[Record]:
    """The records of ``cells`` (of this part of them), computed where they are missing.

    One model after the other, its baselines first. Runs in every process of a launch; the first one speaks and writes.
    CannotRun: a baseline is off (with the reasons that are known), a checkpoint in a format that has to be converted
    first, a model that is too large for the GPU, no room on the disk.
    """
    runs = runs or paths.runs()
    processes, first = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK", "0") == "0"
    mine = share(cells, settings.part)
    for cell in mine:
        check(cell, TIER)
    planning.runnable(mine)
    files = CellFiles(runs, TIER)
    head = planning.pooling_head([cell for cell in mine if settings.fresh or files.load(cell) is None])
    if first:
        for line in [*planning.describe(mine, files, processes), *([head] if head else [])]:
            _say(line)

    def run(wanted: Sequence[Cell], *, fresh: bool) -> list[Record]:
        with suppress(torch.OutOfMemoryError):
            return sweep.run_cells(
                wanted, TIER, runs=runs, fresh=fresh, progress=settings.progress, include=settings.include
            )
        if not first:  # may be the only one to whom it happened, and the first one speaks of its own errors only
            _say(f"process {os.environ['RANK']}: out of GPU memory")
        raise CannotRun(  # not within the handler: torch's error would keep the model on the GPU
            "the model does not fit on this GPU: each process holds a whole one (72B in 16 bit: over 150 GB)",
            fix="use a larger GPU; finished cells are kept",
        )

    bases, judged = gate.baselines(cells), []
    for model in dict.fromkeys(cell.model for cell in cells):
        done = [cell for cell in bases if cell.model == model] if settings.gate or settings.only_gate else []
        new = gate.judge(done, run(done, fresh=settings.fresh))
        judged += new
        if first:
            for one in new:
                _say(f"gate   {one.cell.model}, {one.cell.benchmark}: {one.verdict} ({one.reason})")
        if not settings.only_gate:
            gate.require(judged if settings.gate else [])
            run([cell for cell in mine if cell.model == model and cell not in done], fresh=settings.fresh)
    gate.require(judged if settings.gate else [])
    return run(bases if settings.only_gate else mine, fresh=False)


def share(cells: Sequence[Cell], part: tuple[int, int]) -> list[Cell]:
    """Every n-th cell from the i-th: neighbours, which share a setting, go to different jobs."""
    number, parts = part
    if not 0 <= number < parts:
        raise BadUsage(f"part {number} of {parts}", fix="count parts from 0: 0/4, 1/4, 2/4, 3/4")
    return list(cells[number::parts])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
