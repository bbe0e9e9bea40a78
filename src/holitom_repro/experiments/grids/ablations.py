"""The cells of the ablations: HoliTom as published at 10 % of the tokens, and one change at a time.

A factor says, before anything is measured, what is expected of it; ``holitom_repro.ablations`` decides from the answers
whether it holds. The papers' own ablation tables were not seen, so the expectations are what the method's design or its
scripts imply.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from holitom_repro.ablations import DEFAULT, Factor
from holitom_repro.evaluation.cells import Cell
from holitom_repro.experiments.grids.stage import STAGES, VANILLA, Setting, Stage, over
from holitom.methods import FastV
from holitom.types import Reduction

BUDGET = 0.10
KINDS = {"dp": "best cut", "released": "rounded up"}
"""What two settings of the default are called beside their rivals."""


@dataclass(frozen=True)
class Change:
    """What a variant changes: fields of the outer and of the inner stage, or of the whole setting."""

    outer: Mapping[str, Any] = field(default_factory=dict)
    inner: Mapping[str, Any] = field(default_factory=dict)
    whole: Mapping[str, Any] = field(default_factory=dict)
    drop: bool = False

    def of(self, made: Reduction, name: str) -> Reduction:
        outer = replace(made.outer, **self.outer)  # type: ignore[type-var]
        inner: tuple[Any, ...] = tuple(replace(stage, **self.inner) for stage in made.inner)
        if self.drop:
            inner = tuple(FastV(layer=stage.layer, ratio=stage.ratio) for stage in inner)
        return replace(replace(made, name=name, outer=outer, inner=inner), **self.whole)


def _outer(**values: Any) -> Change:
    return Change(outer=values)


VARIANTS: dict[str, dict[str, Change]] = {
    "segmentation": {
        "windows of 4": _outer(segmentation="fixed", max_window=4),
        "windows of 8": _outer(segmentation="fixed", max_window=8),
        "windows of 16": _outer(segmentation="fixed", max_window=16),
        "threshold 0.4": _outer(segmentation="threshold", min_similar=0.4),
        "threshold 0.8": _outer(segmentation="threshold", min_similar=0.8),
        "one segment": _outer(segmentation="fixed"),
        "none, no merging": _outer(segmentation="none"),
    },
    "tau": {f"tau {tau:g}": _outer(tau=tau) for tau in (0.5, 0.8, 0.9, 0.95)},
    "longest segment": {f"{frames} frames": _outer(max_window=frames) for frames in (4, 8, 16)},
    "D": {f"D = {share:g}": _outer(cluster_share=share) for share in (0.25, 0.5)},
    "kind of cell": {
        "static by attention": _outer(static_by="saliency"),
        "dynamic by clusters (D = 1)": _outer(dynamic_by="cluster"),
        "each the other way": _outer(static_by="saliency", dynamic_by="cluster"),
    },
    "k of kNN": {f"k = {k}": _outer(k=k) for k in (1, 3, 15)},
    "beta": {"0.3": _outer(beta=0.3), "1, centre alone": _outer(beta=1.0), "plain mean": _outer(beta=None)},
    "token counts": {"exact": _outer(counts="exact")},
    "stages": {
        "outer only": Change(whole={"inner": ()}),
        "inner only, R = 0.5": Change(whole={"outer": None, "budget": 1.0}),
        "inner only, R = 0.95": Change(inner={"ratio": 0.95}, whole={"outer": None, "budget": 1.0}),
    },
    "inner average": {"true mean": Change(inner={"average": "mean"}), "drop (FastV)": Change(drop=True)},
    "inner layer": {
        "not causal": Change(inner={"causal": False}),
        "newlines too": Change(inner={"include_newlines": True}),
        "as released": Change(inner={"causal": False, "include_newlines": True}),
    },
}

FACTORS: tuple[Factor, ...] = (
    Factor(
        "segmentation",
        "The best cut scores above every other way to cut, and above no merging over time at all.",
        "needed",
        why="a global optimum instead of fixed windows or thresholds is the method's first claim",
    ),
    Factor(
        "tau",
        "At 10 % no tau scores above the scripts' 0.65.",
        "not beaten",
        why="the published scripts use 0.65 at 10 % and 0.80 elsewhere",
    ),
    Factor("longest segment", "A cap on the length of a segment changes little.", "robust", why="the cap is 1024"),
    Factor(
        "D",
        "Giving a share D of the dynamic budget to clusters does not help.",
        "not beaten",
        why="D is 0 in every published script, and D > 0 fails in the release",
    ),
    Factor(
        "kind of cell",
        "Clusters for static cells and attention for dynamic ones score above the other three combinations.",
        "needed",
        why="the method treats the two kinds of cell differently",
    ),
    Factor("k of kNN", "The number of neighbours in the density matters little.", "robust", why="fixed at 7"),
    Factor("beta", "The weight of a cluster's centre matters little.", "robust", why="fixed at 0.6, not in the text"),
    Factor(
        "token counts",
        "Rounding up in every frame is no part of the result.",
        "robust",
        why="the release keeps more tokens than asked for, most of all on a small grid",
    ),
    Factor(
        "stages",
        "The inner stage costs nothing: the outer stage alone scores the same.",
        "robust",
        rivals=("outer only",),
        why="57.9 and 57.8 are printed; the inner stage alone computes far more and is shown for scale",
    ),
    Factor(
        "inner average",
        "How the tokens are averaged, or whether at all, matters little at this layer.",
        "robust",
        why="57.9 is printed for merging and for dropping",
    ),
    Factor(
        "inner layer",
        "What the release does differently inside the model matters little.",
        "robust",
        why="with its usual attention kernel the release attends without a causal mask in one layer",
    ),
)


def cells(stage: Stage) -> list[Cell]:
    return over("ablations", stage.onevision, 32, settings(stage), stage.benchmarks)


def settings(stage: Stage) -> Iterator[Setting]:
    """All tokens, the default, then every variant as a row "factor: variant"."""
    made = stage.at("table1", "HoliTom", BUDGET)
    yield "Vanilla", VANILLA, "own"
    yield DEFAULT, made, "own"
    for factor in FACTORS:
        for variant, change in VARIANTS[factor.name].items():
            yield f"{factor.name}: {variant}", change.of(made, variant), "own"


def defaults() -> dict[str, str]:
    """Factor -> what the default has there, read from the preset that the ablations start from; without the kind of
    cell, whose expectation names it."""
    made = STAGES["paper"].at("table1", "HoliTom", BUDGET)
    outer, (inner,) = made.outer, made.inner
    return {
        "segmentation": KINDS[outer.segmentation],
        "tau": f"{outer.tau:g}",
        "longest segment": f"{outer.max_window}",
        "D": f"{outer.cluster_share:g}",
        "k of kNN": f"{outer.k}",
        "beta": f"{outer.beta:g}",
        "token counts": KINDS[outer.counts],
        "stages": f"both, R = {inner.ratio:g}",
        "inner average": inner.average,
        "inner layer": "causal" if inner.causal else "not causal",
    }
