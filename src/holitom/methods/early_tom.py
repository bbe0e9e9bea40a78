"""EarlyTom (arXiv 2605.30010): merge whole frames inside the vision tower, which then works on fewer of them.

Behind each of three layers of the tower, for every video, with s(i, j) the mean over positions of the cosine between
the states of frames i and j:
1. Segments. A frame begins a new one when it is unlike the segment's first frame, or when the segment is full: the
   smoothed similarity 0.9 s(first, t) + 0.1 (that of the frame before, 1 behind a cut) falls below ``tau``.
2. The first and last frame of a segment stay. Among those between, a frame t and its successor are merged when
   s(t, t + 1) is above s(first, last) of the segment and above s(t + 1, t + 2), if t + 2 lies between as well.
3. The merged states are w x_t + (1 - w) x_(t + 1), w = s(t, t + 1) / (s(t, t + 1) + s(t + 1, t + 2)).
The remaining frames keep all of their positions and go on through the tower; at the next layer they are cut afresh.

A reconstruction, because the release (viridisGreen/EarlyTom at b909322) was not run: from a description of it and of
the paper, of the tower's part alone. Any outer stage may follow. The release then chooses tokens by the tower's
attention maps, most salient ones in a segment's outer frames and the best of local windows between; neither those maps
nor eager attention are used here.

One preset for everything. The release tunes tau and the layers for each benchmark and ratio (VideoMME 0.3 to 0.7,
MVBench 0.65 to 0.8; layers 6, 14, 20 or 8, 21, 23 or 10, 21, 23), so its printed scores are not those of one setting:
tau 0.8 is its most frequent value and the most cautious, and its ablation of the first layer scores best at 6.
Chosen here, where the text is open: layers count from 0, and merging acts on what they put out. Deviations: the release
drops a last frame between that finds no partner, and the second frame of a pair without a successor (w = 1); here the
one stays and the other gets equal weights. Frames that are exactly equal are not merged, as there: no pair stands out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from holitom.errors import BadUsage
from holitom.methods.base import OVERFLOW
from holitom.ops.tensors import neighbour_cosine, row_norms

SMOOTHING = 0.9
"""Weight of a frame's own similarity in the smoothed one."""


@dataclass(frozen=True)
class EarlyTom:
    """layers: of the tower, ascending, behind which frames are merged; tau: similarity below which a segment ends;
    longest: frames of a segment at most (below 4 nothing can be merged). BadUsage for a NaN."""

    layers: tuple[int, ...] = (6, 14, 20)
    tau: float = 0.8
    longest: int = 6

    fidelity = "reconstruction"

    @property
    def identity(self) -> bool:
        """Whether these parameters merge nothing, whatever the video."""
        return self.longest < 4 or not self.layers

    def __call__(self, hidden: Tensor) -> tuple[Tensor, Sequence[int]]:
        """States [T, P, C] of one video behind a layer -> those that are left [T', P, C] in the same dtype, and the one
        that holds each frame [T]. Decided in float32, without gradients, in one copy to the host."""
        groups = self.groups(similarities(hidden, self.longest - 1))
        into = [t for t, (i, j, _) in enumerate(groups) for _ in {i, j}]
        if len(groups) == len(hidden):
            return hidden, into
        left, right, weight = zip(*groups, strict=True)
        states, pairs = hidden[list(left)], [t for t, (i, j, _) in enumerate(groups) if i != j]
        weights = hidden.new_tensor([weight[t] for t in pairs], dtype=torch.float32)[:, None, None]
        later = hidden[[right[t] for t in pairs]].float()
        states[pairs] = torch.lerp(later, states[pairs].float(), weights).to(states.dtype)
        return states, into

    def groups(self, near: np.ndarray) -> list[tuple[int, int, float]]:
        """near [lags, T]: the similarity of frames t and t + 1 + lag -> the frames i, j that are merged, and the weight
        of i (a frame that stays: i = j), in order."""
        first, smooth = [0], 1.0
        for t in range(1, near.shape[1]):
            begin = first[-1]
            full = t - begin >= self.longest
            smooth = smooth if full else SMOOTHING * near[t - begin - 1, begin] + (1 - SMOOTHING) * smooth
            if full or smooth < self.tau:
                first.append(t)
                smooth = 1.0
        ends = [*first[1:], near.shape[1]]
        return [one for begin, end in zip(first, ends, strict=True) for one in _merged(near, begin, end - 1)]


def similarities(hidden: Tensor, lags: int) -> np.ndarray:
    """[max(1, lags), T] on the host: mean cosine over positions of the frames t and t + 1 + lag of states [T, P, C], 0
    behind the end. Linear in T. BadUsage for a NaN or an infinity."""
    near, norms = hidden.new_zeros(max(1, lags), len(hidden), dtype=torch.float32), row_norms(hidden.detach())
    for lag in range(1, min(len(near), len(hidden) - 1) + 1):
        near[lag - 1, :-lag] = neighbour_cosine(hidden, norms, lag).mean(1)
    found = near.double().cpu().numpy()
    if not np.isfinite(found).all():
        what = "the states of the vision tower hold a NaN or an infinity"
        raise BadUsage(what, fix=f"check its precision {OVERFLOW}")
    return found


def _merged(near: np.ndarray, begin: int, last: int) -> Iterator[tuple[int, int, float]]:
    """The frames begin..last of one segment, as pairs that are merged and frames that stay."""
    yield begin, begin, 1.0
    t, bar = begin + 1, near[last - begin - 1, begin] if last > begin else 0.0
    while t < last:
        here, follows = near[0, t], t + 2 < last
        after = near[0, t + 1] if follows else here
        if t + 1 < last and here > bar and (here > after or not follows):
            yield t, t + 1, float(here / (here + max(after, 0.0))) if here > 0 else 0.5
            t += 2
        else:
            yield t, t, 1.0
            t += 1
    if last > begin:
        yield last, last, 1.0
