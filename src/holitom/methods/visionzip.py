"""VisionZip (arXiv 2412.04467) per frame: salient tokens as they are, the rest merged by the vision tower's keys. Facts
about the release: the port to video in cokeshao/HoliTom at e9b2972, visionzip/llava_arch.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from holitom.errors import BadUsage
from holitom.methods.inputs import every_token, frame_counts, need_field, on, refuse_non_finite
from holitom.ops.merging import bag_means
from holitom.ops.selection import mask_ids, top_per_row
from holitom.ops.similarity import row_norms
from holitom.types import Fidelity, Positions, TokenSet, VideoFeatures, check_budget


@dataclass(frozen=True)
class VisionZip:
    """Of each frame keep the most salient tokens ("dominant") and a few merged ones ("contextual").

    dominant_ratio: share of a frame's tokens that are dominant, rounded down (54 of 64 in the release). The contextual
    ones start from cells at a uniform stride among the others; each cell left over joins the one with the nearest key
    (cosine, first of equals), and the token is their mean.
    released True: the token is the starting cell plus the mean of those that joined it, a sum of about twice the norm,
    and every frame keeps ceil(budget * N) tokens.

    Order: frame by frame, dominant tokens by cell, then contextual ones by cell (that of the starting cell). The clean
    reading keeps round(budget * T * N) tokens, at least one. Raises BadUsage for a missing saliency or keys, and a NaN.
    """

    dominant_ratio: float = 54 / 64
    released: bool = False

    requires: ClassVar[frozenset[str]] = frozenset({"saliency", "keys"})
    positions: ClassVar[Positions] = "contiguous"
    deviations: ClassVar[tuple[str, ...]] = (
        "A contextual token is the mean of its cells; the releases add the mean of the joining cells to the first.",
        "It acts after the projector and the pooling, as the port to video does; the original acts before both.",
        "Saliency is the attention received from all patches, because SigLIP has no class token.",
        "With a newline per row every token keeps its own cell; the port mixes up the cells of dominant tokens.",
        "The number kept is exact over the whole video, so frames differ by up to one token; budget 1 keeps all.",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.dominant_ratio <= 1:
            raise BadUsage(
                f"dominant_ratio {self.dominant_ratio} is outside [0, 1]", fix="use 54 / 64, the released value"
            )

    @property
    def fidelity(self) -> Fidelity:
        return "golden" if self.released else "port"

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        """Reduce one video. One copy to the host (the check for NaN)."""
        budget = check_budget(budget)
        saliency, keys = need_field(self, video, "saliency"), need_field(self, video, "keys")
        refuse_non_finite({"tokens": row_norms(video.tokens), "saliency": saliency, "keys": keys})
        if budget == 1.0:
            return every_token(video)
        counts = self._counts(video, budget)
        dominant = np.floor(counts * self.dominant_ratio + 1e-9).astype(np.int64)
        context = counts - dominant
        # A frame without contextual tokens gets one all the same, left out at the end: every cell needs an owner.
        starts = np.minimum(np.maximum(context, 1), video.cells - dominant)

        salient = top_per_row(saliency, on(dominant, saliency))
        start = _stride(~salient, dominant, starts)
        frame = torch.arange(video.frames, device=keys.device)[:, None] * video.cells
        owner = (_nearest_start(keys, start, int(starts.max()), on(starts, keys)) + frame).flatten()
        rows = video.tokens.reshape(-1, video.tokens.shape[-1])
        first = mask_ids(start.flatten(), int(starts.sum()))
        merged, size = self._merge(rows, owner, salient.flatten(), start.flatten(), first, int(dominant.sum()))

        used = mask_ids(on(context > 0, first)[first // video.cells], int(context.sum()))
        heads = torch.cat([mask_ids(salient.flatten(), int(dominant.sum())), first[used]])
        late = torch.arange(len(heads), device=heads.device) >= int(dominant.sum())
        # Two blocks of N places per frame: dominant tokens, then contextual ones.
        order = (heads + (heads // video.cells + late) * video.cells).argsort()
        kept, late = heads[order], late[order]
        tokens = rows[kept]
        where = mask_ids(late, len(used))
        tokens[where] = merged[used].to(tokens.dtype)
        sizes = torch.ones(len(kept), device=kept.device).index_copy_(0, where, size[used])
        return TokenSet(tokens, kept // video.cells, kept % video.cells, sizes)

    def _merge(
        self, rows: Tensor, owner: Tensor, salient: Tensor, start: Tensor, first: Tensor, dominant: int
    ) -> tuple[Tensor, Tensor]:
        """One row in float32 for every starting cell in ``first``, and how many cells are in it."""
        outside = salient | start if self.released else salient  # cells that are in no mean
        members = len(rows) - dominant - (len(first) if self.released else 0)
        bag = (start.cumsum(0) - 1)[torch.where(start, torch.arange(len(rows), device=rows.device), owner)]
        bag, order = torch.sort(bag.masked_fill(outside, len(first)), stable=True)
        count = torch.searchsorted(bag, torch.arange(len(first) + 1, device=rows.device)).diff()
        mean = bag_means(rows, order[:members], count)
        if self.released:
            return rows[first].float() + mean, (count + 1).float()
        return mean, count.float()

    def _counts(self, video: VideoFeatures, budget: float) -> np.ndarray:
        if not self.released:
            return frame_counts(video, budget)
        # Rounded first: 30 / 196 of 196 tokens are 30, whatever the division left over.
        return np.full(video.frames, math.ceil(round(budget * video.cells, 9)))


def _stride(rest: Tensor, dominant: np.ndarray, starts: np.ndarray) -> Tensor:
    """Mask [T, N] of ``starts[t]`` cells among the remaining ones of each frame, one every floor(left / starts)."""
    step = np.maximum(1, (rest.shape[1] - dominant) // np.maximum(starts, 1))
    rank = rest.cumsum(1) - 1
    step, starts = on(step, rest)[:, None], on(starts, rest)[:, None]
    return rest & (rank % step == 0) & (rank // step < starts)


def _nearest_start(keys: Tensor, start: Tensor, width: int, starts: Tensor) -> Tensor:
    """[T, N] the starting cell whose key is nearest to each cell's."""
    if not width:
        return torch.zeros_like(start, dtype=torch.long)
    cells = torch.sort((~start).byte(), dim=1, stable=True).indices[:, :width]
    unit = normalize(keys, dim=-1)
    similar = unit @ unit.gather(1, cells[..., None].expand(-1, -1, keys.shape[-1])).transpose(1, 2)
    unused = torch.arange(width, device=keys.device) >= starts[:, None]
    return cells.gather(1, similar.masked_fill(unused[:, None, :], -torch.inf).argmax(-1))
