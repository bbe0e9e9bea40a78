"""Which cells each experiment measures: one cell is one setting of one model on one benchmark.

Settings come from the presets of the papers' tables. In the tiny tier an inner stage moves to the same relative depth
of the smaller language model (layer 18 of 28 -> 4 of 6); ratios, budgets and thresholds stay the paper's. A setting
that two experiments share has the same Reduction in both, so the sweep computes it once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from holitom import paths
from holitom.errors import BadUsage
from holitom.evaluation.sweep import Cell
from holitom.experiments.registry import find
from holitom.methods import FastV, RandomDrop, SaliencyTopK
from holitom.methods.presets import preset
from holitom.paper import TASKS, TINY_TASKS
from holitom.types import Reduction

PAPER_BUDGETS = (0.25, 0.20, 0.15, 0.10)
LOW_BUDGETS = (0.05, 0.02)
CONTROL_BUDGETS = (0.25, 0.10)
VANILLA = Reduction("Vanilla")


@dataclass(frozen=True)
class Stage:
    """What a tier runs on: models by their role (None: there is none), decoder layers of the OneVision, benchmarks."""

    onevision: str
    video: str | None
    larger: str | None
    second: str | None
    layers: int
    benchmarks: tuple[str, ...]
    long: str

    def at(self, table: str, row: str, budget: float | None = None, model: str | None = None) -> Reduction:
        """The setting of one cell of a paper's table, at the depth of this tier's language model."""
        return preset(table, row, budget, model=model).scaled(layers=self.layers)

    def depth(self, layer: int, of: int = 28) -> int:
        """Layer ``layer`` of ``of``, at the same relative depth of this tier's language model: half up, at least 1."""
        return max(1, math.floor(layer / of * self.layers + 0.5))


STAGES = {
    "tiny": Stage(
        onevision="onevision",
        video="video",
        larger=None,
        second="onevision-seed1",
        layers=6,
        benchmarks=tuple(TINY_TASKS.values()),
        long=TINY_TASKS["longvideobench"],
    ),
    "paper": Stage(
        onevision="llava-hf/llava-onevision-qwen2-7b-ov-hf",
        video=None,  # LLaVA-Video is published in its authors' own format only
        larger="llava-hf/llava-onevision-qwen2-72b-ov-hf",
        second=None,
        layers=28,
        benchmarks=tuple(TASKS.values()),
        long=TASKS["longvideobench"],
    ),
}

Setting = tuple[str, Reduction, str]
"""Row label, setting, and where the saliency comes from: "own", "random" or "control"."""


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
    made = _GRIDS[experiment.name](STAGES[tier])
    return [replace(cell, limit=limit) for cell in made]


def _over(name: str, model: str, frames: int, settings: Iterable[Setting], benchmarks: Iterable[str]) -> list[Cell]:
    where = tuple(benchmarks)
    return [
        Cell(name, row, model, reduction, benchmark, frames, saliency=saliency)
        for row, reduction, saliency in settings
        for benchmark in where
    ]


def _table1(stage: Stage) -> list[Cell]:
    return _over("table1", stage.onevision, 32, _table1_settings(stage), stage.benchmarks)


def _table1_settings(stage: Stage) -> Iterator[Setting]:
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


def _table2(stage: Stage) -> list[Cell]:
    """LLaVA-Video's block and the 72B block where there is a model for them, then OneVision's rows for comparison.

    The tiny tier has none for the 72B block: its second training seed, where it has been trained, shows how much of a
    difference is training luck, and never stands for the larger model.
    """
    made = []
    if stage.video:
        made += _over("table2", stage.video, 64, _table2_settings(stage, "video-7b"), stage.benchmarks)
    if stage.larger:
        deep = replace(stage, layers=80)
        made += _over("table2", stage.larger, 32, _table2_settings(deep, "ov-72b"), stage.benchmarks)
    second = stage.second if stage.second and paths.data("tiny", stage.second, "config.json").is_file() else None
    for model in filter(None, (stage.onevision, second)):
        made += _over("table2", model, 32, _table1_at_15(stage), stage.benchmarks)
    return made


def _table2_settings(stage: Stage, model: str) -> Iterator[Setting]:
    yield "Vanilla", VANILLA, "own"
    yield "FastV", stage.at("table2", "FastV", model=model), "own"
    yield "HoliTom (w/o M)", stage.at("table2", "HoliTom (w/o M)", 0.15, model=model), "own"
    yield "HoliTom", stage.at("table2", "HoliTom", 0.15, model=model), "own"


def _table1_at_15(stage: Stage) -> Iterator[Setting]:
    """Table 2's rows with Table 1's model and settings, so that the two tables share these cells."""
    for row, setting, saliency in _table1_settings(stage):
        if row in ("Vanilla", "FastV") or (setting.budget == 0.15 and saliency == "own"):
            yield row, setting, saliency


def _fig_tradeoff(stage: Stage) -> list[Cell]:
    return _over("fig_tradeoff", stage.onevision, 32, _tradeoff_settings(stage), stage.benchmarks)


def _tradeoff_settings(stage: Stage) -> Iterator[Setting]:
    yield from (setting for setting in _table1_settings(stage) if setting[2] == "own")
    for budget in LOW_BUDGETS:  # below the paper's table: its lowest preset, taken further
        for row in ("HoliTom (w/o M)", "HoliTom"):
            yield row, replace(stage.at("table1", row, PAPER_BUDGETS[-1]), budget=budget), "own"
    first = stage.at("table1", "FastV")
    for ratio in (0.5, 0.9, 0.95):  # the table's own point, 0.8, is there already
        yield "FastV", replace(first, inner=(replace(first.inner[0], ratio=ratio),)), "own"
    for budget in (0.15, *LOW_BUDGETS):
        yield "Random", Reduction("Random", RandomDrop(seed=0), budget), "own"
        yield "Saliency top-k", Reduction("Saliency top-k", SaliencyTopK(), budget), "own"


PAPER_K = (2, 7, 14, 18, 21)
PAPER_R = (0.3, 0.4, 0.5, 0.6, 0.7)


def _fig_inner(stage: Stage) -> list[Cell]:
    return _over("fig_inner", stage.onevision, 32, _inner_settings(stage), stage.benchmarks)


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


def _fig_frames(stage: Stage) -> list[Cell]:
    """The long benchmark first: it is where more frames can help."""
    order = (stage.long, *(name for name in stage.benchmarks if name != stage.long))
    settings = (("Vanilla", VANILLA, "own"), ("HoliTom (w/o M)", stage.at("table1", "HoliTom (w/o M)", 0.15), "own"))
    return [
        cell
        for frames in (8, 16, 32, 64)
        for cell in _over("fig_frames", stage.onevision, frames, settings, order)
    ]  # fmt: skip


_GRIDS = {
    "table1": _table1,
    "table2": _table2,
    "fig_tradeoff": _fig_tradeoff,
    "fig_inner": _fig_inner,
    "fig_frames": _fig_frames,
}
