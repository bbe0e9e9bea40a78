"""Measures stand-in cells as the paper tier does, in this process or in each of a launch: driver.py RUNS TASKS MODEL
BENCHMARK[,BENCHMARK] [KILL_AFTER]."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from holitom_repro.evaluation.cells import Cell
from holitom_repro.evaluation.journal import Journal
from holitom.methods import HoliTom
from holitom_repro.paper_tier.measuring import Settings, measure
from holitom.types import Reduction

FRAMES, BUDGET, TAU = 8, 0.25, 0.8


def cells(model: str, benchmarks: list[str]) -> list[Cell]:
    setting = Reduction("HoliTom", HoliTom(tau=TAU), BUDGET)
    return [Cell("table1", "HoliTom", model, setting, benchmark, FRAMES) for benchmark in benchmarks]


def kill_after(batches: int) -> None:
    """As a scheduler does it: SIGKILL, with a line half written."""
    add, told = Journal.add, []

    def counted(self, *args):
        add(self, *args)
        told.append(1)
        if len(told) == batches:
            with self.file.open("a") as file:
                file.write('{"answers": [{"task": "')
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.add = counted


if __name__ == "__main__":
    runs, tasks, model, benchmarks, *kill = sys.argv[1:]
    if kill:
        kill_after(int(kill[0]))
    settings = Settings(gate=False, include=(Path(tasks),), progress=False)
    records = measure(cells(model, benchmarks.split(",")), settings, runs=Path(runs))
    if os.environ.get("RANK", "0") == "0":
        for record in records:
            print("RECORD", record.benchmark, record.n, record.value)
