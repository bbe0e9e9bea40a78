"""The cells of HoliTom's Tables 1 and 2: every printed row, and controls that could embarrass them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from holitom_repro import paths
from holitom_repro.evaluation.cells import Cell
from holitom_repro.experiments.grids.rows import CONTROLS, adverse, before, fewer_frames
from holitom_repro.experiments.grids.stage import Setting, Stage, over
from holitom.methods.presets import preset_names

CONTROL_BUDGETS = (0.25, 0.10)


def table1(stage: Stage) -> list[Cell]:
    """The printed rows; DyCoke and PruneVid with the second stage that the table leaves out; the controls."""
    made = over("table1", stage.onevision, 32, _table1_settings(stage), stage.benchmarks)
    return made + fewer_frames("table1", stage.onevision, 32, CONTROL_BUDGETS, stage.benchmarks)


def printed(table: str, stage: Stage, model: str) -> Iterator[Setting]:
    """Every row of a table of the paper for one of its models."""
    for name, row, budget, of in preset_names(table):
        if of == model:
            yield row, stage.at(name, row, budget, of), "own"


def _table1_settings(stage: Stage) -> Iterator[Setting]:
    yield from printed("table1", stage, "ov-7b")
    for name, row, budget, _ in preset_names("complete"):
        if budget in CONTROL_BUDGETS:
            yield row, stage.at(name, row, budget), "own"
    for budget in CONTROL_BUDGETS:
        yield from before(CONTROLS, budget)
        yield from adverse(stage, budget)


def table2(stage: Stage) -> list[Cell]:
    """LLaVA-Video's block where there is a model for it, OneVision's rows for comparison, then the 72B block: what
    fails for its size stops nothing else.

    The tiny tier has none for the 72B block: its second training seed, where it has been trained, shows how much of a
    difference is training luck, and never stands for the larger model.
    """
    made = []
    if stage.video:
        made += over("table2", stage.video, 64, printed("table2", stage, "video-7b"), stage.benchmarks)
    second = stage.second if stage.second and paths.data("tiny", stage.second, "config.json").is_file() else None
    for model in filter(None, (stage.onevision, second)):
        made += over("table2", model, 32, _table1_at_15(stage), stage.benchmarks)
    if stage.larger:
        deep = replace(stage, layers=80)
        made += over("table2", stage.larger, 32, printed("table2", deep, "ov-72b"), stage.benchmarks)
    return made


def _table1_at_15(stage: Stage) -> Iterator[Setting]:
    """Table 2's budget with Table 1's model and settings, so that the two tables share these cells; and VisionZip at
    20 %, which keeps no fewer tokens than HoliTom does when it is asked for 15."""
    for row, setting, saliency in printed("table1", stage, "ov-7b"):
        share = round(100 * setting.budget)
        if setting.outer is None or share == 15 or (row == "VisionZip" and share == 20):
            yield row, setting, saliency
