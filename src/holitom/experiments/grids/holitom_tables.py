"""The cells of HoliTom's Tables 1 and 2: the printed rows that can be run, and controls that could embarrass them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from holitom import paths
from holitom.evaluation.cells import Cell
from holitom.experiments.grids.stage import PAPER_BUDGETS, VANILLA, Setting, Stage, over
from holitom.methods import RandomDrop, SaliencyTopK
from holitom.types import Reduction

CONTROL_BUDGETS = (0.25, 0.10)


def table1(stage: Stage) -> list[Cell]:
    return over("table1", stage.onevision, 32, table1_settings(stage), stage.benchmarks)


def table1_settings(stage: Stage) -> Iterator[Setting]:
    yield "Vanilla", VANILLA, "own"
    yield "FastV", stage.at("table1", "FastV"), "own"
    for budget in PAPER_BUDGETS:
        yield "HoliTom (w/o M)", stage.at("table1", "HoliTom (w/o M)", budget), "own"
        yield "HoliTom", stage.at("table1", "HoliTom", budget), "own"
    yield from _controls(stage, CONTROL_BUDGETS)


def _controls(stage: Stage, budgets: Iterable[float]) -> Iterator[Setting]:
    """Rows that could embarrass a method: chance, saliency alone, saliency upside down, and saliency from elsewhere."""
    for budget in budgets:
        yield "Random", Reduction("Random", RandomDrop(seed=0), budget), "own"
        yield "Saliency top-k", Reduction("Saliency top-k", SaliencyTopK(), budget), "own"
        yield "Saliency bottom-k", Reduction("Saliency bottom-k", SaliencyTopK(lowest=True), budget), "own"
        for source in ("random", "control"):
            top = Reduction("Saliency top-k", SaliencyTopK(), budget)
            yield f"HoliTom, {source} saliency", stage.at("table1", "HoliTom", budget), source
            yield f"Top-k, {source} saliency", top, source


def table2(stage: Stage) -> list[Cell]:
    """LLaVA-Video's block and the 72B block where there is a model for them, then OneVision's rows for comparison.

    The tiny tier has none for the 72B block: its second training seed, where it has been trained, shows how much of a
    difference is training luck, and never stands for the larger model.
    """
    made = []
    if stage.video:
        made += over("table2", stage.video, 64, _table2_settings(stage, "video-7b"), stage.benchmarks)
    if stage.larger:
        deep = replace(stage, layers=80)
        made += over("table2", stage.larger, 32, _table2_settings(deep, "ov-72b"), stage.benchmarks)
    second = stage.second if stage.second and paths.data("tiny", stage.second, "config.json").is_file() else None
    for model in filter(None, (stage.onevision, second)):
        made += over("table2", model, 32, _table1_at_15(stage), stage.benchmarks)
    return made


def _table2_settings(stage: Stage, model: str) -> Iterator[Setting]:
    yield "Vanilla", VANILLA, "own"
    yield "FastV", stage.at("table2", "FastV", model=model), "own"
    yield "HoliTom (w/o M)", stage.at("table2", "HoliTom (w/o M)", 0.15, model=model), "own"
    yield "HoliTom", stage.at("table2", "HoliTom", 0.15, model=model), "own"


def _table1_at_15(stage: Stage) -> Iterator[Setting]:
    """Table 2's rows with Table 1's model and settings, so that the two tables share these cells."""
    for row, setting, saliency in table1_settings(stage):
        if row in ("Vanilla", "FastV") or (setting.budget == 0.15 and saliency == "own"):
            yield row, setting, saliency
