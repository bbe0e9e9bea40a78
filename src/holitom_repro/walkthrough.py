"""HoliTom's outer stage on one video, with its intermediate results kept for pictures and explanations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holitom.methods import HoliTom
from holitom.ops.segmentation import Segments
from holitom.ops.similarity import neighbour_cosine
from holitom.types import TokenSet, VideoFeatures

DROPPED, CARRIED, DYNAMIC, MERGED = range(4)
FATES = ("dropped", "static, carried by a merged token", "kept as it is", "static, kept as a merged token")


@dataclass(frozen=True)
class Walk:
    """What happened to every cell of a video. found: the segments and their static cells; static: cells whose
    similarity stays above tau through their whole segment; fate: one of DROPPED, CARRIED, DYNAMIC, MERGED per cell."""

    video: VideoFeatures
    method: HoliTom
    budget: float | int
    similarity: Float[Tensor, "pairs cells"]
    found: Segments
    static: Bool[Tensor, "frames cells"]
    kept: TokenSet
    fate: Int[Tensor, "frames cells"]

    @property
    def total(self) -> int:
        return self.video.frames * self.video.cells

    @property
    def realised(self) -> float:
        """Share of visual tokens that survive; the release's rounding makes it differ from the budget."""
        return len(self.kept) / self.total

    @property
    def segments(self) -> list[tuple[int, int]]:
        """First and last frame of each segment, inclusive."""
        return self.found.pairs

    @property
    def removed_by_time(self) -> int:
        """Tokens that temporal merging alone removes: what the segmentation maximises."""
        return self.found.removed

    @property
    def remaining_ratio(self) -> float:
        """The share kept of what temporal merging leaves (rho' of the paper), at most 1."""
        return min(1.0, self.budget / (1 - self.removed_by_time / self.total))

    def per_frame(self, fate: int) -> Int[Tensor, " frames"]:
        """How many cells of each frame met ``fate``."""
        return (self.fate == fate).sum(dim=1)


def walk(video: VideoFeatures, method: HoliTom, budget: float | int) -> Walk:
    """Run the outer stage and lay open its steps: similarity [T - 1, N], segments, static cells, and every cell's fate.

    The kept tokens come from ``method`` itself; the steps before come from the same operations with the same
    parameters.
    """
    similarity = neighbour_cosine(video.tokens)
    found = method.segments(video)
    static = torch.from_numpy(found.static).repeat_interleave(torch.from_numpy(found.lengths), dim=0)
    kept = method(video, budget)
    alive, merged = torch.zeros_like(static), torch.zeros_like(static)
    alive[kept.frame, kept.cell] = True
    if kept.size is not None:
        merged[kept.frame, kept.cell] = kept.size > 1
    fate = torch.where(static, CARRIED, DROPPED)
    fate[alive] = DYNAMIC
    fate[merged & static] = MERGED
    return Walk(video, method, budget, similarity, found, static, kept, fate)
