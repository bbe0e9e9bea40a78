"""What can be chosen in the explorer, and what one setting does to one clip: the kept tokens, what each stands for,
segments, tokens per frame."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import numpy as np
import pandas as pd

from holitom import methods
from holitom.errors import BadUsage
from holitom.flops import LLM_SHAPES, tokens_per_layer
from holitom.types import Inner, Outer, Reduction, TokenSet, check_budget
from holitom_repro.explore.clips import Clip
from holitom_repro.explore.sources import NOBODY, reduce_with_sources
from holitom_repro.method_page import ALONE, CARRIED, DROPPED, MERGED

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
SHAPE = LLM_SHAPES["ov-7b"]
LAYERS = SHAPE.layers
COLOURS = 6
FULL = 32 * 196  # visual tokens of LLaVA-OneVision-7B's 32 frames


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

    @property
    def parameters(self) -> str:
        """Its thresholds and layers in words, those that it uses."""
        inner = [] if self.inner == "none" else [f"K = {self.layer}", f"R = {self.ratio:g}"]
        return ", ".join([f"τ = {self.tau:g}"] * (self.method == "HoliTom") + inner)

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


@dataclass(frozen=True, eq=False)
class Outcome:
    """One reduction of one clip. owner: [T, N] for every source token the kept token it went into, or NOBODY; segments:
    first and last frame of each (none: the method cuts the video into none)."""

    clip: Clip
    side: Side
    kept: TokenSet
    owner: np.ndarray
    segments: tuple[tuple[int, int], ...]

    @property
    def realised(self) -> float:
        """Share of the visual tokens that is kept."""
        return len(self.kept) / self.owner.size

    @property
    def layer_tokens(self) -> list[int]:
        """In every layer of LLaVA-OneVision-7B if it kept the same share, with the stage inside."""
        stages = [(stage.layer, 1 - stage.ratio) for stage in self.side.reduction().inner]
        return tokens_per_layer(round(self.realised * FULL), LAYERS, stages)

    @property
    def flops(self) -> float:
        """Of its prefill, by the papers' formula, as a share of the unreduced model's."""
        return SHAPE.paper(self.layer_tokens) / SHAPE.paper([FULL] * LAYERS)

    @cached_property
    def size(self) -> np.ndarray:
        """[kept] how many source tokens each kept token stands for, itself included."""
        return np.bincount(self.owner[self.owner != NOBODY], minlength=len(self.kept))

    @cached_property
    def fate(self) -> np.ndarray:
        """[T, N] DROPPED, CARRIED, ALONE or MERGED."""
        fate = np.where(self.owner == NOBODY, DROPPED, CARRIED)
        fate[self.kept.frame, self.kept.cell] = np.where(self.size > 1, MERGED, ALONE)
        return fate

    def per_frame(self, fate: int) -> np.ndarray:
        """[T] how many cells of each frame met ``fate``."""
        return (self.fate == fate).sum(1)

    @cached_property
    def segment_of(self) -> np.ndarray:
        """[T] the number of every frame's segment, from 0; -1 where there are none."""
        begins = [first for first, _ in self.segments]
        return np.searchsorted(begins, np.arange(len(self.owner)), side="right") - 1

    @cached_property
    def tint(self) -> np.ndarray:
        """[kept] a number below COLOURS for every token, so that touching groups differ: greedy, in their order."""
        owner = self.owner.reshape(-1, *self.clip.video.grid)
        near: dict[int, set[int]] = {}
        for a, b in ((owner[:, :, 1:], owner[:, :, :-1]), (owner[:, 1:], owner[:, :-1])):
            touching = (a != b) & (a != NOBODY) & (b != NOBODY) & (self.size[a] > 1) & (self.size[b] > 1)
            for pair in zip(a[touching].tolist(), b[touching].tolist(), strict=True):
                near.setdefault(max(pair), set()).add(min(pair))  # which has its colour when the later is painted
        tint = np.arange(len(self.size)) % COLOURS
        for token in sorted(near):
            taken = np.bincount(tint[list(near[token])], minlength=COLOURS)
            tint[token] = min(range(COLOURS), key=lambda c: (taken[c], (c - token) % COLOURS))
        return tint


@lru_cache(maxsize=128)
def outcome(clip: Clip, side: Side) -> Outcome:
    """Reduce; a setting that was tried before is remembered. Raises BadUsage as the methods do."""
    reduction = side.reduction()
    kept, owner = reduce_with_sources(reduction.outer, clip.video, reduction.budget)
    return Outcome(clip, side, kept, owner.numpy(), _segments(clip, reduction.outer, owner.numpy()))


def _segments(clip: Clip, method: object, owner: np.ndarray) -> tuple[tuple[int, int], ...]:
    """The method's own segments where it tells them; else the stretches of frames that no token reaches beyond."""
    frames, cells = owner.shape
    if callable(own := getattr(method, "segments", None)):
        found = own(clip.video)
        ends = np.cumsum(getattr(found, "lengths", found)).tolist()
    else:
        reach = pd.Series(np.arange(owner.size) // cells).groupby(owner.ravel()).agg(["min", "max"])
        first, last = reach.drop(index=NOBODY, errors="ignore").to_numpy().T
        ends = [t for t in range(1, frames) if not ((first < t) & (t <= last)).any()] + [frames]
        if len(ends) == frames:  # every frame on its own: the method has no notion of time
            return ()
    return tuple(zip([0, *ends[:-1]], [end - 1 for end in ends], strict=True))
