"""The cells of HoliTom's figures: score over cost, merging against dropping inside the model, more frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from holitom_repro.evaluation.cells import Cell
from holitom_repro.experiments.grids.rows import CONTROLS, METHODS, before, fewer_frames, inside
from holitom_repro.experiments.grids.stage import LOW_BUDGETS, PAPER_BUDGETS, VANILLA, Setting, Stage, over
from holitom.methods import FastV
from holitom.types import Reduction

PAPER_K = (2, 7, 14, 18, 21)
PAPER_R = (0.3, 0.4, 0.5, 0.6, 0.7)
BUDGETS = (*PAPER_BUDGETS, *LOW_BUDGETS)


def tradeoff(stage: Stage) -> list[Cell]:
    """Every method and plain control at 25 to 2 %, and those inside the language model at three or four strengths.

    DyCoke has one point: windows of four frames keep one whole frame, so 25 % is the least it can reach.
    """
    made = over("fig_tradeoff", stage.onevision, 32, _tradeoff_settings(stage), stage.benchmarks)
    return made + fewer_frames("fig_tradeoff", stage.onevision, 32, BUDGETS, stage.benchmarks)


def _tradeoff_settings(stage: Stage) -> Iterator[Setting]:
    yield "Vanilla", VANILLA, "own"
    for budget in BUDGETS:  # below the paper's table: its lowest preset, taken further
        for row in ("HoliTom (w/o M)", "HoliTom"):
            known = stage.at("table1", row, max(budget, PAPER_BUDGETS[-1]))
            yield row, replace(known, budget=budget), "own"
        for row, setting, saliency in before(METHODS, budget):
            table = row in ("VisionZip", "PruneVid", "FastVID") and budget in PAPER_BUDGETS
            yield row, stage.at("table1", row, budget) if table else setting, saliency
    yield from inside(stage)
    yield "DyCoke", stage.at("table1", "DyCoke"), "own"
    for budget in BUDGETS:
        yield from before(CONTROLS, budget)


def inner(stage: Stage) -> list[Cell]:
    """Merging (HoliTom) against dropping (FastV) behind the 10 % outer stage."""
    return over("fig_inner", stage.onevision, 32, _inner_settings(stage), stage.benchmarks)


def _inner_settings(stage: Stage) -> Iterator[Setting]:
    """Over K at R = 0.5, then over R at the depth of K = 14. Rows are named after what happens inside; the outer stage
    alone is HoliTom (w/o M)."""
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
    """All tokens and three methods at 15 % over the number of frames. The long benchmark first: it is where more frames
    can help."""
    order = (stage.long, *(name for name in stage.benchmarks if name != stage.long))
    rows: list[tuple[str, Reduction]] = [("Vanilla", VANILLA)]
    rows += [(row, stage.at("table1", row, 0.15)) for row in ("HoliTom (w/o M)", "VisionZip", "PruneVid")]
    settings = [(row, setting, "own") for row, setting in rows]
    return [cell for count in stage.frames for cell in over("fig_frames", stage.onevision, count, settings, order)]
