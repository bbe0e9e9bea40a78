"""The settings behind the cells of the papers' tables and figures, every row of them that can be run.

Sources: the counts, K and r of every cell of HoliTom's tables follow from its FLOPs (2 to 3 digits; data/papers says
how unique each fit is); tau, beta, k and the window from the scripts of cokeshao/HoliTom at e9b2972. The 72B script
sets K and r under names that nothing reads; K = 60, r = 0.5 is what its printed FLOPs need. HoliTom's inner stage is
the released one; the paper's text describes another (causal, newlines kept), which stands beside it as "HoliTom
(text)". The other methods have the defaults of their releases: FastVID compares frames by SigLIP's own head, and of
PruneVid it is the merging stage alone, for its printed FLOPs are those of an outer stage. "later" holds what came after
HoliTom, as each paper counts: FlashVID's share is the mean over the layers, or with fe = 1 what enters them.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache

from holitom.errors import BadUsage
from holitom.methods.dycoke import DyCoke, DyCokeDecode
from holitom.methods.fastv import FastV
from holitom.methods.fastvid import FastVID
from holitom.methods.flashvid import FlashVID, flashvid
from holitom.methods.hieravid import SCHEDULES, hieravid
from holitom.methods.holitom import HoliTom, HoliTomMerge
from holitom.methods.mmg_vid import MMGVid
from holitom.methods.prunevid import PruneVid, PruneVidSelect
from holitom.methods.pyramiddrop import PyramidDrop
from holitom.methods.unicomp import UniComp
from holitom.methods.unified_pool import UnifiedPool
from holitom.methods.vcast import VCast
from holitom.methods.visionzip import VisionZip
from holitom.types import Decode, Inner, Outer, Reduction, check_budget

FRAMES = {"ov-7b": 32, "ov-72b": 32, "video-7b": 64}
CELLS = {"ov-7b": 196, "ov-72b": 196, "video-7b": 169}
LAYERS = {"ov-7b": 28, "ov-72b": 80, "video-7b": 28}
MERGE_LAYER = {"ov-7b": 18, "ov-72b": 60, "video-7b": 18}
BUDGETS = (0.25, 0.20, 0.15, 0.10)
ANY_BUDGET = ("table1", "table2", "fig-tradeoff", "later")
"""Tables whose rows can be asked for at a budget that is not printed."""
BEFORE: dict[str, Outer] = {
    "DyCoke": DyCoke(),
    "VisionZip": VisionZip(),
    "PruneVid": PruneVid(),
    "FastVID": FastVID(),
    "MMG-Vid": MMGVid(),
    "UniComp": UniComp(),
    "V-CAST": VCast(),
    "Unified pool": UnifiedPool(),
    "FlashVID (fe = 1)": FlashVID(),
}
INSIDE: dict[str, tuple[Inner, ...]] = {"FastV": (FastV(layer=2, ratio=0.8),), "PDrop": PyramidDrop().stages()}


@dataclass(frozen=True)
class Preset:
    """One cell: where it stands, on which model with how many frames and decoder layers, and the setting itself.

    budget: the share that the table prints. The setting's own budget is that, or the whole tokens per frame behind the
    printed FLOPs (40 of 196 at "20 %") for a method that takes a count per frame. printed False: a paper's row at a
    budget that the paper does not print, or a row that is none of a paper's.
    """

    table: str
    row: str
    budget: float
    model: str
    frames: int
    layers: int
    reduction: Reduction
    printed: bool = True

    def scaled(self, layers: int) -> Reduction:
        """The same setting for a model whose decoder has another depth: every stage inside it moves to round(K / L *
        layers), halves up, between 1 and layers - 1, and to the next free layer where two would meet; the budget is
        the printed share, because whole tokens per frame are those of the paper's grid. BadUsage where the decoder has
        fewer layers than stages."""
        made = self.reduction
        if layers == self.layers:
            return made
        moved = self._moved([stage.layer for stage in made.inner], layers)
        inner = tuple(replace(stage, layer=k) for stage, k in zip(made.inner, moved, strict=True))
        decode = made.decode and replace(made.decode, layer=self._moved([made.decode.layer], layers)[0])
        whole = made.outer is not None and _same(made.budget, whole_tokens(self.model, self.budget))
        return replace(made, budget=self.budget if whole else made.budget, inner=inner, decode=decode)

    def _moved(self, stages: list[int], layers: int) -> list[int]:
        if len(stages) >= layers:
            what = f"{self.row} has {len(stages)} stages inside the decoder, which has {layers} layers"
            raise BadUsage(what, fix=f"use a decoder of {len(stages) + 1} layers or more")
        places: list[int] = []
        for number, stage in enumerate(stages):
            place = max(1, math.floor(stage / self.layers * layers + 0.5), *(k + 1 for k in places[-1:]))
            places.append(min(place, layers - len(stages) + number))
        return places


def preset(table: str, row: str, budget: float | None = None, model: str | None = None) -> Preset:
    """The exact setting of one cell: preset("table1", "HoliTom", 0.10), preset("table2", "HoliTom", model="ov-72b").

    budget and model may be left out where only one cell fits. A row of ANY_BUDGET that reduces tokens before the
    language model takes any budget. BadUsage that names the choices when nothing or more than one cell fits.
    """
    table = table.replace("_", "-")
    cells = [cell for cell in _cells() if cell.table == table]
    if not cells:
        raise BadUsage(f"no presets for {table!r}", fix=f"choose from {_listed(cell.table for cell in _cells())}")
    for name, wanted in (("row", row), ("model", model), ("budget", budget)):
        fitting = [cell for cell in cells if wanted is None or _same(getattr(cell, name), wanted)]
        if not fitting and name == "budget" and table in ANY_BUDGET:
            one_each = {cell.model: cell for cell in cells if cell.reduction.outer is not None}
            fitting = [_at(cell, check_budget(budget)) for cell in one_each.values()]
        if not fitting:
            choices = _listed(getattr(cell, name) for cell in cells)
            raise BadUsage(f"{table} has no {name} {wanted!r} here", fix=f"choose from {choices}")
        cells = fitting
    if len(cells) > 1:
        choices = _listed(f"model={cell.model} budget={cell.budget:g}" for cell in cells)
        raise BadUsage(f"{table} {row!r} stands for several cells", fix=f"say which of {choices}")
    return cells[0]


def preset_names(table: str | None = None) -> list[tuple[str, str, float, str]]:
    """(table, row, budget, model) of every preset, in the papers' order; each tuple is an argument list of preset."""
    wanted = table.replace("_", "-") if table else None
    return [(c.table, c.row, c.budget, c.model) for c in _cells() if wanted in (None, c.table)]


def outer_for(model: str, budget: float) -> HoliTom:
    """tau 0.65 at 10 % on LLaVA-OneVision-7B, taken further below that; 0.80 everywhere else."""
    return HoliTom(tau=0.65 if model == "ov-7b" and budget < 0.10 + 1e-9 else 0.80)


def whole_tokens(model: str, budget: float) -> float:
    """The share that ceil(budget * N) tokens of each frame are: the count behind the FLOPs cells (20 % of 196: 40)."""
    return math.ceil(round(budget * CELLS[model], 9)) / CELLS[model]


@cache
def _cells() -> tuple[Preset, ...]:
    return tuple(_all_cells())


def _all_cells() -> Iterator[Preset]:
    for table in ("table1", "fig-tradeoff"):
        yield from _rows(table, "ov-7b", 1.0, "Vanilla", "FastV", "PDrop")
        yield from _rows(table, "ov-7b", 0.25, "DyCoke")
        for budget in BUDGETS:
            yield from _rows(table, "ov-7b", budget, "VisionZip", "PruneVid", "FastVID", "HoliTom")
    yield from _rows("table2", "ov-72b", 1.0, "Vanilla", "FastV")
    yield from _rows("table2", "ov-72b", 0.15, "VisionZip", "PruneVid", "HoliTom")
    yield from _rows("table2", "video-7b", 1.0, "Vanilla", "FastV", "PDrop")
    yield from _rows("table2", "video-7b", 0.15, "VisionZip", "HoliTom")
    yield from _rows("fig-inference", "ov-7b", 1.0, "Vanilla", "FastV", "PDrop")
    yield from _rows("fig-inference", "ov-7b", 0.20, "VisionZip", "PruneVid")
    yield from _rows("fig-inference", "ov-7b", 0.15, "PruneVid")  # its label, 57.1, is Table 1's at 20 and at 15 %
    yield from _rows("fig-inference", "ov-7b", 0.10, "HoliTom")
    # Merging against dropping behind the 10 % outer stage; K = 18, r = 0.5 is Table 1's HoliTom at 10 %.
    for layer, ratio in [*((k, 0.5) for k in (2, 7, 14, 18, 21)), *((14, r) for r in (0.3, 0.4, 0.6, 0.7))]:
        for name, stage in (("FastV", FastV(layer, ratio)), ("HoliTom", _as_released(layer, ratio))):
            row = f"{name} K={layer} r={ratio:g}"
            yield _cell("fig-inner", row, "ov-7b", 0.10, outer_for("ov-7b", 0.10), (stage,))
    for frames in (16, 32, 64, 128):
        for row, budget in (("Vanilla", 1.0), ("VisionZip", 0.15), ("PruneVid", 0.15), ("HoliTom (w/o M)", 0.15)):
            outer = outer_for("ov-7b", budget) if "HoliTom" in row else BEFORE.get(row)
            yield _cell("fig-frames", f"{row}, {frames} frames", "ov-7b", budget, outer, frames=frames)
    # Methods with every stage they have, where the tables compare one.
    decode = DyCokeDecode(3, 0.7)
    yield _cell("complete", "DyCoke + decode selection", "ov-7b", 0.25, DyCoke(), decode=decode, printed=False)
    for budget in BUDGETS:
        yield _cell("complete", "PruneVid + selection", "ov-7b", budget, PruneVid(), (PruneVidSelect(),), printed=False)
    for model, budgets in (("ov-7b", (0.25, 0.15)), ("video-7b", (0.15, 0.10))):
        yield from _rows("mmg-vid", model, 1.0, "Vanilla")
        for budget in budgets:
            yield from _rows("mmg-vid", model, budget, "MMG-Vid")
    for budget in (*BUDGETS, 0.05):
        scored = {"UniComp": budget > 0.05, "V-CAST": False, "Unified pool": budget <= 0.10, "FlashVID": budget > 0.05}
        for row, printed in {**scored, "FlashVID (fe = 1)": budget == 0.10}.items():
            yield _cell("later", row, "ov-7b", budget, BEFORE.get(row), printed=printed)
    yield from _rows("hieravid", "video-7b", 1.0, "Vanilla")
    for schedule in SCHEDULES:  # a share is the mean over the layers
        cell = _cell("hieravid", "HieraVid", "video-7b", int(schedule.rstrip("%")) / 100)
        yield replace(cell, reduction=replace(hieravid(schedule, cell.layers), name="HieraVid"))


def _rows(table: str, model: str, budget: float, *rows: str) -> Iterator[Preset]:
    """Rows by name; "HoliTom" is its row without the inner stage, with it, and with the text's one in a table."""
    for row in rows:
        if row == "HoliTom":
            outer, layer = outer_for(model, budget), MERGE_LAYER[model]
            yield _cell(table, "HoliTom (w/o M)", model, budget, outer)
            yield _cell(table, "HoliTom", model, budget, outer, (_as_released(layer, 0.5),))
            if table in ("table1", "table2"):
                yield _cell(table, "HoliTom (text)", model, budget, outer, (HoliTomMerge(layer, 0.5),), printed=False)
        else:
            yield _cell(table, row, model, budget, BEFORE.get(row), INSIDE.get(row, ()))


def _as_released(layer: int, ratio: float) -> HoliTomMerge:
    return HoliTomMerge(layer, ratio, causal=False, include_newlines=True)


def _cell(
    table: str,
    row: str,
    model: str,
    budget: float,
    outer: Outer | None = None,
    inner: tuple[Inner, ...] = (),
    decode: Decode | None = None,
    frames: int | None = None,
    printed: bool = True,
) -> Preset:
    reduction = _setting(row, model, budget, outer, inner, decode)
    return Preset(table, row, budget, model, frames or FRAMES[model], LAYERS[model], reduction, printed)


def _at(cell: Preset, budget: float) -> Preset:
    """A cell's setting at a budget that its table does not print."""
    made = cell.reduction
    outer = outer_for(cell.model, budget) if isinstance(made.outer, HoliTom) else made.outer
    reduction = _setting(cell.row, cell.model, budget, outer, made.inner, made.decode)
    return replace(cell, budget=budget, reduction=reduction, printed=False)


def _setting(
    row: str, model: str, budget: float, outer: Outer | None, inner: tuple[Inner, ...], decode: Decode | None
) -> Reduction:
    """What takes a count per frame has to be asked for whole tokens. HoliTom rounds up in every frame by itself,
    FastVID's release rounds the share itself down (39 of 196 tokens at 20 %), the others state the share."""
    if row == "FlashVID":
        return flashvid(budget, LAYERS[model])
    asked = whole_tokens(model, budget) if isinstance(outer, VisionZip | PruneVid | DyCoke) else budget
    return Reduction(row, outer, asked, inner, decode)


def _same(value: object, wanted: object) -> bool:
    numbers = isinstance(value, float) and isinstance(wanted, (int, float))
    return math.isclose(value, wanted, abs_tol=1e-9) if numbers else value == wanted


def _listed(choices: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(str(choice) for choice in choices))
