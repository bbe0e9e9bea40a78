"""MMG-Vid (arXiv 2508.21044): segments, a budget for each by its marginal gain, tokens by density peaks guided by time.
A reconstruction: no code is published and the paper's text was not available. It is built from its abstract, summaries
of it, and notes in the code of HieraVid's first author, who re-implemented equation 6. Every assumption is a field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from holitom.errors import BadUsage
from holitom.methods.inputs import budget_tokens, every_token, need_field, on, refuse_non_finite
from holitom.ops.density import CACHE, frame_scores, uniform_noise
from holitom.ops.merging import bag_means
from holitom.ops.segment_budgets import Gain, frame_means, keep_ratios, marginal_gains, weighted_shares
from holitom.ops.selection import mask_ids, spread
from holitom.ops.similarity import neighbour_cosine, row_norms
from holitom.types import Fidelity, Positions, TokenSet, VideoFeatures, check_budget


@dataclass(frozen=True)
class MMGVid:
    """Choose tokens frame by frame: dense, apart from one another, and unlike those chosen in the frame before.

    A1 frame_vector: what stands for a frame: the "mean" of its tokens, or the mean of its "unit" tokens; compared by
    cosine. A2 tau, absorb_single: a segment ends where that cosine is below 0.95; a segment of one frame joins the
    neighbour it is more like (the left one at a tie). A3 segment_vector: the "mean" of the segment's frame vectors, or
    its "middle" frame. A4 gain, k, extra: "coded" is equation 6 as re-implemented, "opposite" its contrary reading
    (formulas in ops.segment_budgets); a segment may keep budget + extra * gain of its tokens, the gain as a z-score.
    A5 clamp, exact: these shares stay within ``clamp`` and are then scaled to round(budget * T * N) tokens in all by
    largest remainder (False: each is rounded down on its own). A6 frame_share: the frames of a segment keep "equal"
    numbers, or numbers in proportion to their "novelty", 1.05 - cosine to the frame before. A7 neighbours, uniqueness:
    within a frame density * delta of DPC-KNN over that many neighbours, times u = 1 - largest cosine to the tokens
    "kept" in the frame before, to all tokens of that "frame", or 1 ("none"); u is 1 in a segment's first frame.
    A8 saliency: False, attention plays no part; True multiplies the score by it. A9 noise: uniform noise on the
    densities, 0; the public DPC-KNN codes use 1e-6, here with a fixed seed. Ties go to the lowest index.

    Tokens are selected, never merged, and stay in raster order. ``group`` is the segment, ``gain`` its marginal gain.
    """

    frame_vector: Literal["mean", "unit"] = "mean"
    tau: float = 0.95
    absorb_single: bool = True
    segment_vector: Literal["mean", "middle"] = "mean"
    gain: Gain = "coded"
    k: float = 0.5
    extra: float = 0.1
    clamp: tuple[float, float] = (0.05, 0.95)
    exact: bool = True
    frame_share: Literal["equal", "novelty"] = "equal"
    neighbours: int = 7
    uniqueness: Literal["kept", "frame", "none"] = "kept"
    saliency: bool = False
    noise: float = 0.0

    positions: ClassVar[Positions] = "contiguous"
    fidelity: ClassVar[Fidelity] = "reconstruction"
    deviations: ClassVar[tuple[str, ...]] = (
        "No code is published and the paper's text was not available: a reconstruction, not a reproduction.",
        "A1 A3: frames and segments are compared by their mean token.",
        "A2: neighbouring frames below a cosine of 0.95 are cut apart; single frames join the more similar neighbour.",
        "A4: the sign of the marginal gain is uncertain; the default is equation 6 as re-implemented by others.",
        "A5 A6: shares are scaled to the exact budget, and frames of a segment share equally.",
        "A7: the formula of the temporal guidance is unknown; here density * delta * (1 - cosine to those kept).",
        "A8 A9: no attention, no noise. Positions after selection are renumbered.",
    )

    def __post_init__(self) -> None:
        choices = {
            "frame_vector": ("mean", "unit"),
            "segment_vector": ("mean", "middle"),
            "gain": ("coded", "opposite"),
            "frame_share": ("equal", "novelty"),
            "uniqueness": ("kept", "frame", "none"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise BadUsage(f"{name}={getattr(self, name)!r} is unknown", fix=f"choose from {', '.join(allowed)}")
        if self.neighbours < 1 or not 0 < self.clamp[0] <= self.clamp[1] <= 1:
            raise BadUsage(f"neighbours={self.neighbours}, clamp={self.clamp}", fix="use 7 and (0.05, 0.95)")

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"saliency"} if self.saliency else ())

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        """Reduce one video. Two copies to the host (frame similarities; gains). Raises BadUsage for a budget outside
        (0, 1], a NaN in the tokens, and a missing saliency where it is used."""
        budget = check_budget(budget)
        norms = row_norms(video.tokens)
        frames = self._frame_vectors(video.tokens)
        fields = {"tokens": norms} | ({"saliency": need_field(self, video, "saliency")} if self.saliency else {})
        similar = refuse_non_finite(fields, neighbour_cosine(frames[:, None])[:, 0])
        lengths = self._cut(similar)
        gains = marginal_gains(self._segment_vectors(frames, lengths), self.k, self.gain)
        if budget == 1.0:
            kept = every_token(video)
        else:
            counts = self._counts(lengths, gains.cpu().numpy(), similar, budget, video)
            ids = mask_ids(self._select(video, norms, lengths, counts).flatten(), int(counts.sum()))
            tokens = video.tokens.reshape(-1, video.tokens.shape[-1]).index_select(0, ids)
            kept = TokenSet(tokens, ids // video.cells, ids % video.cells, torch.ones(len(ids), device=ids.device))
        group = on(np.repeat(np.arange(len(lengths)), lengths), norms)[kept.frame]
        return TokenSet(kept.tokens, kept.frame, kept.cell, kept.size, group, gains[group])

    def segments(self, video: VideoFeatures) -> np.ndarray:
        """[G] the lengths of the segments, in frames."""
        norms = row_norms(video.tokens)
        similar = neighbour_cosine(self._frame_vectors(video.tokens)[:, None])[:, 0]
        return self._cut(refuse_non_finite({"tokens": norms}, similar))

    def _frame_vectors(self, tokens: Tensor) -> Tensor:
        if self.frame_vector == "mean":
            return frame_means(tokens)
        return torch.cat([normalize(part.float(), dim=-1).mean(1) for part in tokens.split(_some(tokens))])

    def _cut(self, similar: np.ndarray) -> np.ndarray:
        frames = len(similar) + 1
        cut = np.concatenate([[True], similar < np.float32(self.tau), [True]])  # cut[t]: frame t begins a segment
        if self.absorb_single and frames > 1:
            for t in np.flatnonzero(cut[:-1] & cut[1:]):
                if not (cut[t] and cut[t + 1]):
                    continue  # a single frame before this one has joined it
                left = t == frames - 1 or (t > 0 and similar[t - 1] >= similar[t])
                cut[t if left else t + 1] = False
        return np.diff(np.flatnonzero(cut))

    def _segment_vectors(self, frames: Tensor, lengths: np.ndarray) -> Tensor:
        if self.segment_vector == "middle":
            return frames[on(np.cumsum(lengths) - lengths + lengths // 2, frames)]
        return bag_means(frames, torch.arange(frames.shape[0], device=frames.device), on(lengths, frames))

    def _counts(
        self, lengths: np.ndarray, gains: np.ndarray, similar: np.ndarray, budget: float, video: VideoFeatures
    ) -> np.ndarray:
        """[T] tokens to keep in every frame."""
        cells, wanted = video.cells, budget_tokens(video, budget)
        size = lengths * cells
        weight = size * keep_ratios(budget, gains, self.extra, self.clamp)
        share = np.floor(weight + 1e-9).astype(np.int64)
        if self.exact:
            share = weighted_shares(weight, size, wanted)
        elif not share.sum():
            share[np.argmax(weight)] = 1
        if self.frame_share == "equal":
            return np.concatenate([spread(int(m), int(n)) for m, n in zip(share, lengths, strict=True)])
        novelty = np.concatenate([[1.05], 1.05 - np.clip(similar, -1, 1)])
        parts = np.split(novelty, np.cumsum(lengths)[:-1])
        room = [np.full(len(part), cells) for part in parts]
        return np.concatenate([weighted_shares(p, r, int(m)) for p, r, m in zip(parts, room, share, strict=True)])

    @torch.no_grad()
    def _select(self, video: VideoFeatures, norms: Tensor, lengths: np.ndarray, counts: np.ndarray) -> Tensor:
        """[T, N] mask. The j-th frames of all segments together, because each depends on its predecessor's choice."""
        tokens = video.tokens
        noise = uniform_noise(self.noise, *norms.shape, norms.device) if self.noise else None
        score = frame_scores(tokens, self.neighbours, tokens.numel() // 4, noise)
        if self.saliency:
            score = score * video.saliency.float()
        first = np.cumsum(lengths) - lengths
        chosen = torch.zeros(norms.shape, dtype=torch.bool, device=norms.device)
        for step in range(int(lengths.max())):
            frame = first[lengths > step] + step
            here = on(frame, norms)
            now = score[here]
            if step and self.uniqueness != "none":
                now = now * self._unlike_before(tokens, norms, chosen, counts, frame)
            order = now.sort(dim=-1, descending=True, stable=True).indices
            place = torch.arange(video.cells, device=norms.device)
            chosen[here] = torch.zeros_like(chosen[here]).scatter_(-1, order, place < on(counts[frame], norms)[:, None])
        return chosen

    def _unlike_before(
        self, tokens: Tensor, norms: Tensor, chosen: Tensor, counts: np.ndarray, frame: np.ndarray
    ) -> Tensor:
        """1 - largest cosine of every token to the (kept) tokens of the frame before: [frames, N]; 1 where none is."""
        width = int(counts[frame - 1].max()) if self.uniqueness == "kept" else tokens.shape[1]
        if not width:
            return norms.new_ones(len(frame), tokens.shape[1])
        parts = []
        for some in np.array_split(frame, -(-len(frame) // _some(tokens))):
            here, before = on(some, norms), on(some - 1, norms)
            mask = chosen[before] if self.uniqueness == "kept" else torch.ones_like(chosen[before])
            slots = mask.byte().sort(dim=-1, descending=True, stable=True).indices[:, :width]
            ids = (before[:, None] * tokens.shape[1] + slots).flatten()
            kept = tokens.flatten(0, 1).index_select(0, ids).unflatten(0, slots.shape).float()
            # The few on the left: the faster way round. Frame by frame where that spares a copy of the frames, and the
            # padding of those that kept fewer.
            if tokens.dtype == torch.float32 and not tokens.is_cuda:
                cosine = kept.new_empty(len(some), width, tokens.shape[1])
                for into, few, t in zip(cosine, kept, some.tolist(), strict=True):
                    n = int(counts[t - 1]) if self.uniqueness == "kept" else width
                    torch.mm(few[:n], tokens[t].T, out=into[:n])
            else:
                cosine = kept @ tokens[here].float().transpose(1, 2)
            cosine /= norms[before].clamp_min(1e-12).gather(1, slots)[..., None]
            cosine /= norms[here].clamp_min(1e-12)[:, None]
            cosine = cosine.masked_fill_(~mask.gather(1, slots)[..., None], -torch.inf).amax(1)
            parts.append(torch.where(cosine.isinf(), 1.0, 1 - cosine).clamp_min(0))
        return torch.cat(parts)


def _some(tokens: Tensor) -> int:
    """Frames to work on at once, so that float32 copies and maps stay below a quarter of the video's size; on a CPU, in
    its cache."""
    frames, cells, dim = tokens.shape
    room = frames * cells * dim // 4
    return max(1, (min(room, CACHE) if tokens.device.type == "cpu" else room) // (cells * (dim + 3 * cells)))
