"""ToMe (arXiv 2210.09461) for video: merge tokens pairwise by bipartite soft matching, within each frame.

In rounds, until a frame has the tokens that it may keep (a round merges at most half of them):
1. Part the tokens alternately into the sets A and B.
2. Every token of A finds the most similar one of B, by the cosine of their keys (of the vision tower, mean over heads).
3. Merge the r most similar pairs into the token of B, as averages weighted by the source tokens behind each; keys too.
4. In order: what is left of A by descending similarity, then B. That order decides who meets whom in the next round.

Read in facebookresearch/ToMe at af95e4b, tome/merge.py: bipartite_soft_matching and merge_wavg, for inputs without a
class token; a round that merges nothing leaves the order alone. The paper merges a little in every block of a vision
transformer; here it acts once, after projector and pooling, and the language model does not know how many tokens stand
behind one (no proportional attention). A merged token stands in the cell of the token of B that began it. Below one
token per frame some frames are left out; budget 1 is the identity.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from holitom.methods.base import OuterStage, frame_counts, token_set
from holitom.ops.tensors import group_mean, grouped, on, ranks
from holitom.types import TokenSet, VideoFeatures


@dataclass(frozen=True)
class ToMe(OuterStage):
    """Keeps round(budget * T * N) tokens. BadUsage for missing keys and for a NaN."""

    requires = frozenset({"keys"})
    fidelity = "golden"

    def reduce(self, video: VideoFeatures, budget: float, keys: Tensor) -> TokenSet:
        counts, frames, cells = frame_counts(video, budget), video.frames, video.cells
        owner = slots = own = torch.arange(cells, device=keys.device).expand(frames, cells)
        first = torch.arange(frames, device=keys.device)[:, None] * cells
        left, wanted, metric = np.full(frames, cells), counts.clip(1), keys  # a frame left out merges all the same
        while (left > wanted).any():
            if left[0] < cells:
                metric, _ = means(keys.flatten(0, 1), owner + first, slots + first, frames * cells)
                metric = metric.unflatten(0, slots.shape)
            away = np.minimum(left // 2, left - wanted)  # frames differ in the last round only
            into, order = bipartite_matching(metric, on(away, keys))
            owner = own.scatter(1, slots, slots.gather(1, into)).gather(1, owner)
            left = left - away
            slots = slots.gather(1, order)[:, : left.max()]
        alive = np.flatnonzero(np.arange(slots.shape[1]) < counts[:, None])
        ids = (slots + first).flatten()[on(alive, keys)]
        tokens, size = means(video.tokens.flatten(0, 1), owner + first, ids, int((counts > 0).sum()) * cells)
        return token_set(video, ids, tokens, size)


def bipartite_matching(metric: Tensor, away: Tensor, *, class_token: bool = False) -> tuple[Tensor, Tensor]:
    """One round on the metric [F, n, D] of F frames, in which frame f merges ``away[f]`` tokens, at most half. Returns
    the slot that every slot goes into [F, n], itself where it stays, and the slots in their new order [F, n], those
    merged away last. class_token True: slot 0 is never merged away, and what is left of A keeps its order, as in the
    release."""
    frames, n = metric.shape[:2]
    slot = torch.arange(n, device=metric.device).expand(frames, n)
    if n == 1:
        return slot, slot
    unit = normalize(metric.float(), dim=-1)
    best, partner = (unit[:, ::2] @ unit[:, 1::2].mT).max(-1)
    if class_token:
        best[:, 0] = -torch.inf
    rank, into, place = ranks(best), slot.clone(), slot.clone()
    into[:, ::2] = torch.where(rank < away[:, None], 2 * partner + 1, slot[:, ::2])
    place[:, ::2] = slot[:, ::2] // 2 if class_token else rank
    place[:, 1::2] += n
    place = torch.where(away[:, None] == 0, slot, place.masked_fill(into != slot, 3 * n))
    return into, place.argsort(1)


def means(rows: Tensor, owner: Tensor, heads: Tensor, members: int) -> tuple[Tensor, Tensor]:
    """Means of rows [n, D] over all that belong to each head: owner, n ids; heads, m ids in any order. ``members``: how
    many rows belong to one. Returns the means [m, D] and the number of rows behind each [m]."""
    places = torch.arange(heads.numel() + 1, device=rows.device)
    place = places[-1:].repeat(len(rows)).scatter_(0, heads.flatten(), places[:-1])
    order, size = grouped(place[owner.flatten()], places)
    return group_mean(rows, order[:members], size[:-1]), size[:-1]
