"""The settings behind the cells of HoliTom's tables and figures, as far as the methods here cover their rows.

Sources: the ratios, K and r of every cell follow from its FLOPs (2 to 3 digits, one setting fits each); tau, beta, k
and the window from the scripts of cokeshao/HoliTom at e9b2972. The 72B script sets K and r under names that nothing
reads; K = 60, r = 0.5 is what its printed FLOPs need.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from holitom.errors import BadUsage
from holitom.methods.fastv import FastV
from holitom.methods.holitom import HoliTom
from holitom.methods.holitom_merge import HoliTomMerge
from holitom.types import Inner, Reduction

FRAMES = {"ov-7b": 32, "ov-72b": 32, "video-7b": 64}
LAYERS = {"ov-7b": 28, "ov-72b": 80, "video-7b": 28}
MERGE_LAYER = {"ov-7b": 18, "ov-72b": 60, "video-7b": 18}


@dataclass(frozen=True)
class Preset:
    """One cell: where it stands, on which model with how many frames and decoder layers, and the setting itself."""

    table: str
    row: str
    budget: float
    model: str
    frames: int
    layers: int
    reduction: Reduction

    def scaled(self, layers: int) -> Reduction:
        """The same setting for a decoder of another depth: every inner layer K moves to round(K / L * layers), halves
        up, between 1 and layers - 1."""

        def moved(stage: Inner) -> Inner:
            layer = math.floor(stage.layer / self.layers * layers + 0.5)
            return replace(stage, layer=max(1, min(layer, layers - 1)))

        return replace(self.reduction, inner=tuple(moved(stage) for stage in self.reduction.inner))


def preset(
    table: str, row: str, budget: float | None = None, model: str | None = None, *, released: bool = False
) -> Preset:
    """The exact setting of one cell: preset("table1", "HoliTom", 0.10), preset("table2", "HoliTom", model="ov-72b").

    budget and model may be left out where only one cell fits. ``released`` turns the inner stage into what the
    released code does: layer K - 1 attends without a causal mask, and newlines count as visual tokens. Raises BadUsage
    that names the choices when nothing or more than one cell fits.
    """
    table = table.replace("_", "-")
    cells = [cell for cell in _cells() if cell.table == table]
    if not cells:
        raise BadUsage(f"no presets for {table!r}", fix=f"choose from {_listed(cell.table for cell in _cells())}")
    for name, wanted in (("row", row), ("model", model), ("budget", budget)):
        if wanted is None:
            continue
        fitting = [cell for cell in cells if _same(getattr(cell, name), wanted)]
        if not fitting:
            choices = _listed(getattr(cell, name) for cell in cells)
            raise BadUsage(f"{table} has no {name} {wanted!r} here", fix=f"choose from {choices}")
        cells = fitting
    if len(cells) > 1:
        choices = _listed(f"model={cell.model} budget={cell.budget:g}" for cell in cells)
        raise BadUsage(f"{table} {row!r} stands for several cells", fix=f"say which of {choices}")
    return replace(cells[0], reduction=_as_released(cells[0].reduction)) if released else cells[0]


def preset_names(table: str | None = None) -> list[tuple[str, str, float, str]]:
    """(table, row, budget, model) of every preset, in the papers' order; each tuple is an argument list of preset."""
    wanted = table.replace("_", "-") if table else None
    return [(c.table, c.row, c.budget, c.model) for c in _cells() if wanted in (None, c.table)]


def outer_for(model: str, budget: float) -> HoliTom:
    """tau 0.65 at 10 % on LLaVA-OneVision-7B, 0.80 everywhere else."""
    return HoliTom(tau=0.65 if model == "ov-7b" and math.isclose(budget, 0.10) else 0.80)


@cache
def _cells() -> tuple[Preset, ...]:
    return tuple(_all_cells())


def _all_cells() -> Iterator[Preset]:
    for table in ("table1", "fig-tradeoff"):
        yield from _baselines(table, "ov-7b")
        for budget in (0.25, 0.20, 0.15, 0.10):
            yield from _holitom(table, "ov-7b", budget)
    for model in ("ov-72b", "video-7b"):
        yield from _baselines("table2", model)
        yield from _holitom("table2", model, 0.15)
    yield from _baselines("fig-inference", "ov-7b")
    yield from _holitom("fig-inference", "ov-7b", 0.10)
    yield from _inner_sweep()
    for frames in (16, 32, 64, 128):
        suffix = f", {frames} frames"
        yield _cell("fig-frames", "Vanilla" + suffix, "ov-7b", 1.0, frames=frames)
        yield _cell("fig-frames", "HoliTom (w/o M)" + suffix, "ov-7b", 0.15, frames=frames)


def _baselines(table: str, model: str) -> Iterator[Preset]:
    yield _cell(table, "Vanilla", model, 1.0)
    yield _cell(table, "FastV", model, 1.0, inner=(FastV(layer=2, ratio=0.8),))


def _holitom(table: str, model: str, budget: float) -> Iterator[Preset]:
    yield _cell(table, "HoliTom (w/o M)", model, budget)
    yield _cell(table, "HoliTom", model, budget, inner=(HoliTomMerge(layer=MERGE_LAYER[model], ratio=0.5),))


def _inner_sweep() -> Iterator[Preset]:
    """Merging against dropping inside the language model, both behind the 10 % outer stage: the figure's point at
    K = 18, r = 0.5 is Table 1's HoliTom at 10 %."""
    settings = [(layer, 0.5) for layer in (2, 7, 14, 18, 21)] + [(14, ratio) for ratio in (0.3, 0.4, 0.6, 0.7)]
    for layer, ratio in settings:
        for name, stage in (("FastV", FastV(layer, ratio)), ("HoliTom", HoliTomMerge(layer, ratio))):
            yield _cell("fig-inner", f"{name} K={layer} r={ratio:g}", "ov-7b", 0.10, inner=(stage,))


def _cell(
    table: str, row: str, model: str, budget: float, inner: tuple[Inner, ...] = (), frames: int | None = None
) -> Preset:
    outer = None if budget == 1.0 else outer_for(model, budget)
    reduction = Reduction(row, outer, budget, inner)
    return Preset(table, row, budget, model, frames or FRAMES[model], LAYERS[model], reduction)


def _as_released(reduction: Reduction) -> Reduction:
    stages = (
        replace(stage, causal=False, include_newlines=True) if isinstance(stage, HoliTomMerge) else stage
        for stage in reduction.inner
    )
    return replace(reduction, name=f"{reduction.name} (released)", inner=tuple(stages))


def _same(value: object, wanted: object) -> bool:
    if isinstance(value, float) and isinstance(wanted, (int, float)):
        return math.isclose(value, wanted, abs_tol=1e-9)
    return value == wanted


def _listed(choices: Iterator[object]) -> str:
    return ", ".join(dict.fromkeys(str(choice) for choice in choices))
