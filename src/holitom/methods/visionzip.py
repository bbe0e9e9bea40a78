"""VisionZip (arXiv 2412.04467) for video: of every frame the salient tokens as they are, and a few merged ones.

In every frame, with a budget of B tokens:
1. Dominant: the int(B * 54 / 64) most salient tokens, unchanged.
2. Contextual: B minus that. They start from cells at a uniform stride among those that are left: every
   floor(left / contextual)-th.
3. Every other cell joins the start whose key (of the vision tower, mean over heads) is nearest by the cosine.
4. A contextual token is its start plus the mean of the cells that joined it: a sum of about twice the norm.
5. In order: the dominant tokens by cell, then the contextual ones by cell.

Read in cokeshao/HoliTom at e9b2972, visionzip/llava_arch.py, the port to LLaVA-OneVision behind HoliTom's tables: it
acts after projector and pooling (the original, dvlab-research/VisionZip, before both), and SigLIP has no class token,
so saliency is the attention received from all patches. Deviations: where the budget is no whole number of tokens per
frame, which the release cannot be asked for, frames differ by one token, and may get none; budget 1 is the identity.
Every token keeps its own cell: with a newline per row the port mixes up those of the dominant tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from holitom.methods.base import OuterStage, frame_counts, token_set
from holitom.ops.clusters import padding
from holitom.ops.tensors import group_mean, grouped, ids_of, on, top_mask
from holitom.types import TokenSet, VideoFeatures


@dataclass(frozen=True)
class VisionZip(OuterStage):
    """dominant_ratio: share of a frame's tokens that are dominant, in [0, 1); 54 / 64 in the release. Keeps
    round(budget * T * N) tokens. BadUsage for a missing saliency or keys, and for a NaN."""

    dominant_ratio: float = 54 / 64

    requires = frozenset({"saliency", "keys"})
    fidelity = "golden"

    def reduce(self, video: VideoFeatures, budget: float, saliency: Tensor, keys: Tensor) -> TokenSet:
        counts, cells, rows = frame_counts(video, budget), video.cells, video.tokens.flatten(0, 1)
        dominant = np.floor(counts * self.dominant_ratio).astype(np.int64)
        context = counts - dominant  # at least one, in a frame that has tokens at all
        # 1. Dominant tokens.
        salient = top_mask(saliency, on(dominant, keys))
        chosen = ids_of(salient.flatten(), dominant.sum())
        # 2. The cells from which contextual tokens start.
        step, many = ((cells - dominant) // context.clip(1)).clip(1), on(context, keys)[:, None]
        rank = (~salient).cumsum(1) - 1
        start = ~salient & (rank % on(step, keys)[:, None] == 0) & (rank // on(step, keys)[:, None] < many)
        starts = ids_of(start.flatten(), context.sum())
        # 3. Every other cell joins one of its frame; in a frame without tokens it joins none.
        place, inside = padding(context)
        before = (context.cumsum() - context)[:, None]
        slot = on(np.where(inside, before + place, 0), keys)  # [T, most]: places in ``starts``
        unit = normalize(keys, dim=-1)
        near = unit @ unit.flatten(0, 1)[starts[slot]].mT
        nearest = near.masked_fill(~on(inside, keys)[:, None], -torch.inf).argmax(-1)
        joined = slot.gather(1, nearest).masked_fill(salient | start | (many == 0), len(starts))
        # 4. Start plus mean.
        order, size = grouped(joined.flatten(), torch.arange(len(starts) + 1, device=keys.device))
        members = order[: int((cells - counts)[counts > 0].sum())]
        merged = rows[starts].float() + group_mean(rows, members, size[:-1]).float()
        # 5. Two blocks per frame: dominant, then contextual.
        ids = torch.cat([chosen, starts])
        late = torch.arange(len(ids), device=ids.device) >= len(chosen)
        by = (ids + (ids // cells + late) * cells).argsort()
        where = by.argsort()[len(chosen) :]  # of the contextual ones
        tokens, sizes = rows[ids[by]], torch.ones_like(ids)
        tokens[where], sizes[where] = merged.to(rows.dtype), size[:-1] + 1
        return token_set(video, ids[by], tokens, sizes)
