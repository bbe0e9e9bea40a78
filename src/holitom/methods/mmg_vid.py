"""MMG-Vid (arXiv 2508.21044): segments, a budget for each by its marginal gain, tokens by density peaks guided by time.

1. Frames are compared by the cosine of their mean tokens; a segment ends where it is below tau = 0.95. A segment of one
   frame joins the neighbour that it is more like.
2. Equation 6: the marginal gain of every segment, from the cosines of its mean to the earlier segments' and to the
   later ones', as a z-score. A segment keeps the share R + 0.1 * gain of its tokens, within [0.05, 0.95], scaled so
   that all segments together keep R; each of its frames keeps the same number m = int(share * N).
3. TG-DPC, temporally guided density peaks: the m tokens of highest density * delta, in raster order. delta is the
   distance (by sqrt(D)) to the nearest denser token of the frame. In a segment's first frame density is that of
   DPC-KNN, exp(-mean squared distance to the k nearest), k = min(7, m, N - 1). In later frames it is 1 - exp(-mean
   squared distance to all tokens kept so far in the segment): how unlike a token is to what came before.

A reconstruction: the paper's text was not available and its code is not published. Fairly certain is step 3, read from
byte-code of authors near the paper's (guided_dpc_knn in lern-to-write/STC): its formulas, k, and equal counts in a
segment. STC also halves the channels beforehand, taken for a habit of another method and left out. tau has two sources;
what becomes of single frames has one, a summary. Equation 6 with its constants is as HieraVid's first author wrote it
down, and its sign is uncertain: a marginal gain should reward being unlike the past, not like it (gain="opposite").

Deviations from the byte-code: no random noise of 1e-6, ties go to the lower index, and what is denser is judged before
the exponential, which may round different distances to one density. At least one frame's token stays; budget 1 is the
identity.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from holitom.methods.base import OuterStage, budget_tokens, every_token, on_host, token_set
from holitom.ops.clusters import peak_scores, separation, squared_distances
from holitom.ops.tensors import frame_mean, group_mean, ids_of, neighbour_cosine, on, top_mask, workspace
from holitom.types import TokenSet, VideoFeatures

NEIGHBOURS, EXTRA, LIMITS = 7, 0.1, (0.05, 0.95)
"""k of step 3, and step 2's constants."""


@dataclass(frozen=True)
class MMGVid(OuterStage):
    """tau: cosine of two frames below which a segment ends. gain: "coded", equation 6 as written down, or "opposite",
    its contrary. Equal counts in a segment's frames leave the number kept below budget * T * N by less than one per
    frame. ``group`` is the segment, ``gain`` its marginal gain. Raises BadUsage for a budget outside (0, 1] and for a
    NaN in the tokens."""

    tau: float = 0.95
    gain: Literal["coded", "opposite"] = "coded"

    fidelity = "reconstruction"

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        """Reduce one video. Two copies to the host: where to cut, and the gains."""
        wanted, means = budget_tokens(video, budget), frame_mean(video.tokens)
        lengths = self._cut(means)
        frames = torch.arange(video.frames, device=means.device)
        gains = marginal_gains(group_mean(means, frames, on(lengths, means)), self.gain)
        if budget == 1:
            kept = every_token(video)
        else:
            sizes = lengths * video.cells
            shares = share_out(sizes, keep_ratios(budget, gains.cpu().numpy()), wanted)
            counts = shares // lengths  # of every frame
            counts[shares.argmax()] += not counts.any()
            mask = _guided_peaks(video.tokens, lengths, counts)
            kept = token_set(video, ids_of(mask.flatten(), int((lengths * counts).sum())))
        group = on(np.repeat(np.arange(len(lengths)), lengths), means)[kept.frame]
        return replace(kept, group=group, gain=gains[group])

    def segments(self, video: VideoFeatures) -> np.ndarray:
        """[G] the lengths of the segments, in frames."""
        return self._cut(frame_mean(video.tokens))

    def _cut(self, means: Tensor) -> np.ndarray:
        """Step 1, from the mean tokens of the frames [T, D], which are non-finite where a token is."""
        similar, frames = neighbour_cosine(means[:, None])[:, 0], len(means)
        alike = torch.cat([similar < float(np.float32(self.tau)), similar[:-1] >= similar[1:]])
        changes, more_like_before = np.split(on_host(alike, tokens=means), [frames - 1])
        begins = np.concatenate([[True], changes, [True]])
        left = np.concatenate([[False], more_like_before, [True]])  # the neighbour that a single frame would join
        for t in np.flatnonzero(begins[:-1] & begins[1:]) if frames > 1 else ():
            if begins[t] and begins[t + 1]:  # else the single frame before it has joined it
                begins[t if left[t] else t + 1] = False
        return np.diff(np.flatnonzero(begins))


@torch.no_grad()
def _guided_peaks(tokens: Tensor, lengths: np.ndarray, counts: np.ndarray) -> Tensor:
    """Step 3 -> mask [T, N] of the tokens kept, ``counts[g]`` in every frame of segment g.

    The j-th frames of all segments together. No distances to the tokens g kept so far are formed: their mean is
    mean |x - g|^2 = |x|^2 - 2 x mean(g) + mean |g|^2.
    """
    frames, cells, dim = tokens.shape
    first = lengths.cumsum() - lengths
    sums, squares = (torch.zeros(len(first), n, device=tokens.device) for n in (dim, 1))  # of what a segment keeps
    kept = torch.zeros(frames, cells, dtype=torch.bool, device=tokens.device)
    for j in range(int(lengths.max())):
        segments = np.flatnonzero(lengths > j)
        pieces = len(segments) * cells * (dim + 3 * cells) // workspace(tokens)
        for some in np.array_split(segments, min(len(segments), pieces + 1)):
            g, t, m = (on(array, tokens) for array in (some, first[some] + j, counts[some]))
            x = tokens.index_select(0, t).float()
            distances, square = squared_distances(x), torch.linalg.vector_norm(x, dim=-1).square()
            if j:
                n = (m * j).clamp_min(1)[:, None]
                apart = square - 2 * (x @ (sums[g] / n)[..., None])[..., 0] + squares[g] / n
                apart = apart.clamp_min(0) / dim
                score = -torch.expm1(-apart) * separation(distances, apart)
            else:
                score = peak_scores(distances, None, NEIGHBOURS, m.clamp(1, max(1, cells - 1)))
            kept[t] = mask = top_mask(score, m)
            sums[g] += (mask[:, None].float() @ x)[:, 0]
            squares[g] += (mask * square).sum(-1, keepdim=True)
    return kept


@torch.no_grad()
def marginal_gains(segments: Tensor, sign: str = "coded") -> Tensor:
    """Equation 6 for segment vectors [G, D]: a z-score [G] (population deviation + 1e-8).

    With e the cosine to the mean of the earlier vectors and l that to the mean of the later ones (0 where there are
    none): "coded" is (e + 1 - l) / 2, "opposite" (1 - e + l) / 2.
    """
    vectors = segments.double()
    until = vectors.cumsum(0)
    earlier, later = until - vectors, until[-1:] - until  # sums: same angle as means
    earlier[:1], later[-1:] = 0, 0
    e, rest = (torch.cosine_similarity(vectors, others, dim=-1) for others in (earlier, later))
    gain = (e - rest if sign == "coded" else rest - e) / 2
    return ((gain - gain.mean()) / (gain.std(correction=0) + 1e-8)).float()


def keep_ratios(base: float, gains: np.ndarray) -> np.ndarray:
    """The share of every segment that may stay."""
    return np.clip(base + EXTRA * gains.astype(np.float64), *LIMITS)


def share_out(sizes: np.ndarray, ratios: np.ndarray, total: int) -> np.ndarray:
    """``total`` tokens (at most sum(sizes)) among segments in proportion to size * ratio, none beyond its size: by
    largest remainder, ties to the first. What a full segment cannot take goes to the others in proportion."""
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
