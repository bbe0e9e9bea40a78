"""FastVID (arXiv 2503.11187): cut the video where frames change, keep the salient tokens of every frame, and merge the
others of a segment into anchors of a few of its frames. After LunarShen/FastVID at a40a109, the LLaVA-OneVision code
(fastvid_llavaonevision, modeling_qwen2.py :: Qwen2Model.forward).

1. DySeg: a segment ends at the c - 1 least similar pairs of neighbouring frames, and wherever their cosine is below
   tau. A frame's vector is the output of SigLIP's attention-pooling head, which the LLaVA-OneVision checkpoints do not
   have (models.saliency reads it from SigLIP's own).
2. STPrune: of R = int(r N) tokens per frame, ctx = int(d R) are context; the R - ctx cells that the query of that head
   attends to most are kept as they are.
3. Density-based anchors: a segment's last frame and every p-th before it carry int(ctx * frames / carriers) each, the
   highest density peaks (k = 4) among the frame's other tokens.
4. Merging: for every carrier, each token of the segment that is not salient joins the most similar (cosine) of its
   anchors, anchors too: w * anchor + (1 - w) * mean of what joined, w = max(1 / (count + 1), beta). A token is so
   merged once per carrier. A carrier with exactly ctx anchors takes in its own frame only, as in a segment of one.
5. Tokens stay in raster order with the positions of the full prompt.

So counts are rounded down, per frame and per carrier. Deviations: ties between densities go to the lower index (the
release adds random noise); at least one token per frame stays; short videos get fewer segments and crowded frames fewer
anchors (the release fails there); budget 1 is the identity.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding, normalize

from holitom.methods.base import OuterStage, every_token, on_host, token_set
from holitom.ops.clusters import group_scores
from holitom.ops.tensors import frame_mean, group_mean, grouped, ids_of, neighbour_cosine, on, ranks, workspace
from holitom.types import Fidelity, TokenSet, VideoFeatures, check_budget


@dataclass(frozen=True)
class FastVID(OuterStage):
    """segments (c), tau: where to cut; context (d): share of the budget that goes to anchors; step (p): distance of the
    anchor frames; beta: least weight of an anchor; k: neighbours in the density. ``size`` of an anchor counts what
    joined it.

    head "siglip": frame_embed and head_saliency of SigLIP's pooling head, as published. "substitute": for models
    without that head, the mean of a frame's tokens and the attention received in the tower (saliency); frames then look
    more alike, so tau cuts less. Raises BadUsage for a budget outside (0, 1], a missing field, and a NaN.
    """

    segments: int = 8
    tau: float = 0.9
    context: float = 0.4
    step: int = 4
    beta: float = 0.6
    k: int = 4
    head: Literal["siglip", "substitute"] = "siglip"

    positions = "original"

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"frame_embed", "head_saliency"} if self.head == "siglip" else {"saliency"})

    @property
    def fidelity(self) -> Fidelity:
        return "golden" if self.head == "siglip" else "port"

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        """Reduce one video. One copy to the host: where segments end."""
        budget, fields, means = check_budget(budget), self.fields(video), frame_mean(video.tokens)
        # 1. Segments.
        ends = on_host(self.ends(fields.get("frame_embed", means)), tokens=means, **fields)
        if budget == 1:
            return every_token(video)
        start = np.flatnonzero(np.append(True, ends))
        lengths = np.diff(start, append=video.frames)
        first, last = np.repeat(start, lengths), np.repeat(start + lengths - 1, lengths)  # of every frame's segment
        # 2. Salient tokens; the rest of every frame, by cell.
        kept = max(1, int(video.cells * budget))
        context = int(kept * self.context)
        salience = ranks(fields["head_saliency" if self.head == "siglip" else "saliency"])
        salient = salience < kept - context
        rest = salience.sort(dim=1).indices[:, kept - context :].sort(dim=1).values
        rest += torch.arange(video.frames, device=rest.device)[:, None] * video.cells  # [T, left] rows of the video
        # 3. Anchors: ``each`` in every carrier of a segment.
        frame, length, carriers = np.arange(video.frames), last - first + 1, (last - first) // self.step + 1
        each = context * length // carriers
        alone, each = each == context, np.minimum(each, rest.shape[1])
        carries = ((last - frame) % self.step == 0) & (each > 0)
        rows, total, here = video.tokens.flatten(0, 1), int(each[carries].sum()), rest[on(carries.nonzero()[0], rest)]
        chosen = ranks(group_scores(rows, here, None, self.k)) < on(each[carries], rest)[:, None]
        anchors = here.flatten()[ids_of(chosen.flatten(), total)]
        # 4. What joins them: a frame knows the anchors of its segment, or of itself alone.
        begin = np.append(0, (each * carries).cumsum())[np.where(alone, frame, first)]
        joins = np.where(alone, carries, each > 0)
        shape = np.stack([each, np.where(alone, 1, carriers)], 1)
        tokens, size = self._merge(rows, rest, anchors, joins, begin, shape)
        # 5. In order.
        mask = salient.flatten().index_fill(0, anchors, True)
        ids = ids_of(mask, video.frames * (kept - context) + total)
        place, out = torch.searchsorted(ids, anchors), rows[ids]
        out[place] = tokens.to(out.dtype)
        return token_set(video, ids, out, torch.ones(len(ids), device=ids.device).index_copy_(0, place, size))

    def ends(self, frames: Tensor) -> Tensor:
        """Step 1: frame vectors [T, E] -> which of the frames but the last end a segment [T - 1]."""
        similar = neighbour_cosine(frames[:, None])[:, 0]
        return (similar < float(np.float32(self.tau))) | (ranks(-similar) < self.segments - 1)

    def _merge(
        self, rows: Tensor, rest: Tensor, anchors: Tensor, joins: np.ndarray, begin: np.ndarray, shape: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Anchors [A] -> merged [A, D] float32, and how many tokens joined each [A]. What is left of the frames in
        ``joins`` [T] joins anchors from ``begin`` [T] on, one of a few in each of many carriers: ``shape`` [T, 2]."""
        owner, member = [], []
        for few, many in np.unique(shape[joins], axis=0).tolist():  # frames of like segments
            alike = np.flatnonzero(joins & (shape == (few, many)).all(1))
            pieces = len(alike) * (rest.shape[1] + few * many) * rows.shape[1] // workspace(rows)
            for some in np.array_split(alike, min(len(alike), pieces + 1)):
                slots = on(begin[some], rest)[:, None] + torch.arange(few * many, device=rest.device)
                free = rest[on(some, rest)]
                # Cosine: the norm of what joins changes no choice.
                heads = normalize(embedding(anchors[slots], rows).float(), dim=-1)
                nearest = (heads @ embedding(free, rows).float().mT).unflatten(1, (many, few)).argmax(2)
                owner.append((slots[:, ::few, None] + nearest).flatten())
                member.append(free[:, None].expand_as(nearest).flatten())
        owner, member = (torch.cat([rest.new_empty(0), *parts]) for parts in (owner, member))
        order, size = grouped(owner, torch.arange(len(anchors), device=rest.device))
        mean = group_mean(rows, member[order], size).float()
        own = (1 / (size + 1)).clamp_min(self.beta).masked_fill(size == 0, 1)[:, None]
        return mean.mul_(1 - own).addcmul_(rows[anchors].float(), own), size.clamp_min(1).float()
