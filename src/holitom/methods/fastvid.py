"""FastVID (arXiv 2503.11187): cut the video where frames change, keep salient tokens, and merge the others of a segment
into anchors of a few of its frames. Facts about the release: LunarShen/FastVID at a40a109, the LLaVA-OneVision code
(fastvid_llavaonevision, modeling_qwen2.py) and the plain one of its LLaVA-Video and Qwen2.5-VL ports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from holitom.errors import BadUsage
from holitom.methods.inputs import every_token, frame_counts, need_field, on, refuse_non_finite
from holitom.ops.density import CACHE, group_scores
from holitom.ops.merging import bag_means
from holitom.ops.segment_budgets import frame_means
from holitom.ops.selection import apportion, keep_count, mask_ids, top_per_row
from holitom.ops.similarity import neighbour_cosine
from holitom.types import Fidelity, Positions, TokenSet, VideoFeatures, check_budget

_TINY = 1e-12


@dataclass(frozen=True)
class FastVID:
    """Salient tokens of every frame, and density-peak anchors of every ``step``-th frame that take in the rest.

    segments (c), tau: cuts at the c - 1 least similar neighbouring frames and wherever the cosine of two frames is
    below tau. context (d): share of the budget that goes to anchors. step (p): a segment's last frame and every p-th
    before it carry the anchors. beta: least weight of an anchor against the mean of the tokens that join it. k:
    neighbours in the density. Each token that is not kept joins the most similar anchor (cosine) of every anchor frame
    of its segment, so it may be merged several times; ``size`` counts an anchor and all that joined it.

    head "siglip": frames are compared by frame_embed, which must be SigLIP's attention-pooling head, as must saliency;
    the LLaVA-OneVision checkpoints do not contain that head, models.siglip_head reads it from SigLIP's own.
    "substitute": the mean of a frame's tokens instead, with the attention received in the tower as saliency; frames
    then look more alike, so tau cuts less.
    released True: the release's LLaVA-OneVision code: equal counts rounded down per frame and per anchor frame, anchors
    join their own mean, and an anchor frame with just context-per-frame anchors takes in its own frame only.

    Tokens stay in raster order with the positions of the full prompt. The clean reading keeps round(budget * T * N)
    tokens, at least one; anchors that find no room in their frame become salient tokens. Raises BadUsage for missing
    fields, a substitute passed off as the head, and a NaN.
    """

    segments: int = 8
    tau: float = 0.9
    context: float = 0.4
    step: int = 4
    beta: float = 0.6
    k: int = 4
    head: Literal["siglip", "substitute"] = "substitute"
    released: bool = False

    positions: ClassVar[Positions] = "original"
    deviations: ClassVar[tuple[str, ...]] = (
        "Without SigLIP's pooling head (head='substitute') frames are compared by the mean of their tokens, and "
        "saliency is the attention received in the tower.",
        "Anchors do not join their own mean, and every anchor frame serves its whole segment, as in the plain code.",
        "The number kept is exact; the release rounds down per frame and per anchor frame. Budget 1 keeps every token.",
        "Equal densities: the lower index counts as the denser (the release adds random noise).",
        "Short videos get fewer segments, crowded frames fewer anchors; the release fails there.",
    )

    def __post_init__(self) -> None:
        if self.head not in ("siglip", "substitute"):
            raise BadUsage(f"head={self.head!r} is unknown", fix="choose from siglip, substitute")
        if min(self.segments, self.step, self.k) < 1:
            raise BadUsage("segments, step and k count from 1", fix="use positive integers (8, 4 and 4 in the paper)")
        if not 0 <= self.context <= 1 or not 0 <= self.beta <= 1:
            raise BadUsage(f"context {self.context} or beta {self.beta} is outside [0, 1]", fix="use 0.4 and 0.6")

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"saliency", "frame_embed"} if self.head == "siglip" else {"saliency"})

    @property
    def fidelity(self) -> Fidelity:
        return "golden" if self.released and self.head == "siglip" else "port"

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        """Reduce one video. One copy to the host (frame similarities, with the check for NaN)."""
        budget = check_budget(budget)
        saliency = need_field(self, video, "saliency")
        first, last = self._cut(video, saliency)
        if budget == 1.0:
            return every_token(video)
        plan = self._plan(video, budget, first, last)
        salient = top_per_row(saliency, on(plan.salient, saliency))
        anchors = self._anchors(video.tokens, salient, plan)
        merged, size = self._merge(video.tokens, salient, anchors, plan)
        ids = mask_ids((salient | anchors).flatten(), int(plan.salient.sum() + plan.anchors.sum()))
        tokens = video.tokens.reshape(-1, video.tokens.shape[-1]).index_select(0, ids)
        place = torch.searchsorted(ids, mask_ids(anchors.flatten(), len(merged)))
        tokens[place] = merged.to(tokens.dtype)
        sizes = torch.ones(len(ids), device=ids.device).index_copy_(0, place, size)
        return TokenSet(tokens, ids // video.cells, ids % video.cells, sizes)

    def _cut(self, video: VideoFeatures, saliency: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """First and last frame of the segment of every frame."""
        means = frame_means(video.tokens)
        embed = need_field(self, video, "frame_embed") if self.head == "siglip" else means
        # A frame's mean is non-finite where one of its tokens is: no other reading of the tokens is needed.
        fields = {"tokens": means, "saliency": saliency, "frame_embed": embed}
        rider = neighbour_cosine(embed[:, None])[:, 0]
        alike = self.head == "siglip" and embed.shape == means.shape
        same = ((embed - means).abs().amax() <= 1e-2 * means.abs().amax())[None] if alike else rider.new_zeros(1)
        *similar, stand_in = refuse_non_finite(fields, torch.cat([rider, same.float()]))
        if stand_in:
            raise BadUsage(
                "frame_embed is the mean of each frame's tokens, not the output of SigLIP's pooling head",
                fix="compute it with the head of google/siglip-so400m-patch14-384, or use head='substitute'",
            )
        similar = np.array(similar, dtype=np.float32)
        cut = similar < np.float32(self.tau)
        cut[np.argsort(similar, kind="stable")[: self.segments - 1]] = True
        starts = np.flatnonzero(np.append(True, cut))
        ends = np.append(starts[1:], video.frames) - 1
        lengths = ends - starts + 1
        return np.repeat(starts, lengths), np.repeat(ends, lengths)

    def _plan(self, video: VideoFeatures, budget: float, first: np.ndarray, last: np.ndarray) -> _Plan:
        frame = np.arange(video.frames)
        carriers = (last - first) // self.step + 1  # anchor frames of the segment
        is_carrier = (last - frame) % self.step == 0
        if self.released:
            kept = max(1, keep_count(video.cells, budget, "floor"))
            context = keep_count(kept, self.context, "floor")
            salient = np.full(video.frames, kept - context)
            anchors = np.where(is_carrier, context * (last - first + 1) // carriers, 0)
            alone = anchors == context
            anchors = np.minimum(anchors, video.cells - salient)
            return _Plan(salient, anchors, np.where(alone, frame, first), np.where(alone, frame, last))
        kept = frame_counts(video, budget)
        context = np.floor(kept * self.context + 1e-9).astype(np.int64)
        before = np.append(0, context.cumsum())
        shared = before[last + 1] - before[first]
        ordinal = carriers - 1 - (last - frame) // self.step
        anchors = np.where(is_carrier, (ordinal + 1) * shared // carriers - ordinal * shared // carriers, 0)
        salient = kept - context
        fitting = np.minimum(anchors, video.cells - salient)
        salient = salient + apportion(video.cells - salient - fitting, int((anchors - fitting).sum()))
        return _Plan(salient, fitting, first, last)

    def _anchors(self, tokens: Tensor, salient: Tensor, plan: _Plan) -> Tensor:
        """Mask [T, N] of the anchors: in each anchor frame the highest density peaks among its other tokens."""
        frames = np.flatnonzero(plan.anchors)
        if not len(frames):
            return torch.zeros_like(salient)
        here, cells = on(frames, salient), tokens.shape[1]
        left = cells - plan.salient[frames]
        slots = torch.sort(salient[here].byte(), dim=1, stable=True).indices[:, : int(left.max())]
        valid = on(np.arange(slots.shape[1]) < left[:, None], salient)
        slots = torch.where(valid, slots, slots[:, :1])
        ids = slots + here[:, None] * cells
        score = group_scores(tokens.flatten(0, 1), ids, valid, self.k, tokens.numel() // 4)
        chosen = top_per_row(score, on(plan.anchors[frames], salient))
        spare = salient.numel()  # the place of all that is not chosen
        mask = torch.zeros(spare + 1, dtype=torch.bool, device=salient.device)
        mask[torch.where(chosen, ids, spare)] = True
        return mask[:spare].view(salient.shape)

    def _merge(self, tokens: Tensor, salient: Tensor, anchors: Tensor, plan: _Plan) -> tuple[Tensor, Tensor]:
        """Anchors [A, D] in raster order with the means of what joined them, as float32, and how many tokens each
        stands for."""
        rows = tokens.reshape(-1, tokens.shape[-1])
        total = int(plan.anchors.sum())
        if not total:
            return rows.new_empty(0, rows.shape[1], dtype=torch.float32), torch.empty(0, device=rows.device)
        frame, carrier = plan.pairs()
        anchor_ids = mask_ids(anchors.flatten(), total)
        joined = _nearest_anchor(tokens, anchors, plan, frame, carrier)
        frame, carrier = on(frame, joined), on(carrier, joined)
        free = ~salient[frame]
        members = plan.free_tokens(tokens.shape[1])
        if not self.released:  # in its own frame an anchor is not one of those that join
            free &= ~(anchors[frame] & (frame == carrier)[:, None])
            members -= total
        ids = frame[:, None] * tokens.shape[1] + torch.arange(tokens.shape[1], device=joined.device)

        bag, order = torch.sort(joined.masked_fill(~free, total).flatten(), stable=True)
        edges = torch.searchsorted(bag, torch.arange(total + 1, device=joined.device))
        count = edges.diff()
        mean = bag_means(rows, ids.flatten()[order[:members]], count)
        own = (1 / (count + 1)).clamp_min(self.beta).masked_fill(count == 0, 1)[:, None]
        merged = mean.mul_(1 - own).add_(rows.index_select(0, anchor_ids).float().mul_(own))
        return merged, (count if self.released else count + 1).clamp_min(1).float()


@dataclass(frozen=True)
class _Plan:
    """What the host decides, [T] each: salient tokens, anchors, and the frames from ``first`` to ``last`` whose tokens
    join the anchors of this frame."""

    salient: np.ndarray
    anchors: np.ndarray
    first: np.ndarray
    last: np.ndarray

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """(frame, anchor frame) for every frame that an anchor frame takes tokens from."""
        carrier = np.flatnonzero(self.anchors)
        length = (self.last - self.first + 1)[carrier]
        offset = np.arange(length.sum()) - np.repeat(length.cumsum() - length, length)
        return np.repeat(self.first[carrier], length) + offset, np.repeat(carrier, length)

    def free_tokens(self, cells: int) -> int:
        """Tokens that are not salient, counted once per pair."""
        return int((cells - self.salient)[self.pairs()[0]].sum())


def _nearest_anchor(tokens: Tensor, anchors: Tensor, plan: _Plan, frame: np.ndarray, carrier: np.ndarray) -> Tensor:
    """[P, N] for every pair and cell: the anchor of the pair's anchor frame most similar to the token, numbered over
    the whole video."""
    _, cells, dim = tokens.shape
    width = int(plan.anchors.max())
    slots = torch.sort((~anchors).byte(), dim=1, stable=True).indices[:, :width]
    unused = torch.arange(width, device=slots.device) >= on(plan.anchors, slots)[:, None]
    begin = on(plan.anchors.cumsum() - plan.anchors, slots)
    joined = torch.empty(len(frame), cells, dtype=torch.long, device=slots.device)
    for chunk in _chunks(np.arange(len(frame)), (cells + width) * dim + cells * width, tokens):
        there = on(carrier[chunk], slots)
        ids = (there[:, None] * cells + slots[there]).flatten()
        anchor = tokens.flatten(0, 1).index_select(0, ids).unflatten(0, (-1, width)).float()
        anchor /= torch.linalg.vector_norm(anchor, dim=-1, keepdim=True).clamp_min(_TINY)
        # A token's own norm cannot change its nearest anchor. The few anchors on the left: the faster way round.
        similar = anchor @ _frames(tokens, frame[chunk]).float().transpose(1, 2)
        nearest = similar.masked_fill_(unused[there][..., None], -torch.inf).argmax(1)
        joined[on(chunk, slots)] = nearest + begin[there][:, None]
    return joined


def _frames(tokens: Tensor, chosen: np.ndarray) -> Tensor:
    """tokens[chosen]; a view where the frames follow one another, as they mostly do."""
    if (np.diff(chosen) == 1).all():
        return tokens[chosen[0] : chosen[-1] + 1]
    return tokens[on(chosen, tokens)]


def _chunks(items: np.ndarray, each: int, tokens: Tensor) -> list[np.ndarray]:
    """Items in chunks of a float32 workspace, ``each`` elements per item, that is at most about a quarter of the input;
    on a CPU one that stays in its cache."""
    room = max(1 << 18, tokens.numel() // 4)
    step = max(1, (min(room, CACHE) if tokens.device.type == "cpu" else room) // each)
    return [items[i : i + step] for i in range(0, len(items), step)]
