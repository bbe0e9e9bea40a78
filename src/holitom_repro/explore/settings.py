"""What can be chosen in the explorer: one state of the page, and the reduction that each side of it stands for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from holitom import methods
from holitom.errors import BadUsage
from holitom.flops import LLM_SHAPES
from holitom.types import Inner, Outer, Reduction, check_budget

METHODS: dict[str, Callable[..., Outer]] = {
    "HoliTom": methods.HoliTom,
    "VisionZip": methods.VisionZip,
    "PruneVid": methods.PruneVid,
    "FastVID": partial(methods.FastVID, head="substitute"),  # nothing here has SigLIP's pooling head
    "MMG-Vid": methods.MMGVid,
    "HieraVid": methods.HieraVid,
    "UniComp": partial(methods.UniComp, head="substitute"),
    "V-CAST": methods.VCast,
    "FlashVID": methods.FlashVID,
    "Unified pool": methods.UnifiedPool,
    "DyCoke": methods.DyCoke,
    "ToMe": methods.ToMe,
    "Average pooling": methods.AveragePool,
    "Saliency top-k": methods.SaliencyTopK,
    "Uniform stride": methods.UniformStride,
    "Random": methods.RandomDrop,
}
"""Name -> outer stage. Add your own before the page is made: METHODS["mine"] = MyMethod."""
STAGES: dict[str, Callable[..., Inner]] = {
    "merge": partial(methods.HoliTomMerge, causal=False, include_newlines=True),  # as released
    "drop": methods.FastV,
}
INNER = {"none": "none", "merge (HoliTom)": "merge", "drop (FastV)": "drop"}
LAYERS = LLM_SHAPES["ov-7b"].layers


@dataclass(frozen=True)
class Side:
    """One of the two settings that are compared.

    method: a key of METHODS; budget: share of visual tokens kept before the language model; tau: HoliTom's threshold
    (other methods keep their own parameters); inner "merge" or "drop": a stage that merges away or drops the share
    ``ratio`` of the visual tokens in front of layer ``layer`` of LLaVA-OneVision-7B's 28; "none": no such stage.
    """

    method: str = "HoliTom"
    budget: float = 0.10
    tau: float = 0.80
    inner: str = "none"
    layer: int = 18
    ratio: float = 0.5

    @property
    def row(self) -> str:
        """Its method as tables and figures name it: HoliTom without its stage inside is "HoliTom (w/o M)"."""
        return "HoliTom (w/o M)" if self.method == "HoliTom" and self.inner != "merge" else self.method

    @property
    def label(self) -> str:
        """The whole setting; of HieraVid, whose budget is a mean over layers, only the first stage stands here."""
        first = ", first stage" if self.method == "HieraVid" else ""
        merging = "" if self.method == "HoliTom" else " + merging"
        return self.row + first + {"drop": " + FastV", "merge": merging}.get(self.inner, "")

    def reduction(self, layers: int = LAYERS) -> Reduction:
        """For a decoder of ``layers`` layers: K moves to the same share of the depth. BadUsage for what cannot be."""
        for name, known in ((self.method, METHODS), (self.inner, INNER.values())):
            if name not in known:
                raise BadUsage(f"the explorer has no {name!r}", fix=f"use one of {', '.join(known)}")
        if not -1 <= self.tau <= 1 or not 1 <= self.layer < LAYERS:
            fix = f"give a cosine from -1 to 1, and a layer from 1 to {LAYERS - 1}"
            raise BadUsage(f"tau = {self.tau}, K = {self.layer}", fix=fix)
        outer = METHODS[self.method](**({"tau": self.tau} if self.method == "HoliTom" else {}))
        layer = min(layers - 1, max(1, round(self.layer / LAYERS * layers)))
        inner = (STAGES[self.inner](layer=layer, ratio=self.ratio),) if self.inner in STAGES and self.ratio else ()
        return Reduction(self.label, outer, check_budget(self.budget), inner)


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
