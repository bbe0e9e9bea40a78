"""The cells of MMG-Vid's table: the reconstruction with either sign of its marginal gain, beside the methods that are
printed at the same budgets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from holitom_repro.evaluation.cells import Cell
from holitom_repro.experiments.grids.stage import VANILLA, Setting, Stage, over
from holitom.methods import FastVID, MMGVid, PruneVid, RandomDrop, VisionZip
from holitom.methods.presets import outer_for
from holitom.types import Outer, Reduction

ONEVISION, VIDEO = (0.25, 0.15, 0.10), (0.15, 0.10)
"""Budgets: MMG-Vid's numbers are printed at 25 and 15 % on LLaVA-OneVision and at 15 and 10 % on LLaVA-Video; 10 % on
the former shows whether the order lasts."""
CODED, OPPOSITE = "MMG-Vid", "MMG-Vid (opposite gain)"
OTHERS: dict[str, Outer] = {
    "FastVID": FastVID(),
    "PruneVid": PruneVid(),
    "VisionZip": VisionZip(),
    "Random": RandomDrop(seed=0),
}


def cells(stage: Stage) -> list[Cell]:
    made = over("mmg_vid", stage.onevision, 32, _settings(stage, "ov-7b", ONEVISION), stage.benchmarks)
    if stage.video:
        made += over("mmg_vid", stage.video, 64, _settings(stage, "video-7b", VIDEO), stage.benchmarks)
    return made


def _settings(stage: Stage, model: str, budgets: tuple[float, ...]) -> Iterator[Setting]:
    yield "Vanilla", VANILLA, "own"
    for budget in budgets:
        yield CODED, Reduction(CODED, MMGVid(), budget), "own"
        yield OPPOSITE, Reduction(OPPOSITE, MMGVid(gain="opposite"), budget), "own"
        outer = Reduction("HoliTom (w/o M)", outer_for(model, budget), budget)
        yield outer.name, outer, "own"
        merging = stage.at("table1", "HoliTom", 0.15).inner
        yield "HoliTom", replace(outer, name="HoliTom", inner=merging), "own"
        for row, method in OTHERS.items():
            yield row, Reduction(row, method, budget), "own"
