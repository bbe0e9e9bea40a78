"""What one setting does to one clip: the kept tokens, what each stands for, segments, tokens per frame. Cached."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from holitom.flops import LLM_SHAPES, tokens_per_layer
from holitom.types import TokenSet
from holitom_repro.explore.clips import Clip
from holitom_repro.explore.settings import LAYERS, Side
from holitom_repro.explore.sources import NOBODY, reduce_with_sources
from holitom_repro.method_page import ALONE, CARRIED, DROPPED, MERGED

COLOURS = 6
FULL = 32 * 196  # visual tokens of LLaVA-OneVision-7B's 32 frames


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
        shape = LLM_SHAPES["ov-7b"]
        return shape.paper(self.layer_tokens) / shape.paper([FULL] * LAYERS)

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
        pairs = (owner[:, :, 1:], owner[:, :, :-1]), (owner[:, 1:], owner[:, :-1])
        touching = np.concatenate([np.stack([a.ravel(), b.ravel()]) for a, b in pairs], axis=1)
        touching = touching[:, (touching[0] != touching[1]) & (touching.min(0) != NOBODY)]
        touching = np.sort(touching[:, (self.size[touching] > 1).all(0)], axis=0)
        near: dict[int, set[int]] = {}
        for a, b in touching.T.tolist():  # a < b: when b is painted, a has its colour
            near.setdefault(b, set()).add(a)
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
        ends = np.cumsum(getattr(found, "lengths", found))
    else:
        token, first = np.unique(owner, return_index=True)
        _, last = np.unique(owner.ravel()[::-1], return_index=True)
        real = token != NOBODY
        first, last = first[real] // cells, frames - 1 - last[real] // cells
        t = np.arange(1, frames)[:, None]
        ends = np.append(t[~((first < t) & (t <= last)).any(1)], frames)
        if len(ends) == frames:  # every frame on its own: the method has no notion of time
            return ()
    return tuple(zip([0, *ends[:-1].tolist()], (ends - 1).tolist(), strict=True))
