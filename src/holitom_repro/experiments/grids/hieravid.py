"""The cells of HieraVid's table: its three schedules with either sign of relevance, beside methods at the same share of
tokens, counted as HieraVid counts it (the mean over the layers) and as the others do (before the language model)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from holitom_repro.evaluation.cells import Cell
from holitom_repro.experiments.grids.stage import VANILLA, Setting, Stage, over
from holitom.methods import RandomDrop
from holitom.methods.presets import outer_for
from holitom.types import Reduction

SHARES = (0.30, 0.20, 0.10)


def name(share: float, variant: str = "") -> str:
    """The row of a schedule: "HieraVid 30 %", with what differs from the code behind it."""
    return f"HieraVid {share:.0%}".replace("%", " %") + (f", {variant}" if variant else "")


MOST_ATTENDED, AS_COUNTED = "most attended", "counts as coded"
FIRST_STAGE = "HieraVid's first stage alone"


def cells(stage: Stage) -> list[Cell]:
    made: list[Cell] = []
    if stage.video:
        made += over("hieravid", stage.video, 64, _settings(stage, "video-7b", SHARES), stage.benchmarks)
    return made + over("hieravid", stage.onevision, 32, _settings(stage, "ov-7b", SHARES[:1]), stage.benchmarks)


def _settings(stage: Stage, model: str, shares: tuple[float, ...]) -> Iterator[Setting]:
    yield "Vanilla", VANILLA, "own"
    yield "FastV", stage.at("table2", "FastV", model="video-7b"), "own"
    for share in shares:
        made = stage.at("hieravid", "HieraVid", share)
        yield name(share), made, "own"
        for variant, field in ((MOST_ATTENDED, {"relevance": 1}), (AS_COUNTED, {"released": True})):
            stages = tuple(replace(one, **field) for one in made.inner)
            yield name(share, variant), replace(made, name=name(share, variant), inner=stages), "own"
        yield "HoliTom (w/o M)", Reduction("HoliTom (w/o M)", outer_for(model, share), share), "own"
        yield "Random", Reduction("Random", RandomDrop(seed=0), share), "own"
    first = stage.at("hieravid", "HieraVid", shares[0])
    yield FIRST_STAGE, replace(first, name=FIRST_STAGE, inner=()), "own"
