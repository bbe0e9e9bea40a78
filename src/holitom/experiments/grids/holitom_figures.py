"""The cells of HoliTom's figures: score over cost, merging against dropping inside the model, more frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from holitom.evaluation.cells import Cell
from holitom.experiments.grids.holitom_tables import table1_settings
from holitom.experiments.grids.stage import LOW_BUDGETS, PAPER_BUDGETS, VANILLA, Setting, Stage, over
from holitom.methods import FastV, RandomDrop, SaliencyTopK
from holitom.types import Reduction

PAPER_K = (2, 7, 14, 18, 21)
PAPER_R = (0.3, 0.4, 0.5, 0.6, 0.7)


def tradeoff(stage: Stage) -> list[Cell]:
    return over("fig_tradeoff", stage.onevision, 32, _tradeoff_settings(stage), stage.benchmarks)


def _tradeoff_settings(stage: Stage) -> Iterator[Setting]:
    yield from (setting for setting in table1_settings(stage) if setting[2] == "own")
    for budget in LOW_BUDGETS:  # below the paper's table: its lowest preset, taken further
        for row in ("HoliTom (w/o M)", "HoliTom"):
            yield row, replace(stage.at("table1", row, PAPER_BUDGETS[-1]), budget=budget), "own"
    first = stage.at("table1", "FastV")
    for ratio in (0.5, 0.9, 0.95):  # the table's own point, 0.8, is there already
        yield "FastV", replace(first, inner=(replace(first.inner[0], ratio=ratio),)), "own"
    for budget in (0.15, *LOW_BUDGETS):
        yield "Random", Reduction("Random", RandomDrop(seed=0), budget), "own"
        yield "Saliency top-k", Reduction("Saliency top-k", SaliencyTopK(), budget), "own"


def inner(stage: Stage) -> list[Cell]:
    return over("fig_inner", stage.onevision, 32, _inner_settings(stage), stage.benchmarks)


def _inner_settings(stage: Stage) -> Iterator[Setting]:
    """Merging (HoliTom) against dropping (FastV) behind the 10 % outer stage: over K at R = 0.5, then over R at the
    depth of K = 14. Rows are named after what happens inside; the outer stage alone is HoliTom (w/o M)."""
    outer = stage.at("table1", "HoliTom (w/o M)", 0.10)
    yield "Vanilla", VANILLA, "own"
    yield "HoliTom (w/o M)", outer, "own"
    middle = stage.depth(14)
    merging = stage.at("table1", "HoliTom", 0.10).inner[0]
    for layer, ratio in dict.fromkeys(
        [*((stage.depth(k), 0.5) for k in PAPER_K), *((middle, ratio) for ratio in PAPER_R)]
    ):
        yield "HoliTom", replace(outer, name="HoliTom", inner=(replace(merging, layer=layer, ratio=ratio),)), "own"
        yield "FastV", replace(outer, name="outer + FastV", inner=(FastV(layer=layer, ratio=ratio),)), "own"


def frames(stage: Stage) -> list[Cell]:
    """The long benchmark first: it is where more frames can help."""
    order = (stage.long, *(name for name in stage.benchmarks if name != stage.long))
    settings = (("Vanilla", VANILLA, "own"), ("HoliTom (w/o M)", stage.at("table1", "HoliTom (w/o M)", 0.15), "own"))
    return [
        cell
        for count in (8, 16, 32, 64)
        for cell in over("fig_frames", stage.onevision, count, settings, order)
    ]  # fmt: skip
