"""What can be chosen in the explorer: one state of the page, checked, and the reduction that each side stands for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from holitom import methods
from holitom.errors import BadUsage
from holitom_repro.figures.style import ALIASES, Look, look
from holitom.flops import LLM_SHAPES
from holitom.methods import FastV, HoliTomMerge
from holitom_repro.suggestions import nearest
from holitom.types import Inner, Outer, Reduction, check_budget

INNER = {"none": "none", "merge": "merge (HoliTom)", "drop": "drop (FastV)"}
LAYERS = LLM_SHAPES["ov-7b"].layers


@cache
def outer_methods() -> Mapping[str, type]:
    """Every outer method of ``holitom.methods`` by the name of its class, HoliTom first."""
    found = {name: getattr(methods, name) for name in methods.__all__}
    outer = {name: made for name, made in found.items() if isinstance(made, type) and hasattr(made, "requires")}
    return {name: outer[name] for name in sorted(outer, key=lambda name: (name != "HoliTom", name.lower()))}


def shown_name(method: str) -> str:
    """The name that tables and figures show for a class of ``holitom.methods``."""
    return ALIASES.get(method, method)


@dataclass(frozen=True)
class Side:
    """One of the two settings that are compared.

    method: a key of ``outer_methods``; budget: share of visual tokens kept before the language model; tau: HoliTom's
    threshold (other methods keep their own parameters); inner: a key of INNER, the stage that folds ("merge") or drops
    a share ``ratio`` of the visual tokens in front of layer ``layer`` of LLaVA-OneVision-7B's 28.
    """

    method: str = "HoliTom"
    budget: float | int = 0.10
    tau: float | int = 0.80
    inner: str = "none"
    layer: int = 18
    ratio: float | int = 0.5

    @property
    def label(self) -> str:
        """How the papers call it: HoliTom without its inner stage is "HoliTom (w/o M)". Of HieraVid, whose share is a
        mean over layers, only the first stage stands here, and its name says so."""
        name = f"{self._row}, first stage" if self.method == "HieraVid" else self._row
        if self.inner == "drop":
            return f"{name} + FastV"
        return f"{name} + merging" if self.inner == "merge" and self.method != "HoliTom" else name

    @property
    def look(self) -> Look:
        """Colour and marker of its outer method in every figure of the kit. BadUsage for a method without."""
        return look(self._row)

    @property
    def _row(self) -> str:
        """Its outer method as tables and figures name it."""
        return "HoliTom (w/o M)" if self.method == "HoliTom" and self.inner != "merge" else shown_name(self.method)

    @property
    def settings(self) -> str:
        """Its parameters in one line."""
        parts = [f"τ = {self.tau:g}"] if self.method == "HoliTom" else []
        return ", ".join(parts + ([f"K = {self.layer}", f"R = {self.ratio:g}"] if self.inner != "none" else []))

    def outer(self) -> Outer:
        """The outer stage. BadUsage for an unknown method or a tau that is no cosine."""
        known = outer_methods()
        if self.method not in known:
            raise BadUsage(
                f"there is no method {self.method!r}{nearest(self.method, list(known))}",
                fix=f"use one of {', '.join(known)}",
            )
        if not -1 <= self.tau <= 1:
            raise BadUsage(f"tau {self.tau} is not a cosine", fix="give a number from -1 to 1, for instance 0.8")
        return known[self.method](tau=float(self.tau)) if self.method == "HoliTom" else known[self.method]()

    def stages(self, layers: int = LAYERS) -> tuple[Inner, ...]:
        """The inner stage for a decoder of ``layers`` layers: K moves to round(K / 28 * layers), within 1 and the last.
        A ratio of 0 asks for nothing. BadUsage for an unknown stage, a K or a ratio out of range."""
        if self.inner not in INNER:
            raise BadUsage(f"there is no inner stage {self.inner!r}", fix=f"use one of {', '.join(INNER)}")
        if self.inner == "none" or self.ratio == 0:
            return ()
        if not 1 <= self.layer < LAYERS or not 0 < self.ratio < 1:
            raise BadUsage(
                f"K = {self.layer}, R = {self.ratio}", fix=f"give K from 1 to {LAYERS - 1} and R from 0 to below 1"
            )
        layer = min(layers - 1, max(1, math.floor(self.layer / LAYERS * layers + 0.5)))
        made = HoliTomMerge if self.inner == "merge" else FastV
        return (made(layer=layer, ratio=float(self.ratio)),)

    def reduction(self, layers: int = LAYERS) -> Reduction:
        """The whole setting. BadUsage for anything that does not exist."""
        return Reduction(self.label, self.outer(), check_budget(self.budget), self.stages(layers))


@dataclass(frozen=True)
class State:
    """Everything the page depends on. clip: a name of ``clips.shipped()``, or the path of a video file; frames: how
    many are sampled; focus: the frame that is drawn large, from 0; question: which question about a clip of the tiny
    world; second: None shows one setting alone."""

    clip: str = "three_shots"
    frames: int = 32
    focus: int = 10
    question: int = 0
    first: Side = Side(inner="merge")
    second: Side | None = Side(method="VisionZip")

    @property
    def sides(self) -> tuple[Side, ...]:
        return (self.first,) if self.second is None else (self.first, self.second)

    def within(self, frames: int, questions: int) -> State:
        """The same state with focus and question moved into the clip's range."""
        return replace(
            self,
            focus=min(max(0, self.focus), max(0, frames - 1)),
            question=min(max(0, self.question), max(0, questions - 1)),
        )
