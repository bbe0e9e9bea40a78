"""What each segment of a video is worth, and how many tokens it may keep."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Gain = Literal["coded", "opposite"]


@torch.no_grad()
def frame_means(tokens: Float[Tensor, "frames cells dim"]) -> Float[Tensor, "frames dim"]:
    """Mean token of every frame in float32, an eighth of the video at a time.

    On a CPU as a product with ones: torch adds over the middle axis column by column, at half of the speed of reading.
    """
    parts = tokens.split(max(1, -(-tokens.shape[0] // 8)))
    if tokens.is_cuda:
        return torch.cat([part.float().mean(1) for part in parts])
    one = torch.ones(1, 1, tokens.shape[1], device=tokens.device)
    return torch.cat([one.expand(len(part), -1, -1) @ part.float() for part in parts])[:, 0].div_(tokens.shape[1])


@torch.no_grad()
def marginal_gains(
    segments: Float[Tensor, "segments dim"], k: float, sign: Gain = "coded"
) -> Float[Tensor, " segments"]:
    """MMG-Vid's marginal gain of every segment, as a z-score over the segments (population deviation + 1e-8).

    With e the cosine to the mean of the earlier segment vectors and l that to the mean of the later ones (0 where there
    are none): "coded" is k * e + (1 - k) * (1 - l), as the first author of HieraVid wrote down equation 6 of MMG-Vid;
    "opposite" is k * (1 - e) + (1 - k) * l, which rewards being unlike what came before and like what remains.
    """
    vectors = segments.double()  # sums of many vectors, cheap beside the tokens
    until = vectors.cumsum(0)
    earlier, later = until - vectors, until[-1:] - until
    earlier[:1], later[-1:] = 0, 0
    e, rest = (torch.cosine_similarity(vectors, mean, dim=-1) for mean in (earlier, later))  # sums: same angle as means
    gain = k * e + (1 - k) * (1 - rest) if sign == "coded" else k * (1 - e) + (1 - k) * rest
    return ((gain - gain.mean()) / (gain.std(correction=0) + 1e-8)).float()


def keep_ratios(base: float, gains: np.ndarray, extra: float, clamp: tuple[float, float]) -> np.ndarray:
    """base + extra * gain, kept inside ``clamp``: the share of every segment that may stay."""
    return np.clip(base + extra * np.asarray(gains, dtype=np.float64), *clamp)


def weighted_shares(weights: np.ndarray, capacity: np.ndarray, total: int) -> np.ndarray:
    """Share ``total`` in proportion to ``weights`` (above 0), none beyond its ``capacity``: integers with the sum
    min(total, sum of capacities), by largest remainder, ties to the first. What a full one cannot take goes to the
    others in proportion."""
    weights, capacity = np.asarray(weights, dtype=np.float64), np.asarray(capacity, dtype=np.int64)
    total = min(int(total), int(capacity.sum()))
    share = np.zeros(len(capacity), dtype=np.float64)
    full = np.zeros(len(capacity), dtype=bool)
    while not full.all():
        left = total - int(capacity[full].sum())
        share = np.where(full, capacity, weights * (left / weights[~full].sum()))
        over = ~full & (share >= capacity)
        if not over.any():
            break
        full |= over
    whole = np.minimum(np.floor(share + 1e-9).astype(np.int64), capacity)
    remainder = np.where(whole < capacity, share - whole, -1.0)
    order = np.argsort(-np.round(remainder, 9), kind="stable")
    whole[order[: total - int(whole.sum())]] += 1
    return whole


def padded_groups(group: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels [n] -> the ids of every group, ascending and padded with its first one [G, widest], which of them are
    real [G, widest], and the groups' sizes [G]. Groups are in ascending order of their labels."""
    _, sizes = np.unique(group, return_counts=True)
    order = np.argsort(group, kind="stable")
    start = np.cumsum(sizes) - sizes
    place = np.arange(sizes.max(initial=0))
    valid = place < sizes[:, None]
    return order[start[:, None] + np.where(valid, place, 0)], valid, sizes
