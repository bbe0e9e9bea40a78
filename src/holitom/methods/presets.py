"""The settings behind the cells of the papers' tables and figures, every row of them that can be run.

Sources: the counts, K and r of every cell of HoliTom's tables follow from its FLOPs (2 to 3 digits; data/papers says
how unique each fit is); tau, beta, k and the window from the scripts of cokeshao/HoliTom at e9b2972. The 72B script
sets K and r under names that nothing reads; K = 60, r = 0.5 is what its printed FLOPs need. The other methods have the
defaults of their releases, and PruneVid only its merging stage, for its printed FLOPs are those of an outer stage.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from holitom.errors import BadUsage
from holitom.methods.dycoke import DyCoke, DyCokeDecode
from holitom.methods.fastv import FastV
from holitom.methods.fastvid import FastVID
from holitom.methods.hieravid import hieravid
from holitom.methods.holitom import HoliTom
from holitom.methods.holitom_merge import HoliTomMerge
from holitom.methods.mmg_vid import MMGVid
from holitom.methods.prunevid import PruneVid
from holitom.methods.prunevid_select import PruneVidSelect
from holitom.methods.pyramiddrop import PyramidDrop
from holitom.methods.visionzip import VisionZip
from holitom.types import Decode, Inner, Outer, Reduction

FRAMES = {"ov-7b": 32, "ov-72b": 32, "video-7b": 64}
CELLS = {"ov-7b": 196, "ov-72b": 196, "video-7b": 169}
LAYERS = {"ov-7b": 28, "ov-72b": 80, "video-7b": 28}
MERGE_LAYER = {"ov-7b": 18, "ov-72b": 60, "video-7b": 18}
BUDGETS = (0.25, 0.20, 0.15, 0.10)
OUTER: dict[str, Outer] = {"VisionZip": VisionZip(), "PruneVid": PruneVid(), "FastVID": FastVID()}


@dataclass(frozen=True)
class Preset:
    """One cell: where it stands, on which model with how many frames and decoder layers, and the setting itself.

    budget: the share that the table prints. The setting's own budget is that, or the whole tokens per frame behind the
    printed FLOPs (40 of 196 at "20 %") for a method that keeps exactly what it is asked for.
    """

    table: str
    row: str
    budget: float
    model: str
    frames: int
    layers: int
    reduction: Reduction

    def scaled(self, layers: int) -> Reduction:
        """The same setting for a model whose decoder has another depth: every stage inside it moves to round(K / L *
        layers), halves up, between 1 and layers - 1, and to the next free layer where two would meet; the budget is
        the printed share, because whole tokens per frame are those of the paper's grid. BadUsage where the decoder has
        fewer layers than stages."""
        if layers == self.layers:
            return self.reduction
        moved = self._moved([stage.layer for stage in self.reduction.inner], layers)
        inner = tuple(replace(stage, layer=k) for stage, k in zip(self.reduction.inner, moved, strict=True))
        decode = self.reduction.decode
        if decode is not None:
            decode = replace(decode, layer=self._moved([decode.layer], layers)[0])
        outer = self.reduction.outer
        whole = outer is not None and math.isclose(self.reduction.budget, whole_tokens(self.model, self.budget))
        budget = self.budget if whole else self.reduction.budget
        return replace(self.reduction, budget=budget, inner=inner, decode=decode)

    def _moved(self, stages: list[int], layers: int) -> list[int]:
        if len(stages) >= layers:
            raise BadUsage(
                f"{self.row} has {len(stages)} stages inside the decoder, which has {layers} layers",
                fix=f"use a decoder of {len(stages) + 1} layers or more",
            )
        places: list[int] = []
        for number, stage in enumerate(stages):
            place = max(1, math.floor(stage / self.layers * layers + 0.5), *(k + 1 for k in places[-1:]))
            places.append(min(place, layers - len(stages) + number))
        return places


def preset(
    table: str, row: str, budget: float | None = None, model: str | None = None, *, released: bool = False
) -> Preset:
    """The exact setting of one cell: preset("table1", "HoliTom", 0.10), preset("table2", "HoliTom", model="ov-72b").

    budget and model may be left out where only one cell fits. ``released`` turns every stage into what its released
    code does; of HoliTom's that is the inner one: layer K - 1 attends without a causal mask, and newlines count as
    visual tokens. Raises BadUsage that names the choices when nothing or more than one cell fits.
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
    return replace(cells[0], reduction=_as_released(cells[0])) if released else cells[0]


def preset_names(table: str | None = None) -> list[tuple[str, str, float, str]]:
    """(table, row, budget, model) of every preset, in the papers' order; each tuple is an argument list of preset."""
    wanted = table.replace("_", "-") if table else None
    return [(c.table, c.row, c.budget, c.model) for c in _cells() if wanted in (None, c.table)]


def outer_for(model: str, budget: float) -> HoliTom:
    """tau 0.65 at 10 % on LLaVA-OneVision-7B, 0.80 everywhere else."""
    return HoliTom(tau=0.65 if model == "ov-7b" and math.isclose(budget, 0.10) else 0.80)


def whole_tokens(model: str, budget: float) -> float:
    """The share that ceil(budget * N) tokens of each frame are: the count behind the FLOPs cells (20 % of 196: 40)."""
    return math.ceil(round(budget * CELLS[model], 9)) / CELLS[model]


@cache
def _cells() -> tuple[Preset, ...]:
    return tuple(_all_cells())


def _all_cells() -> Iterator[Preset]:
    for table in ("table1", "fig-tradeoff"):
        yield from _inside(table, "ov-7b", "FastV", "PDrop")
        yield _cell(table, "DyCoke", "ov-7b", 0.25, DyCoke())
        for budget in BUDGETS:
            yield from _before(table, "ov-7b", budget, "VisionZip", "PruneVid", "FastVID")
            yield from _holitom(table, "ov-7b", budget)
    yield from _inside("table2", "ov-72b", "FastV")
    yield from _before("table2", "ov-72b", 0.15, "VisionZip", "PruneVid")
    yield from _holitom("table2", "ov-72b", 0.15)
    yield from _inside("table2", "video-7b", "FastV", "PDrop")
    yield from _before("table2", "video-7b", 0.15, "VisionZip")
    yield from _holitom("table2", "video-7b", 0.15)
    yield from _inside("fig-inference", "ov-7b", "FastV", "PDrop")
    yield from _before("fig-inference", "ov-7b", 0.20, "VisionZip", "PruneVid")
    yield from _before("fig-inference", "ov-7b", 0.15, "PruneVid")  # its label, 57.1, is Table 1's at 20 and at 15 %
    yield from _holitom("fig-inference", "ov-7b", 0.10)
    yield from _inner_sweep()
    yield from _frame_sweep()
    yield from _further()


def _inside(table: str, model: str, *rows: str) -> Iterator[Preset]:
    """All tokens, and the methods that act inside the language model only."""
    stages = {"FastV": (FastV(layer=2, ratio=0.8),), "PDrop": PyramidDrop().stages()}
    yield _cell(table, "Vanilla", model, 1.0)
    for row in rows:
        yield _cell(table, row, model, 1.0, inner=stages[row])


def _before(table: str, model: str, budget: float, *rows: str) -> Iterator[Preset]:
    for row in rows:
        yield _cell(table, row, model, budget, OUTER[row])


def _holitom(table: str, model: str, budget: float) -> Iterator[Preset]:
    outer = outer_for(model, budget)
    yield _cell(table, "HoliTom (w/o M)", model, budget, outer)
    yield _cell(table, "HoliTom", model, budget, outer, (HoliTomMerge(layer=MERGE_LAYER[model], ratio=0.5),))


def _inner_sweep() -> Iterator[Preset]:
    """Merging against dropping inside the language model, both behind the 10 % outer stage: the figure's point at
    K = 18, r = 0.5 is Table 1's HoliTom at 10 %."""
    settings = [(layer, 0.5) for layer in (2, 7, 14, 18, 21)] + [(14, ratio) for ratio in (0.3, 0.4, 0.6, 0.7)]
    for layer, ratio in settings:
        for name, stage in (("FastV", FastV(layer, ratio)), ("HoliTom", HoliTomMerge(layer, ratio))):
            row = f"{name} K={layer} r={ratio:g}"
            yield _cell("fig-inner", row, "ov-7b", 0.10, outer_for("ov-7b", 0.10), (stage,))


def _frame_sweep() -> Iterator[Preset]:
    rows = (("Vanilla", 1.0, None), ("VisionZip", 0.15, OUTER["VisionZip"]), ("PruneVid", 0.15, OUTER["PruneVid"]))
    for frames in (16, 32, 64, 128):
        for row, budget, outer in (*rows, ("HoliTom (w/o M)", 0.15, outer_for("ov-7b", 0.15))):
            yield _cell("fig-frames", f"{row}, {frames} frames", "ov-7b", budget, outer, frames=frames)


def _further() -> Iterator[Preset]:
    """Methods with every stage they have ("complete"; the tables compare one), and the papers of MMG-Vid and HieraVid.
    HieraVid's share is the mean over the layers."""
    yield _cell("complete", "DyCoke + decode selection", "ov-7b", 0.25, DyCoke(), decode=DyCokeDecode(3, 0.7))
    for budget in BUDGETS:
        yield _cell("complete", "PruneVid + selection", "ov-7b", budget, PruneVid(), (PruneVidSelect(),))
    for model, budgets in (("ov-7b", (0.25, 0.15)), ("video-7b", (0.15, 0.10))):
        yield _cell("mmg-vid", "Vanilla", model, 1.0)
        for budget in budgets:
            yield _cell("mmg-vid", "MMG-Vid", model, budget, MMGVid())
    yield _cell("hieravid", "Vanilla", "video-7b", 1.0)
    for schedule, share in (("30%", 0.30), ("20%", 0.20), ("10%", 0.10)):
        made = replace(hieravid(schedule, LAYERS["video-7b"]), name="HieraVid")
        yield Preset("hieravid", "HieraVid", share, "video-7b", FRAMES["video-7b"], LAYERS["video-7b"], made)


def _cell(
    table: str,
    row: str,
    model: str,
    budget: float,
    outer: Outer | None = None,
    inner: tuple[Inner, ...] = (),
    decode: Decode | None = None,
    frames: int | None = None,
) -> Preset:
    # HoliTom rounds up in every frame by itself, MMG-Vid's tables state the share; the others have to be asked.
    asked = budget if isinstance(outer, HoliTom | MMGVid | None) else whole_tokens(model, budget)
    reduction = Reduction(row, outer, asked, inner, decode)
    return Preset(table, row, budget, model, frames or FRAMES[model], LAYERS[model], reduction)


def _as_released(cell: Preset) -> Reduction:
    made = cell.reduction
    # FastVID's release rounds down in every frame and takes the share itself: 39 of 196 tokens at 20 %.
    budget = cell.budget if isinstance(made.outer, FastVID) else made.budget
    return Reduction(
        f"{made.name} (released)",
        _released(made.outer),
        budget,
        tuple(_released(stage) for stage in made.inner),
        _released(made.decode),
    )


def _released(stage: Any) -> Any:
    if isinstance(stage, HoliTomMerge):
        return replace(stage, causal=False, include_newlines=True)
    has = stage is not None and "released" in {field.name for field in fields(stage)}
    return replace(stage, released=True) if has else stage


def _same(value: object, wanted: object) -> bool:
    if isinstance(value, float) and isinstance(wanted, (int, float)):
        return math.isclose(value, wanted, abs_tol=1e-9)
    return value == wanted


def _listed(choices: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(str(choice) for choice in choices))
