"""UniComp (arXiv 2512.03575, CVPR 2026): keep what is unique, among frames and inside them; no attention. After
TimeMarker-LLM/UniComp at 895e4e5 (unicomp/llava_arch.py), with its one preset for every benchmark.

1. Frame fusion: a frame joins the group before it while 1 - cosine of its mean token with that of the group's first
   frame is at most Uf, and a group has at most int(1 / budget) + 1 frames. A group becomes one frame, its mean.
2. Allocation over the K fused frames: u = mean similarity over all of them - the frame's own mean similarity to all;
   softmax(u * sqrt(K)) shares out the budget, no frame above 2 * budget / K. Frames are compared by SigLIP's pooling
   head.
3. In every fused frame: cells in ascending order of their mean cosine with the frame's cells, by the vision tower's
   keys in the group's first frame. The first one is picked and covers all cells nearer than Uc, the next one that is
   not covered is picked, and so on. A pick becomes (own token + mean of the tokens that it covers) / 2. The first
   ones stay, as many as the frame may keep, in raster order.

A token stands in the first frame of its group. A video whose frames cover themselves with fewer picks than the budget
ends below it. The release adds a newline token behind every frame, which counts as budget nowhere; here newlines are
the host model's. A reconstruction, because counts differ: the release rounds the shares down and hands rests out in
equal whole numbers, which on small grids leaves nothing to keep; here they go by largest remainder, so that the budget
is used. Uncertain: that its keys are the mean over heads. Further: ties go to the lower index, one token stays.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from holitom.methods.base import OuterStage, every_token, on_host, token_set
from holitom.methods.mmg_vid import share_out
from holitom.ops.clusters import padding
from holitom.ops.diverse import first_come
from holitom.ops.segments import Segments, static_means
from holitom.ops.tensors import frame_mean, gram, ids_of, on, top_mask, workspace
from holitom.types import TokenSet, VideoFeatures, check_budget


@dataclass(frozen=True)
class UniComp(OuterStage):
    """frame (Uf), cell (Uc): up to which distance, 1 - cosine, frames join a group and cells are covered. head: as of
    FastVID; "substitute", the frames' mean tokens, for models without SigLIP's pooling head. Keeps at most
    int(budget * T * N) tokens. Raises BadUsage for a budget outside (0, 1], a missing field, and a NaN."""

    frame: float = 0.005
    cell: float = 0.2
    head: Literal["siglip", "substitute"] = "siglip"

    fidelity = "reconstruction"

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"keys", "frame_embed"} if self.head == "siglip" else {"keys"})

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        """Reduce one video. Copies to the host: which frames are alike, their similarities, the picks."""
        wanted, means = max(1, int(check_budget(budget) * video.frames * video.cells + 1e-9)), frame_mean(video.tokens)
        fields = self.fields(video)
        with torch.no_grad():
            unit = normalize(means, dim=-1)
            alike = on_host(1 - unit @ unit.T <= self.frame, tokens=means, **fields)
            if budget == 1:
                return every_token(video)
            # 1. Groups.
            first = groups(alike, int(1 / budget) + 1)
            lengths, where = np.diff(first, append=video.frames), on(first, means)
            # 2. The tokens of every fused frame.
            quota = _quota(normalize(fields.get("frame_embed", means)[where], dim=-1), wanted, video.cells)
            # 3. Picks.
            cosine = gram(normalize(fields["keys"][where], dim=-1))
            likeness = cosine.mean(-1)
            order = likeness.sort(dim=-1, stable=True).indices
            near = 1 - cosine < self.cell
            asked = near.gather(1, order[..., None].expand_as(near)).gather(2, order[:, None].expand_as(near))
            picked = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order, first_come(asked))
            picks = picked.sum(1).cpu().numpy()
            counts = share_out(picks, (quota + 1e-9) / picks, min(int(quota.sum()), int(picks.sum())))
            kept = top_mask(torch.where(picked, -likeness, -torch.inf), on(counts, means))
            ids = ids_of(kept.flatten(), int(counts.sum()))
            near |= torch.eye(video.cells, dtype=torch.bool, device=near.device)
        tokens = _averages(video.tokens, near, ids, lengths, counts)
        size = near.sum(-1).flatten()[ids] * on(lengths, ids)[ids // video.cells]
        return token_set(video, where[ids // video.cells] * video.cells + ids % video.cells, tokens, size)


def groups(alike: np.ndarray, most: int) -> np.ndarray:
    """Step 1: alike [T, T] -> the first frame of every group of at most ``most`` frames."""
    first = [0]
    for t in range(1, len(alike)):
        if not alike[t, first[-1]] or t - first[-1] >= most:
            first.append(t)
    return np.array(first)


def _quota(unit: Tensor, wanted: int, cells: int) -> np.ndarray:
    """Step 2: unit vectors of the fused frames [K, E] -> tokens of each [K]; ``wanted`` in all where they have them."""
    similar = (unit @ unit.mean(0)).double().cpu().numpy()
    share = np.exp((similar.mean() - similar) * len(similar) ** 0.5)
    most = np.full(len(share), min(cells, max(1, 2 * wanted // len(share))))
    return share_out(most, share / share.sum() / most, min(wanted, int(most.sum())))


def _averages(tokens: Tensor, near: Tensor, ids: Tensor, lengths: np.ndarray, counts: np.ndarray) -> Tensor:
    """(own + mean of what it covers) / 2 of every pick ``ids`` [M], places in the fused frames -> [M, D]. Some groups
    at a time, so that no copy of the video is made."""
    cells, parts, first, start = near.shape[1], [], lengths.cumsum() - lengths, counts.cumsum() - counts
    step = max(1, workspace(tokens) // tokens[0].numel())
    for i in range(0, len(lengths), step):
        some, length = slice(i, i + step), lengths[i : i + step]
        fused = tokens[first[i] : first[i] + length.sum()]
        if len(length) < len(fused):
            begin, whole = first[some] - first[i], np.ones((len(length), cells), dtype=bool)
            segments = Segments(begin, begin + length - 1, whole)
            fused = static_means(fused, segments, whole[:, 0])[0].unflatten(0, (-1, cells))
        place, inside = padding(counts[some])
        pick = on((start[some, None] + place).clip(max=len(ids) - 1), ids)
        cell = ids[pick][..., None] % cells
        weight = near[some].gather(1, cell.expand(-1, -1, cells)).float()
        weight /= 2 * weight.sum(-1, keepdim=True)
        weight.scatter_add_(2, cell, torch.full_like(weight[..., :1], 0.5))
        parts.append((weight @ fused.float()).flatten(0, 1)[on(np.flatnonzero(inside), ids)].to(tokens.dtype))
    return torch.cat(parts)
