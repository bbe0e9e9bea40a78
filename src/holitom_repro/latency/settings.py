"""Which settings are timed: the rows of the papers' figure at their own budgets, and every method at one budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from holitom.errors import BadUsage
from holitom.methods import FastVID, MMGVid, ToMe
from holitom.methods.presets import preset, preset_names
from holitom_repro.suggestions import nearest
from holitom.types import Inner, Outer, Reduction, VideoFeatures

FULL = "Vanilla"
PRINTED = (
    (FULL, 1.0),
    ("FastV", 1.0),
    ("PDrop", 1.0),
    ("VisionZip", 0.20),
    ("PruneVid", 0.15),
    ("HoliTom (w/o M)", 0.10),
    ("HoliTom", 0.10),
)
"""The rows of the TTFT figure with the budgets that its own scores point to (data/papers/fig_inference.csv)."""
NAMES = {
    "full": FULL,
    "fastv": "FastV",
    "pdrop": "PDrop",
    "pyramiddrop": "PDrop",
    "visionzip": "VisionZip",
    "prunevid": "PruneVid",
    "fastvid": "FastVID",
    "dycoke": "DyCoke",
    "mmg-vid": "MMG-Vid",
    "hieravid": "HieraVid",
    "tome": "ToMe",
    "holitom": "HoliTom",
    "holitom-outer": "HoliTom (w/o M)",
}
"""Names on the command line -> rows."""
INSIDE = ("FastV", "PDrop")
BESIDE: dict[str, Outer] = {"FastVID": FastVID(), "MMG-Vid": MMGVid(), "ToMe": ToMe()}
"""Rows that the figure does not print, with the same parameters at every budget."""


def row_of(name: str) -> str:
    """The row that a name on the command line, or a row's own name, stands for."""
    if name in NAMES.values():
        return name
    if name.lower() not in NAMES:
        raise BadUsage(f"--method {name}{nearest(name, list(NAMES))}", fix=f"use one of {', '.join(NAMES)}")
    return NAMES[name.lower()]


def printed_setting(row: str, layers: int) -> Reduction:
    """A row of the TTFT figure as printed, at its own budget, for a decoder of ``layers`` layers."""
    budget = dict(PRINTED)[row]
    return preset("fig-inference", row, budget if budget < 1 else None).scaled(layers)


def setting(row: str, budget: float, model: str, layers: int) -> Reduction:
    """A row at a budget. model: whose presets give the other parameters ("ov-7b", "video-7b", "ov-72b").

    The budget is the share of visual tokens that enter the language model. FastV and PyramidDrop let all of them in;
    theirs is the mean share over the layers, reached by what they keep at the printed layers, and HieraVid's presets
    are named by theirs. Where no table has the row at this budget, the nearest one's parameters are used with this
    budget. BadUsage where a method cannot reach it.
    """
    if row == FULL:
        return Reduction(FULL)
    if row in BESIDE:
        return Reduction(row, BESIDE[row], budget)
    if row == "HieraVid":
        return preset("hieravid", row, budget).scaled(layers)
    if row in INSIDE:
        made = preset("fig-inference", row).scaled(layers)
        return replace(made, inner=at_mean(made.inner, budget, layers))
    near = _nearest(row, budget, model)
    made = preset(*near).scaled(layers)
    return replace(made, budget=budget if abs(near[2] - budget) > 1e-9 else made.budget)


def at_mean(stages: Sequence[Inner], share: float, layers: int) -> tuple[Inner, ...]:
    """Inner stages that keep ``share`` of the tokens in the mean over the layers, in their own proportions.

    FastV's ratio is what it drops, PyramidDrop's what it keeps of the tokens at the start.
    """
    drops = [type(stage).__name__ == "FastV" for stage in stages]
    kept = [1 - stage.ratio if dropped else stage.ratio for stage, dropped in zip(stages, drops, strict=True)]
    ends = [stage.layer for stage in stages[1:]] + [layers]
    spans = [end - stage.layer for stage, end in zip(stages, ends, strict=True)]
    room = share * layers - stages[0].layer
    factor = room / sum(k * span for k, span in zip(kept, spans, strict=True))
    if factor <= 0 or factor * kept[0] > 1:
        least = stages[0].layer / layers
        raise BadUsage(
            f"{type(stages[0]).__name__} cannot keep {share:.0%} in the mean over {layers} layers",
            fix=f"its first layers see every token, so give a budget above {least:.1%}",
        )
    return tuple(
        replace(stage, ratio=1 - k * factor if dropped else k * factor)
        for stage, k, dropped in zip(stages, kept, drops, strict=True)
    )


def _nearest(row: str, budget: float, model: str) -> tuple[str, str, float, str]:
    """The preset of a row whose budget is nearest: of the model where there is one, of LLaVA-OneVision-7B otherwise."""
    tables = ("table1", "table2", "fig-inference")
    rows = [name for table in tables for name in preset_names(table) if name[1] == row]
    if not rows:
        raise BadUsage(f"there is no preset of {row!r}", fix=f"use one of {', '.join(dict.fromkeys(NAMES.values()))}")
    return min(rows, key=lambda name: (name[3] != model, abs(name[2] - budget), tables.index(name[0])))


def refusal(row: str, share: float, layers: int) -> str:
    """What a method says of a budget below what it can reach, without its name; tried on a video of 8 frames."""
    try:
        made = setting(row, share, "ov-7b", layers)
        if made.outer is not None:
            tokens, saliency = torch.ones(8, 4, 2), torch.ones(8, 4)
            made.outer(VideoFeatures(tokens, grid=(2, 2), saliency=saliency, keys=tokens), made.budget)
    except BadUsage as refused:
        return refused.what.split(" ", 1)[1].replace("%", " %")
    return "not recorded"
