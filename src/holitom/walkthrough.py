"""HoliTom's outer stage on one video, with its intermediate results kept for pictures and explanations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holitom.methods import HoliTom
from holitom.ops.segmentation import best_segments
from holitom.ops.similarity import neighbour_similarity
from holitom.types import TokenSet, VideoFeatures

DROPPED, CARRIED, DYNAMIC, MERGED = range(4)
FATES = ("dropped", "static, carried by a merged token", "dynamic, kept", "static, kept as a merged token")


@dataclass(frozen=True)
class Walk:
    """What happened to every cell of a video. segments: first and last frame of each, inclusive; static: cells whose
    similarity stays above tau through their whole segment; fate: one of DROPPED, CARRIED, DYNAMIC, MERGED per cell."""

    video: VideoFeatures
    method: HoliTom
    budget: float
    similarity: Float[Tensor, "pairs cells"]
    segments: tuple[tuple[int, int], ...]
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
    def removed_by_time(self) -> int:
        """Tokens that temporal merging alone removes: what the segmentation maximises."""
        return sum(int(self.static[first].sum()) * (last - first) for first, last in self.segments)

    def per_frame(self, fate: int) -> Int[Tensor, " frames"]:
        """How many cells of each frame met ``fate``."""
        return (self.fate == fate).sum(dim=1)


def walk(video: VideoFeatures, method: HoliTom, budget: float) -> Walk:
    """Run the outer stage and lay open its steps: similarity [T - 1, N], segments, static cells, and every cell's fate.

    The kept tokens come from ``method`` itself; the steps before come from the same operations with the same
    parameters.
    """
    similarity = neighbour_similarity(video.tokens)
    segments = tuple(
        (int(first), int(last)) for first, last in best_segments(similarity, method.tau, method.max_window)
    )
    static = torch.zeros(video.frames, video.cells, dtype=torch.bool)
    for first, last in segments:
        if last > first:
            static[first : last + 1] = (similarity[first:last] > method.tau).all(dim=0)
    kept = method(video, budget)
    fate = torch.full((video.frames, video.cells), DROPPED)
    fate[static] = CARRIED
    alive = torch.zeros_like(static)
    alive[kept.frame, kept.cell] = True
    fate[alive & static] = MERGED
    fate[alive & ~static] = DYNAMIC
    return Walk(video, method, budget, similarity, segments, static, kept, fate)
