"""Cutting a video into segments of frames; what stays the same in a segment can be merged over time.

A cell is static over frames i..j when every neighbouring pair in between is similar. Merging a segment removes
static(i, j) * (j - i) tokens.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from holitom.ops.tensors import group_mean, on


@dataclass(frozen=True)
class Segments:
    """A partition of the frames, on the host. first, last: [S] inclusive frames; static: [S, N] the cells that stay
    similar throughout (none in a segment of one frame)."""

    first: np.ndarray
    last: np.ndarray
    static: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    @property
    def lengths(self) -> np.ndarray:
        """[S] frames of every segment."""
        return self.last - self.first + 1

    @property
    def removed(self) -> int:
        """How many tokens merging over time takes away."""
        return int((self.static.sum(1) * (self.last - self.first)).sum())

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """[(first, last), ...] as plain integers."""
        return list(zip(self.first.tolist(), self.last.tolist(), strict=True))


def above(similarity: Tensor, tau: float) -> Tensor:
    """similarity > tau, strictly, with tau rounded to float32 as the release compares it."""
    return similarity > float(np.float32(tau))


def cut(similar: np.ndarray, max_window: int = 1024) -> Segments:
    """The segments that remove most tokens, by HoliTom's dynamic programme: similar [T - 1, N] booleans on the host ->
    segments of at most ``max_window`` frames; 1 merges nothing.

    dp[i] = max over j of dp[j] + gain(j, i). Instead of a T x T table the gains come from run lengths: merging frames
    t..t + w removes w times the number of cells whose run of similar pairs from t on is at least w long, so a frame has
    as many gains as the longest run. Pushes forward from each frame; a later start that is equally good replaces an
    earlier one, which is the release's tie rule (a single frame at the end if possible, else the shortest window).
    """
    frames, run = len(similar) + 1, _runs(similar)
    width = min(int(run.max(initial=0)) + 1, max(1, max_window))
    count = np.bincount(
        (np.arange(frames)[:, None] * width + run.clip(max=width - 1)).ravel(), minlength=frames * width
    )
    at_least = count.reshape(frames, width)[:, ::-1].cumsum(1)[:, ::-1]
    gain = at_least * np.arange(width)  # [T, W]
    best, origin = np.full(frames + 1, -1), np.zeros(frames + 1, dtype=np.int64)
    best[0] = 0  # best[c]: most tokens removed from the first c frames
    for start in range(frames):
        reach = slice(start + 1, min(start + width, frames) + 1)
        total = best[start] + gain[start, : frames - start]
        better = total >= best[reach]
        best[reach][better] = total[better]
        origin[reach][better] = start
    first = [int(origin[frames])]
    while first[-1]:
        first.append(int(origin[first[-1]]))
    return segments_from(np.array(first[::-1]), similar)


def fixed_windows(similar: np.ndarray, length: int) -> Segments:
    """Windows of ``length`` frames whatever the similarities, to compare the optimum with; 1 merges nothing."""
    return segments_from(np.arange(0, len(similar) + 1, max(1, length)), similar)


def cut_at_changes(similar: np.ndarray, share: float) -> Segments:
    """A segment ends where less than ``share`` of the cells stay similar to the next frame: similar [T - 1, N].

    HieraVid's code cuts below 0.4, with a cosine of 0.6 for a similar cell (Ethan16162/VidTokenPrune at 2733a94).
    """
    changed = np.flatnonzero(similar.mean(1) < share)
    return segments_from(np.concatenate([[0], changed + 1]), similar)


def segments_from(first: np.ndarray, similar: np.ndarray) -> Segments:
    """The segments that begin at the frames ``first`` (ascending, from 0)."""
    last = np.append(first[1:], len(similar) + 1) - 1
    span = (last - first)[:, None]
    return Segments(first, last, (_runs(similar)[first] >= span) & (span > 0))


def static_means(tokens: Tensor, segments: Segments, used: np.ndarray) -> tuple[Tensor, Tensor, Tensor, np.ndarray]:
    """The static cells of the segments that are ``used`` [S], averaged over their frames: means [n, D], the flat id of
    each one's first frame [n], its number of frames [n], and how many of them every used segment has, on the host."""
    cells, static = tokens.shape[1], segments.static & used[:, None]
    segment, cell = static.nonzero()
    first, length = segments.first[segment] * cells + cell, segments.lengths[segment]
    step = np.arange(length.sum()) - (length.cumsum() - length).repeat(length)
    members = first.repeat(length) + step * cells
    means = group_mean(tokens.flatten(0, 1), on(members, tokens), on(length, tokens))
    return means, on(first, tokens), on(length, tokens), static.sum(1)[used]


def _runs(similar: np.ndarray) -> np.ndarray:
    """[T, N] how many consecutive pairs, beginning at this frame, are similar."""
    pairs = len(similar)
    index = np.arange(pairs + 1)[:, None]
    stop = np.full((pairs + 1, similar.shape[1]), pairs)  # the next pair that is not similar, by a running minimum
    stop[:pairs][~similar] = np.broadcast_to(index[:pairs], similar.shape)[~similar]
    return np.minimum.accumulate(stop[::-1])[::-1] - index
