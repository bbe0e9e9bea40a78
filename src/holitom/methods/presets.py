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
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product

from holitom import methods
from holitom.errors import BadUsage
from holitom.methods.flashvid import flashvid
from holitom.methods.hieravid import hieravid
from holitom.types import Inner, Reduction, check_budget

FRAMES = {"ov-7b": 32, "ov-72b": 32, "video-7b": 64}
CELLS = {"ov-7b": 196, "ov-72b": 196, "video-7b": 169}
LAYERS = {"ov-7b": 28, "ov-72b": 80, "video-7b": 28}
MERGE_LAYER = {"ov-7b": 18, "ov-72b": 60, "video-7b": 18}
BUDGETS = (0.25, 0.20, 0.15, 0.10)
ANY_BUDGET = ("table1", "table2", "fig-tradeoff", "later")
"""Tables whose rows can be asked for at a budget that is not printed."""
RELEASED = partial(methods.HoliTomMerge, causal=False, include_newlines=True)
"""HoliTom's inner stage as its tables were measured."""
ROWS = {
    "FastV": Reduction(inner=(methods.FastV(layer=2, ratio=0.8),)),
    "PDrop": Reduction(inner=methods.PyramidDrop().stages()),
    "DyCoke": Reduction(outer=methods.DyCoke()),
    "DyCoke + decode selection": Reduction(outer=methods.DyCoke(), decode=methods.DyCokeDecode(3, 0.7)),
    "VisionZip": Reduction(outer=methods.VisionZip()),
    "PruneVid": Reduction(outer=methods.PruneVid()),
    "PruneVid + selection": Reduction(outer=methods.PruneVid(), inner=(methods.PruneVidSelect(),)),
    "FastVID": Reduction(outer=methods.FastVID()),
    "MMG-Vid": Reduction(outer=methods.MMGVid()),
    "UniComp": Reduction(outer=methods.UniComp()),
    "V-CAST": Reduction(outer=methods.VCast()),
    "Unified pool": Reduction(outer=methods.UnifiedPool()),
    "FlashVID (fe = 1)": Reduction(outer=methods.FlashVID()),
}
"""The stages of the rows whose stages do not depend on budget or model."""
FIG_INNER = {
    f"{name} K={layer} r={ratio:g}": (stage(layer, ratio),)
    for layer, ratio in [*((k, 0.5) for k in (2, 7, 14, 18, 21)), *((14, r) for r in (0.3, 0.4, 0.6, 0.7))]
    for name, stage in (("FastV", methods.FastV), ("HoliTom", RELEASED))
}
"""Merging against dropping behind the 10 % outer stage; K = 18, r = 0.5 is Table 1's HoliTom at 10 %."""
FIG_FRAMES = [f"{row}, {n} frames" for n in (16, 32, 64, 128) for row in ("VisionZip", "PruneVid", "HoliTom (w/o M)")]
PRINTED = (
    ("table1 fig-tradeoff", "ov-7b", (1.0,), ("Vanilla", "FastV", "PDrop")),
    ("table1 fig-tradeoff", "ov-7b", (0.25,), ("DyCoke",)),
    ("table1 fig-tradeoff", "ov-7b", BUDGETS, ("VisionZip", "PruneVid", "FastVID", "HoliTom (w/o M)", "HoliTom")),
    ("table2", "ov-72b", (1.0,), ("Vanilla", "FastV")),
    ("table2", "ov-72b", (0.15,), ("VisionZip", "PruneVid", "HoliTom (w/o M)", "HoliTom")),
    ("table2", "video-7b", (1.0,), ("Vanilla", "FastV", "PDrop")),
    ("table2", "video-7b", (0.15,), ("VisionZip", "HoliTom (w/o M)", "HoliTom")),
    ("fig-inference", "ov-7b", (1.0,), ("Vanilla", "FastV", "PDrop")),
    ("fig-inference", "ov-7b", (0.20,), ("VisionZip", "PruneVid")),
    ("fig-inference", "ov-7b", (0.15,), ("PruneVid",)),  # its label, 57.1, is Table 1's at 20 and at 15 %
    ("fig-inference", "ov-7b", (0.10,), ("HoliTom (w/o M)", "HoliTom")),
    ("fig-inner", "ov-7b", (0.10,), FIG_INNER),
    ("fig-frames", "ov-7b", (1.0,), [f"Vanilla, {n} frames" for n in (16, 32, 64, 128)]),
    ("fig-frames", "ov-7b", (0.15,), FIG_FRAMES),
    ("mmg-vid", "ov-7b video-7b", (1.0,), ("Vanilla",)),
    ("mmg-vid", "ov-7b", (0.25, 0.15), ("MMG-Vid",)),
    ("mmg-vid", "video-7b", (0.15, 0.10), ("MMG-Vid",)),
    ("later", "ov-7b", BUDGETS, ("UniComp", "FlashVID")),
    ("later", "ov-7b", (0.10, 0.05), ("Unified pool",)),
    ("later", "ov-7b", (0.10,), ("FlashVID (fe = 1)",)),
    ("hieravid", "video-7b", (1.0,), ("Vanilla",)),
    ("hieravid", "video-7b", (0.30, 0.20, 0.10), ("HieraVid",)),  # a share is the mean over the layers
)
"""Tables, models, budgets and rows of the cells that a paper prints."""
BESIDE = (
    ("table1", "ov-7b", BUDGETS, ("HoliTom (text)",)),
    ("table2", "ov-72b video-7b", (0.15,), ("HoliTom (text)",)),
    ("complete", "ov-7b", (0.25,), ("DyCoke + decode selection",)),
    ("complete", "ov-7b", BUDGETS, ("PruneVid + selection",)),
    ("later", "ov-7b", (*BUDGETS, 0.05), ("UniComp", "V-CAST", "Unified pool", "FlashVID", "FlashVID (fe = 1)")),
)
"""The same of cells that no paper prints: the text's reading of HoliTom, methods with every stage that they have, and
what of the later ones is not above."""


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
        if len(made.inner) >= layers:
            what = f"{self.row} has {len(made.inner)} stages inside the decoder, which has {layers} layers"
            raise BadUsage(what, fix=f"use a decoder of {len(made.inner) + 1} layers or more")
        inner: list[Inner] = []
        for number, stage in enumerate(made.inner):
            free = inner[-1].layer + 1 if inner else 1
            behind = len(made.inner) - number  # this stage and those after it
            inner.append(replace(stage, layer=min(max(free, self._moved(stage.layer, layers)), layers - behind)))
        decode = made.decode and replace(made.decode, layer=max(1, self._moved(made.decode.layer, layers)))
        whole = made.outer is not None and made.budget == whole_tokens(self.model, self.budget)
        return replace(made, budget=self.budget if whole else made.budget, inner=tuple(inner), decode=decode)

    def _moved(self, layer: int, layers: int) -> int:
        return math.floor(layer / self.layers * layers + 0.5)


def preset(table: str, row: str, budget: float | None = None, model: str | None = None) -> Preset:
    """The exact setting of one cell: preset("table1", "HoliTom", 0.10), preset("table2", "HoliTom", model="ov-72b").

    budget and model may be left out where only one cell fits. A row of ANY_BUDGET that reduces tokens before the
    language model takes any budget. BadUsage that names the choices when nothing or more than one cell fits.
    """
    table, cells = table.replace("_", "-"), list(_cells().values())
    asked = {"table": table, "row": row, "model": model, "budget": budget and round(budget, 9)}
    for name, wanted in asked.items():
        found = [cell for cell in cells if wanted in (None, getattr(cell, name))]
        if not found and name == "budget" and table in ANY_BUDGET:
            models = dict.fromkeys(cell.model for cell in cells if cell.reduction.outer is not None)
            found = [_cell(table, row, check_budget(budget), one, printed=False) for one in models]
        if not found:
            choices = dict.fromkeys(str(getattr(cell, name)) for cell in cells)
            raise BadUsage(f"there is no {name} {wanted!r} here", fix=f"choose from {', '.join(choices)}")
        cells = found
    if len(cells) > 1:
        choices = (f"model={cell.model} budget={cell.budget:g}" for cell in cells)
        raise BadUsage(f"{table} {row!r} stands for several cells", fix=f"say which of {', '.join(choices)}")
    return cells[0]


def preset_names(table: str | None = None) -> list[tuple[str, str, float, str]]:
    """(table, row, budget, model) of every preset; each tuple is an argument list of preset."""
    wanted = table.replace("_", "-") if table else None
    return [names for names in _cells() if wanted in (None, names[0])]


def whole_tokens(model: str, budget: float) -> float:
    """The share that ceil(budget * N) tokens of each frame are: the count behind the FLOPs cells (20 % of 196: 40)."""
    return math.ceil(round(budget * CELLS[model], 9)) / CELLS[model]


@cache
def _cells() -> dict[tuple[str, str, float, str], Preset]:
    cells: dict[tuple[str, str, float, str], Preset] = {}  # by their names, in the order of the tables
    for listed in (PRINTED, BESIDE):
        for tables, models, budgets, rows in listed:
            for names in product(tables.split(), rows, budgets, models.split()):
                cells.setdefault(names, _cell(*names, printed=listed is PRINTED))
    return cells


def _cell(table: str, row: str, budget: float, model: str, printed: bool) -> Preset:
    """A cell by its names. HoliTom's tau is 0.65 at 10 % on LLaVA-OneVision-7B, taken further below that, and 0.80
    everywhere else. What takes a count per frame has to be asked for whole tokens: HoliTom rounds up in every frame by
    itself, FastVID's release rounds the share itself down (39 of 196 tokens at 20 %), the others state the share."""
    method, _, frames = row.removesuffix(" frames").partition(", ")
    layers, merge_layer = LAYERS[model], MERGE_LAYER[model]
    if row == "FlashVID":
        made = flashvid(budget, layers)
    elif row == "HieraVid":
        made = hieravid(f"{budget:.0%}", layers)
    elif row in FIG_INNER or method.startswith("HoliTom"):
        outer = methods.HoliTom(tau=0.65 if model == "ov-7b" and budget < 0.10 + 1e-9 else 0.80)
        merge = {"HoliTom": (RELEASED(merge_layer, 0.5),), "HoliTom (text)": (methods.HoliTomMerge(merge_layer, 0.5),)}
        made = Reduction(outer=outer, budget=budget, inner={**FIG_INNER, **merge}.get(row, ()))
    else:
        made = ROWS.get(method, Reduction())
        whole = isinstance(made.outer, methods.VisionZip | methods.PruneVid | methods.DyCoke)
        made = replace(made, budget=whole_tokens(model, budget) if whole else budget)
    return Preset(table, row, budget, model, int(frames or FRAMES[model]), layers, replace(made, name=row), printed)
