"""Rows that no printed table has: methods at any budget, plain controls, and saliency that comes from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

from holitom_repro.evaluation.cells import Cell
from holitom_repro.experiments.grids.stage import VANILLA, Setting, Stage, over
from holitom.methods import (
    AveragePool,
    FastV,
    FastVID,
    MMGVid,
    PruneVid,
    PyramidDrop,
    RandomDrop,
    SaliencyTopK,
    ToMe,
    UniformStride,
    VisionZip,
)
from holitom.methods.presets import Preset, preset
from holitom_repro.scores import FEWER_FRAMES
from holitom.types import Outer, Reduction

METHODS: dict[str, Outer] = {
    "VisionZip": VisionZip(),
    "PruneVid": PruneVid(),
    "FastVID": FastVID(),
    "MMG-Vid": MMGVid(),
    "ToMe": ToMe(),
}
CONTROLS: dict[str, Outer] = {
    "Random": RandomDrop(seed=0),
    "Uniform stride": UniformStride(),
    "Average pooling": AveragePool(),
    "Saliency top-k": SaliencyTopK(),
}
FASTV_DROPS = (0.5, 0.8, 0.9, 0.95)
PDROP_SHARES = (0.7, 0.5, 0.3)
"""Share that each of PDrop's three stages leaves of the one before; 0.5 is the paper's."""


def before(rows: dict[str, Outer], budget: float) -> Iterator[Setting]:
    """Outer stages at one budget."""
    for row, outer in rows.items():
        yield row, Reduction(row, outer, budget), "own"


def inside(stage: Stage) -> Iterator[Setting]:
    """What acts inside the language model only, weaker and stronger than in the tables."""
    for ratio in FASTV_DROPS:
        yield "FastV", _at_depth(stage, "FastV", (FastV(2, ratio),)), "own"
    for share in PDROP_SHARES:
        ratios = tuple(share**power for power in (1, 2, 3))
        yield "PDrop", _at_depth(stage, "PDrop", PyramidDrop(ratios=ratios).stages()), "own"
    for share in (0.30, 0.20, 0.10):
        yield "HieraVid", stage.at("hieravid", "HieraVid", share), "own"


def adverse(stage: Stage, budget: float) -> Iterator[Setting]:
    """Rows that could embarrass a method: saliency upside down, and saliency from elsewhere."""
    top = Reduction("Saliency top-k", SaliencyTopK(), budget)
    yield "Saliency bottom-k", Reduction("Saliency bottom-k", SaliencyTopK(lowest=True), budget), "own"
    for source in stage.foreign:
        yield f"HoliTom, {source} saliency", stage.at("table1", "HoliTom", budget), source
        yield f"Top-k, {source} saliency", top, source
    for row in ("VisionZip", "FastVID") if "control" in stage.foreign else ():
        yield f"{row}, control saliency", stage.at("table1", row, budget), "control"


def fewer_frames(name: str, model: str, frames: int, budgets: Iterable[float], benchmarks: Iterable[str]) -> list[Cell]:
    """All tokens of fewer frames, ceil(budget * frames) of them, sampled from the video afresh: what anybody can do
    without a method. Rounded up, so that the control never has fewer tokens than were asked for."""
    where = tuple(benchmarks)
    counts = dict.fromkeys(math.ceil(round(budget * frames, 9)) for budget in budgets)
    return [cell for count in counts for cell in over(name, model, count, [(FEWER_FRAMES, VANILLA, "own")], where)]


def _at_depth(stage: Stage, row: str, inner: tuple) -> Reduction:
    """Inner stages stated for 28 layers, at the depth of this tier's language model."""
    cell: Preset = preset("table1", row)
    return replace(cell, reduction=replace(cell.reduction, inner=inner)).scaled(stage.layers)
