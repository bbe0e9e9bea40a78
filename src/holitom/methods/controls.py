"""Controls: reductions that know nothing about the video, or only its saliency. What a method must beat at its budget.

All of them keep round(budget * T * N) tokens (at least one), in raster order, and refuse a NaN. Ours, of no paper.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from holitom.methods.base import OuterStage, budget_tokens, frame_counts, token_set
from holitom.ops.tensors import group_mean, ids_of, on, top_mask
from holitom.types import TokenSet, VideoFeatures


class _Control(OuterStage):
    fidelity = "control"


@dataclass(frozen=True)
class RandomDrop(_Control):
    """Keep a uniformly random subset, another one for every video and seed; average over seeds for an expectation.

    The draw depends on ``seed``, T, N and two places that the video gives: in which token the first component is
    largest, and in which the middle one is. A change of scale, of device or in the last digits rarely moves them. The
    global random state plays no part.
    """

    seed: int = 0

    def reduce(self, video: VideoFeatures, budget: float) -> TokenSet:
        flat = video.tokens.flatten(0, 1)
        mark = torch.stack([flat[:, 0], flat[:, flat.shape[1] // 2]], dim=1).argmax(0).tolist()
        name = hashlib.blake2b(repr((self.seed, *mark)).encode(), digest_size=8).digest()
        draw = torch.Generator().manual_seed(int.from_bytes(name, "big") >> 1)
        ids = torch.randperm(len(flat), generator=draw)[: budget_tokens(video, budget)].sort().values
        return token_set(video, ids.to(flat.device))


@dataclass(frozen=True)
class UniformStride(_Control):
    """Keep every (1 / budget)-th token in raster order over the whole video. Where 1 / budget divides the grid's width
    the same columns are kept in every row."""

    def reduce(self, video: VideoFeatures, budget: float) -> TokenSet:
        wanted, total = budget_tokens(video, budget), video.frames * video.cells
        return token_set(video, on((2 * np.arange(wanted) + 1) * total // (2 * wanted), video.tokens))


@dataclass(frozen=True)
class SaliencyTopK(_Control):
    """Keep each frame's most salient tokens, the same number in every frame up to one; ``lowest`` keeps the least
    salient instead, which shows whether saliency means anything to the model at hand."""

    lowest: bool = False

    requires = frozenset({"saliency"})

    def reduce(self, video: VideoFeatures, budget: float, saliency: Tensor) -> TokenSet:
        counts = frame_counts(video, budget)
        mask = top_mask(-saliency if self.lowest else saliency, on(counts, saliency))
        return token_set(video, ids_of(mask.flatten(), counts.sum()))


@dataclass(frozen=True)
class AveragePool(_Control):
    """Average-pool every frame to its share of the tokens, frames differing by one at most.

    A frame is cut into bands of rows, and a band into bins of columns, so that bins are as square as their number
    allows and every cell is in one of them. A token stands in the middle cell of its bin; ``size`` counts its cells.
    """

    def reduce(self, video: VideoFeatures, budget: float) -> TokenSet:
        counts, (height, width) = frame_counts(video, budget), video.grid
        count = counts[:, None, None]
        bands = np.maximum(np.rint(np.sqrt(count * height / width)), np.ceil(count / width)).astype(np.int64)
        bands = bands.clip(max=np.minimum(height, count)).clip(min=1)
        band = np.arange(height)[:, None] * bands // height  # of every row, [T, H, 1]
        before = band * count // bands  # bins of the bands above
        columns = (band + 1) * count // bands - before
        bins = before + np.arange(width) * columns // width  # of every cell, [T, H, W]
        place = np.flatnonzero(np.repeat(counts > 0, video.cells))
        owner = (bins + (counts.cumsum() - counts)[:, None, None]).ravel()[place]
        members, sizes = place[owner.argsort(kind="stable")], np.bincount(owner)
        last = sizes.cumsum() - 1
        corners = np.stack([members[last - sizes + 1], members[last]])
        row, column = (corners // width).sum(0) // 2, (corners % width).sum(0) // 2
        size = on(sizes, video.tokens)
        tokens = group_mean(video.tokens.flatten(0, 1), on(members, video.tokens), size)
        return token_set(video, on(row * width + column, video.tokens), tokens, size)
