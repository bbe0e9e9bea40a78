"""What one setting does to one clip: the kept tokens, what each stands for, segments, counts per frame. Cached."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int

from holitom_repro.explorer.clips import Clip
from holitom_repro.explorer.sources import NOBODY, reduce_with_sources
from holitom_repro.explorer.state import Side
from holitom.methods import HoliTom, MMGVid
from holitom.ops.similarity import neighbour_cosine
from holitom.types import Outer, TokenSet, VideoFeatures, check_budget

DROPPED, CARRIED, ALONE, GROUP = range(4)
"""What becomes of a cell: nothing stands for it; a token elsewhere stands for it; it is kept and stands for itself;
it is kept and stands for others too."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """One reduction of one clip. owner: per source token the kept token it went into, or NOBODY; segments: first and
    last frame of each, inclusive (empty: the method cuts the video into none); seconds: of the reduction alone."""

    method: Outer
    budget: float | int
    kept: TokenSet
    owner: Int[np.ndarray, "frames cells"]
    grid: tuple[int, int]
    segments: tuple[tuple[int, int], ...]
    seconds: float

    @property
    def total(self) -> int:
        return self.owner.size

    @property
    def realised(self) -> float:
        """Share of the visual tokens that is kept."""
        return len(self.kept) / self.total

    @cached_property
    def size(self) -> Int[np.ndarray, " kept"]:
        """How many source tokens each kept token stands for, itself included."""
        return np.bincount(self.owner[self.owner != NOBODY], minlength=len(self.kept))

    @cached_property
    def fate(self) -> Int[np.ndarray, "frames cells"]:
        """DROPPED, CARRIED, ALONE or GROUP per cell."""
        fate = np.where(self.owner == NOBODY, DROPPED, CARRIED)
        fate[self.frame, self.cell] = np.where(self.size > 1, GROUP, ALONE)
        return fate

    @property
    def frame(self) -> Int[np.ndarray, " kept"]:
        return self.kept.frame.numpy()

    @property
    def cell(self) -> Int[np.ndarray, " kept"]:
        return self.kept.cell.numpy()

    def per_frame(self, fate: int) -> Int[np.ndarray, " frames"]:
        """How many cells of each frame met ``fate``."""
        return (self.fate == fate).sum(axis=1)

    @cached_property
    def paint(self) -> Int[np.ndarray, " kept"]:
        """A colour number below COLOURS for every token that stands for several cells; touching groups differ."""
        return _painted(self.owner.reshape(-1, *self.grid), self.size)


COLOURS = 6


def outcome(clip: Clip, side: Side) -> Outcome:
    """Reduce; a setting that was tried before is remembered. Raises BadUsage as the methods do."""
    return _outcome(clip, side.outer(), check_budget(side.budget))


@lru_cache(maxsize=128)
def _outcome(clip: Clip, method: Outer, budget: float | int) -> Outcome:
    started = time.perf_counter()
    with torch.no_grad():
        method(clip.video, float(budget))
    seconds = time.perf_counter() - started
    kept, owner = reduce_with_sources(method, clip.video, budget)
    places = owner.numpy()
    return Outcome(method, budget, kept, places, clip.video.grid, _segments(method, clip.video, places), seconds)


@lru_cache(maxsize=16)
def similarity(clip: Clip) -> Float[np.ndarray, "pairs cells"]:
    """Cosine of every cell with the same cell of the next frame."""
    return neighbour_cosine(clip.video.tokens).float().numpy()


def _segments(method: Outer, video: VideoFeatures, owner: np.ndarray) -> tuple[tuple[int, int], ...]:
    """The method's own segments where it has them; else the stretches of frames that no token reaches beyond."""
    if isinstance(method, HoliTom):
        return tuple((int(first), int(last)) for first, last in method.segments(video).pairs)
    if isinstance(method, MMGVid):
        ends = np.cumsum(method.segments(video))
        return tuple((int(end - n), int(end - 1)) for end, n in zip(ends, np.diff(ends, prepend=0), strict=True))
    return _stretches(owner)


def _stretches(owner: np.ndarray) -> tuple[tuple[int, int], ...]:
    frames = len(owner)
    at = np.repeat(np.arange(frames), owner.shape[1])[owner.ravel() != NOBODY]
    token = owner[owner != NOBODY]
    count = int(owner.max(initial=NOBODY)) + 1
    first, last = np.full(count, frames), np.full(count, -1)
    np.minimum.at(first, token, at)
    np.maximum.at(last, token, at)
    crossed = np.zeros(frames + 1, dtype=np.int64)
    real = last >= first
    np.add.at(crossed, first[real] + 1, 1)  # the boundary before frame t is crossed by tokens with first < t <= last
    np.add.at(crossed, last[real] + 1, -1)
    cut = crossed.cumsum()[1:frames] == 0
    if cut.all():  # every frame on its own: the method has no notion of time
        return ()
    edges = np.concatenate([[0], np.flatnonzero(cut) + 1, [frames]])
    return tuple((int(a), int(b - 1)) for a, b in pairwise(edges))


def _painted(owner: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Greedy colouring in the order of the tokens, over neighbours inside frames."""
    pairs = [
        np.stack([owner[:, :, 1:].ravel(), owner[:, :, :-1].ravel()]),
        np.stack([owner[:, 1:].ravel(), owner[:, :-1].ravel()]),
    ]
    touching = np.concatenate(pairs, axis=1)
    touching = touching[:, (touching[0] != touching[1]) & (touching.min(0) != NOBODY)]
    touching = touching[:, (size[touching] > 1).all(axis=0)]
    touching = np.unique(np.sort(touching, axis=0), axis=1) if touching.size else touching
    near: dict[int, list[int]] = {}
    for a, b in touching.T.tolist():  # a < b: when b is painted, a has its colour
        near.setdefault(b, []).append(a)
    paint = np.arange(len(size)) % COLOURS
    for token in sorted(near):
        taken = np.bincount(paint[near[token]], minlength=COLOURS)
        paint[token] = min(range(COLOURS), key=lambda c: (taken[c], (c - token) % COLOURS))
    return paint
