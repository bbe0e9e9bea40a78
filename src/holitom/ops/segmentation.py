"""Cutting a video into segments so that merging static cells over time removes as many tokens as possible.

A cell is static over frames i..j when every neighbouring pair in between has a similarity above tau. Merging a segment
removes static(i, j) * (j - i) tokens, and the best cut is a dynamic programme over the T x T gains (the objective of
HoliTom's global redundancy-aware segmentation). Instead of a [T, T, N] tensor, the gains come from run lengths:
static(i, j) is the number of cells whose run of similar pairs beginning at i has at least j - i pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holitom.errors import BadUsage


@dataclass(frozen=True)
class Segments:
    """A partition of the frames, on the host. first, last: [S] inclusive frames; static: [S, N] the cells merged over
    each segment (none in a segment of one frame); removed: how many tokens that merging takes away."""

    first: np.ndarray
    last: np.ndarray
    static: np.ndarray
    removed: int

    def __len__(self) -> int:
        return len(self.first)

    @property
    def lengths(self) -> np.ndarray:
        return self.last - self.first + 1

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """[(first, last), ...] as plain integers."""
        return [(int(a), int(b)) for a, b in zip(self.first, self.last, strict=True)]


def above(sim: Float[Tensor, "pairs cells"], tau: float) -> Bool[Tensor, "pairs cells"]:
    """sim > tau, strictly, with tau rounded to float32 as the release compares it."""
    return sim > float(np.float32(tau))


def run_lengths(similar: Bool[Tensor, "pairs cells"]) -> Int[Tensor, "pairs cells"]:
    """[T - 1, N] int32: how many consecutive pairs, beginning at this one, are similar."""
    pairs = similar.shape[0]
    index = torch.arange(pairs, device=similar.device, dtype=torch.int32)[:, None]
    stop = torch.where(similar, pairs, index)  # the next pair that is not similar, found by a reversed running minimum
    return (stop.flip(0).cummin(0).values.flip(0) - index).int() if pairs else stop.int()


def segment_gains(similar: Bool[Tensor, "pairs cells"], max_window: int = 1024) -> Int[Tensor, "frames lengths"]:
    """gains[i, w] = tokens removed by merging frames i..i + w: w * #(cells whose run at i is at least w). Columns stop
    at the longest run (longer windows gain nothing) or at ``max_window`` frames: [T, W + 1] int32, column 0 is zero."""
    return torch.from_numpy(_gains(run_lengths(similar.cpu()).numpy(), similar.shape[0] + 1, max_window))


def best_segments(sim: Float[Tensor, "pairs cells"], tau: float, max_window: int = 1024) -> Segments:
    """The cut that removes most tokens for these similarities; see :func:`cut`. One copy to the host."""
    return cut(above(sim, tau).cpu().numpy(), max_window)


def cut(similar: np.ndarray, max_window: int = 1024) -> Segments:
    """The cut that removes most tokens: [T - 1, N] booleans on the host -> Segments of at most ``max_window`` frames.

    Among cuts with equal gain every segment ends with a single frame if it can, else with the shortest window, which is
    the release's tie rule. The programme pushes forward from each frame, one vector operation per frame, and a later
    start that is equally good replaces an earlier one: that alone is the tie rule.
    """
    if max_window < 1:
        raise BadUsage(f"max_window {max_window} is not a positive number of frames", fix="use 1 (no merging) or more")
    frames = similar.shape[0] + 1
    runs = run_lengths(torch.from_numpy(similar)).numpy()
    gains = _gains(runs, frames, max_window)
    best = np.zeros(frames + 1, dtype=np.int64)  # best[c]: most tokens removed from the first c frames
    origin = np.zeros(frames + 1, dtype=np.int64)
    best[1:] = -1
    for start in range(frames):
        reach = min(gains.shape[1], frames - start)
        total = best[start] + gains[start, :reach]
        window = slice(start + 1, start + reach + 1)
        better = total >= best[window]
        np.copyto(best[window], total, where=better)
        np.copyto(origin[window], start, where=better)
    first = []
    end = frames
    while end:
        end = int(origin[end])
        first.append(end)
    return _segments(np.array(first[::-1]), runs, frames)


def fixed_windows(similar: np.ndarray, length: int) -> Segments:
    """Windows of ``length`` frames whatever the similarities, to compare the optimum with; 1 merges nothing."""
    frames = similar.shape[0] + 1
    runs = run_lengths(torch.from_numpy(similar)).numpy()
    return _segments(np.arange(0, frames, max(1, length)), runs, frames)


def _gains(runs: np.ndarray, frames: int, max_window: int) -> np.ndarray:
    width = min(int(runs.max(initial=0)), max_window - 1) + 1
    clipped = np.minimum(runs, width - 1)
    flat = np.bincount((np.arange(frames - 1)[:, None] * width + clipped).ravel(), minlength=frames * width)
    histogram = flat.reshape(frames, width).astype(np.int32)
    at_least = histogram[:, ::-1].cumsum(axis=1, dtype=np.int32)[:, ::-1]
    return at_least * np.arange(width, dtype=np.int32)


def _segments(first: np.ndarray, runs: np.ndarray, frames: int) -> Segments:
    last = np.append(first[1:], frames) - 1
    span = (last - first)[:, None]
    padded = np.concatenate([runs, np.zeros_like(runs, shape=(1, runs.shape[1]))])  # the last frame starts no pair
    static = (padded[first] >= span) & (span > 0)
    return Segments(first, last, static, int((static * span).sum()))
