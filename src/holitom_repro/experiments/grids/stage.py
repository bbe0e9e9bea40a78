"""What a tier runs on, and how a setting of the papers becomes a cell there.

In the tiny tier an inner stage moves to the same relative depth of the smaller language model (layer 18 of 28 -> 4 of
6); ratios, budgets and thresholds stay the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from holitom_repro import paths
from holitom_repro.evaluation.cells import CHECKPOINTS, Cell
from holitom.methods.presets import preset
from holitom_repro.paper import TASKS, TINY_TASKS
from holitom.types import Reduction

PAPER_BUDGETS = (0.25, 0.20, 0.15, 0.10)
LOW_BUDGETS = (0.05, 0.02)
VANILLA = Reduction("Vanilla")

Setting = tuple[str, Reduction, str]
"""Row label, setting, and where the saliency comes from: "own", "random" or "control"."""


@dataclass(frozen=True)
class Stage:
    """What a tier runs on: models by their role (None: there is none), decoder layers of the OneVision, benchmarks, the
    one with the longest videos, the numbers of frames to compare, and where foreign saliency can come from: the control
    tower sees frames of the tiny models' size only."""

    onevision: str
    video: str | None
    larger: str | None
    second: str | None
    layers: int
    benchmarks: tuple[str, ...]
    long: str
    frames: tuple[int, ...]
    foreign: tuple[str, ...]

    def at(self, table: str, row: str, budget: float | None = None, model: str | None = None) -> Reduction:
        """The setting of one cell of a paper's table, at the depth of this tier's language model."""
        return preset(table, row, budget, model=model).scaled(layers=self.layers)

    def depth(self, layer: int, of: int = 28) -> int:
        """Layer ``layer`` of ``of``, at the same relative depth of this tier's language model: half up, at least 1."""
        return max(1, math.floor(layer / of * self.layers + 0.5))


def _converted(model: str) -> str | None:
    """The model, where a checkpoint of it has been converted (docs/paper_tier.md)."""
    return model if (paths.root() / CHECKPOINTS / model / "config.json").is_file() else None


STAGES = {
    "tiny": Stage(
        onevision="onevision",
        video="video",
        larger=None,
        second="onevision-seed1",
        layers=6,
        benchmarks=tuple(TINY_TASKS.values()),
        long=TINY_TASKS["longvideobench"],
        frames=(8, 16, 32, 64),  # it was trained on at most 32
        foreign=("random", "control"),
    ),
    "paper": Stage(
        onevision="ov-7b",
        video=_converted("video-7b"),  # published in its authors' own format only
        larger="ov-72b",
        second=None,
        layers=28,
        benchmarks=tuple(TASKS.values()),
        long=TASKS["longvideobench"],
        frames=(16, 32, 64, 128),
        foreign=("random",),
    ),
}


def over(name: str, model: str, frames: int, settings: Iterable[Setting], benchmarks: Iterable[str]) -> list[Cell]:
    """The cells of experiment ``name``: every setting on every benchmark, setting by setting."""
    where = tuple(benchmarks)
    return [
        Cell(name, row, model, reduction, benchmark, frames, saliency=saliency)
        for row, reduction, saliency in settings
        for benchmark in where
    ]
