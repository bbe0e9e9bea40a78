"""The cells behind the finding about the causal mask: HoliTom's inner stage as its text reads and as its release runs.

The release attends without a causal mask in layer K - 1 during the prefill, and counts newline embeddings as visual
tokens. The first alone and both together run at the budgets of Table 1, the first also at the layers of the
inner-merging figure, so that what they do to the scores is measured and not guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from holitom_repro.evaluation.cells import Cell
from holitom_repro.experiments.grids.holitom_figures import PAPER_K
from holitom_repro.experiments.grids.stage import PAPER_BUDGETS, VANILLA, Setting, Stage, over
from holitom.methods.presets import preset
from holitom.types import Reduction

CLEAN, NOT_CAUSAL, RELEASED = "HoliTom", "HoliTom, not causal", "HoliTom, as released"


def cells(stage: Stage) -> list[Cell]:
    made = over("findings", stage.onevision, 32, _settings(stage), stage.benchmarks)
    if stage.video:
        made += over("findings", stage.video, 64, _video(stage), stage.benchmarks)
    return made


def _settings(stage: Stage) -> Iterator[Setting]:
    yield "Vanilla", VANILLA, "own"
    for budget in PAPER_BUDGETS:
        made = stage.at("table1", "HoliTom", budget)
        yield CLEAN, made, "own"
        yield NOT_CAUSAL, _without_mask(made), "own"
        yield RELEASED, _released("table1", budget, "ov-7b", stage.layers), "own"
    lowest = stage.at("table1", "HoliTom", PAPER_BUDGETS[-1])
    for layer in dict.fromkeys(stage.depth(k) for k in PAPER_K):
        moved = replace(lowest, inner=tuple(replace(one, layer=layer) for one in lowest.inner))
        if moved.inner != lowest.inner:
            yield CLEAN, moved, "own"
            yield NOT_CAUSAL, _without_mask(moved), "own"


def _video(stage: Stage) -> Iterator[Setting]:
    """LLaVA-Video's newlines stand behind every row of the grid, so the release folds many of them."""
    made = stage.at("table2", "HoliTom", 0.15, "video-7b")
    yield "Vanilla", VANILLA, "own"
    yield CLEAN, made, "own"
    yield NOT_CAUSAL, _without_mask(made), "own"
    yield RELEASED, _released("table2", 0.15, "video-7b", stage.layers), "own"


def _without_mask(made: Reduction) -> Reduction:
    inner = tuple(replace(one, causal=False) for one in made.inner)  # type: ignore[type-var]
    return replace(made, name=NOT_CAUSAL, inner=inner)


def _released(table: str, budget: float, model: str, layers: int) -> Reduction:
    made = preset(table, "HoliTom", budget, model=model, released=True).scaled(layers=layers)
    return replace(made, name=RELEASED)
