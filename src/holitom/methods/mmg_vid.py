"""MMG-Vid (arXiv 2508.21044): segments, a budget for each by its marginal gain, tokens by density peaks guided by time.

  1. Frames are compared by the cosine of their mean tokens; a segment ends where it is below tau = 0.95. A segment of
     one frame joins the neighbour that it is more like.
  2. Equation 6: the marginal gain of every segment, from the cosine of its mean to the earlier segments' mean and to the
     later ones', as a z-score. A segment keeps the share R + 0.1 * gain of its tokens, within [0.05, 0.95], scaled so
     that all segments together keep R. Every frame of a segment keeps the same number m = int(ratio * N).
  3. TG-DPC, the temporally guided density peaks. In a segment's first frame plain DPC-KNN: density = exp(-mean squared
     distance to the k nearest tokens), k = min(7, m) and at most N - 1. In a later frame the density is 1 - exp(-mean
     squared distance to all tokens kept so far in this segment): unlike what came before. In both, delta is the
     distance to the nearest denser token of the same frame, and the m highest density * delta are kept, in raster
     order. Distances are divided by sqrt(D).

A reconstruction: the paper's text was not available and its code is not published. Step 3 is read from byte-code that
co-authors of a co-author published (guided_dpc_knn in lern-to-write/STC), so its formulas, k = 7 and equal counts in a
segment are fairly certain. STC first takes the half of the channels that vary least, which is taken for a habit of
another method and left out. Step 1 has tau from two sources, and what becomes of single frames from one summary. Step 2
is equation 6 as HieraVid's first author wrote it down, with their k = 0.5, 0.1 and limits; its sign is uncertain, since
a marginal gain should reward being unlike the past, not like it: gain="opposite".

Deviations from that byte-code: no random noise of 1e-6, ties go to the lower index; denser is judged before the
exponential, which may round different distances to one density. At least one token per frame of one segment stays.
Budget 1 is the identity.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from holitom.errors import BadUsage
from holitom.methods.base import budget_tokens, every_token, on_host, token_set
from holitom.ops.clusters import peak_scores, separation, squared_distances
from holitom.ops.tensors import frame_mean, group_mean, ids_of, neighbour_cosine, on, row_norms, top_mask
from holitom.types import Fidelity, Positions, TokenSet, VideoFeatures

NEIGHBOURS = 7
EXTRA, LIMITS = 0.1, (0.05, 0.95)
"""How much a gain of one deviation adds to a segment's share, and the limits of that share."""


@dataclass(frozen=True)
class MMGVid:
    """tau: cosine of two frames below which a segment ends. gain: "coded", equation 6 as re-implemented; "opposite", its
    contrary reading. At most budget * T * N tokens stay, fewer by less than one per frame. ``group`` is the segment,
    ``gain`` its marginal gain. Raises BadUsage for a budget outside (0, 1] and for a NaN in the tokens."""

    tau: float = 0.95
    gain: Literal["coded", "opposite"] = "coded"

    requires: ClassVar[frozenset[str]] = frozenset()
    positions: ClassVar[Positions] = "contiguous"
    fidelity: ClassVar[Fidelity] = "reconstruction"

    def __post_init__(self) -> None:
        if self.gain not in ("coded", "opposite"):
            raise BadUsage(f"gain={self.gain!r} is unknown", fix="choose from coded, opposite")

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        """Reduce one video. Two copies to the host: where to cut, and the gains."""
        wanted, norms, means = budget_tokens(video, budget), row_norms(video.tokens), frame_mean(video.tokens)
        lengths = self._cut(means, norms)
        frames = torch.arange(video.frames, device=means.device)
        gains = marginal_gains(group_mean(means, frames, on(lengths, means)), self.gain)
        if budget == 1:
            kept = every_token(video)
        else:
            size = lengths * video.cells
            shares = share_out(size, keep_ratios(budget, gains.cpu().numpy()), wanted)
            counts = shares // lengths
            counts[shares.argmax()] += not counts.any()
            mask = _guided_peaks(video.tokens, norms, lengths, counts)
            kept = token_set(video, ids_of(mask.flatten(), int((lengths * counts).sum())))
        group = on(np.repeat(np.arange(len(lengths)), lengths), means)[kept.frame]
        return replace(kept, group=group, gain=gains[group])

    def segments(self, video: VideoFeatures) -> np.ndarray:
        """[G] the lengths of the segments, in frames."""
        return self._cut(frame_mean(video.tokens), row_norms(video.tokens))

    def _cut(self, means: Tensor, norms: Tensor) -> np.ndarray:
        """Step 1, from the mean tokens of the frames [T, D]; norms: row_norms of the video's tokens."""
        similar, frames = neighbour_cosine(means[:, None])[:, 0], len(means)
        left = similar[:-1] >= similar[1:]  # of frames 1 to T - 2: more like the one before
        found = on_host(torch.cat([similar < float(np.float32(self.tau)), left]), tokens=norms)
        begins = np.concatenate([[True], found[: frames - 1], [True]])
        to_left = np.concatenate([[False], found[frames - 1 :], [True]])
        for t in np.flatnonzero(begins[:-1] & begins[1:]) if frames > 1 else ():
            if begins[t] and begins[t + 1]:  # else the single frame before it has joined it
                begins[t if to_left[t] else t + 1] = False
        return np.diff(np.flatnonzero(begins))


def _guided_peaks(tokens: Tensor, norms: Tensor, lengths: np.ndarray, counts: np.ndarray) -> Tensor:
    """Step 3 -> mask [T, N] of the tokens kept, ``counts[g]`` in every frame of segment g; norms: row_norms(tokens).

    The j-th frames of all segments together. No distances to the tokens g kept so far are formed: their mean is
    mean |x - g|^2 = |x|^2 - 2 x mean(g) + mean |g|^2.
    """
    frames, cells, dim = tokens.shape
    first = lengths.cumsum() - lengths
    sums, squares = (torch.zeros(len(first), n, device=tokens.device) for n in (dim, 1))  # of what a segment keeps
    kept = torch.zeros(frames, cells, dtype=torch.bool, device=tokens.device)
    step = max(1, (1 << 21) // (cells * (dim + 3 * cells)))  # frames in a workspace that stays near a CPU's core
    for j in range(int(lengths.max())):
        segments = np.flatnonzero(lengths > j)
        for some in (segments[i : i + step] for i in range(0, len(segments), step)):
            g, t, m = (on(array, tokens) for array in (some, first[some] + j, counts[some]))
            x = tokens.index_select(0, t).float()
            distances = squared_distances(x)
            if j:
                n = (m * j).clamp_min(1)[:, None]
                apart = norms[t].square() - 2 * (x @ (sums[g] / n)[..., None])[..., 0] + squares[g] / n
                apart = apart.clamp_min(0) / dim
                score = -torch.expm1(-apart) * separation(distances, apart)
            else:
                score = peak_scores(distances, None, NEIGHBOURS, m.clamp(1, max(1, cells - 1)))
            mask = top_mask(score, m)
            kept[t] = mask
            sums[g] += (mask[:, None].float() @ x)[:, 0]
            squares[g] += (mask * norms[t].square()).sum(-1, keepdim=True)
    return kept


def marginal_gains(segments: Tensor, sign: str = "coded") -> Tensor:
    """Equation 6 for segment vectors [G, D]: a z-score [G] (population deviation + 1e-8).

    With e the cosine to the mean of the earlier vectors and l that to the mean of the later ones (0 where there are
    none): "coded" is (e + 1 - l) / 2, "opposite" (1 - e + l) / 2.
    """
    vectors = segments.double()
    until = vectors.cumsum(0)
    earlier, later = until - vectors, until[-1:] - until
    earlier[:1], later[-1:] = 0, 0
    e, rest = (torch.cosine_similarity(vectors, mean, dim=-1) for mean in (earlier, later))  # sums: same angle as means
    gain = (e - rest if sign == "coded" else rest - e) / 2
    return ((gain - gain.mean()) / (gain.std(correction=0) + 1e-8)).float()


def keep_ratios(base: float, gains: np.ndarray) -> np.ndarray:
    """The share of every segment that may stay."""
    return np.clip(base + EXTRA * gains.astype(np.float64), *LIMITS)


def share_out(sizes: np.ndarray, ratios: np.ndarray, total: int) -> np.ndarray:
    """``total`` tokens (at most sum(sizes)) among segments in proportion to size * ratio, none beyond its size: integers
    by largest remainder, ties to the first. What a full segment cannot take goes to the others in proportion."""
    full = np.zeros(len(sizes), dtype=bool)
    while True:
        weight = np.where(full, 0, sizes * ratios)
        share = np.where(full, sizes, weight * (total - sizes[full].sum()) / max(weight.sum(), 1e-12))
        over = ~full & (share >= sizes)
        if not over.any():
            break
        full |= over
    whole = np.minimum(np.floor(share + 1e-9).astype(np.int64), sizes)
    remainder = np.where(whole < sizes, np.round(share - whole, 9), -1)
    whole[np.argsort(-remainder, kind="stable")[: total - whole.sum()]] += 1
    return whole
