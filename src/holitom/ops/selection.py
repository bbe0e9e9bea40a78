"""How many tokens to keep, and which: counts on the host, stable top-k on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Rounding = Literal["ceil", "floor", "round"]


def keep_count(n: int, ratio: float, mode: Rounding) -> int:
    """``n * ratio`` as a count in [0, n]; "round" is Python's (half to even). The releases differ in their mode."""
    value = {"ceil": math.ceil, "floor": math.floor, "round": round}[mode](n * ratio)
    return min(max(int(value), 0), n)


def apportion(sizes: Sequence[int] | np.ndarray, total: int) -> np.ndarray:
    """Share ``total`` among groups in proportion to their sizes, by largest remainder: the shares add up to
    min(total, sum of sizes), none exceeds its size, ties go to the first group. Integer arithmetic throughout."""
    size = np.asarray(sizes, dtype=np.int64)
    available = int(size.sum())
    total = min(int(total), available)
    if total == available:
        return size.copy()
    share, remainder = np.divmod(size * total, available)
    first = np.argsort(-remainder, kind="stable")[: total - int(share.sum())]
    share[first] += 1
    return share


def spread(total: int, parts: int) -> np.ndarray:
    """Share ``total`` among equal parts so that the larger shares lie evenly over them: [parts], sum ``total``."""
    edges = np.arange(parts + 1, dtype=np.int64) * int(total) // parts
    return np.diff(edges)


def topk_ids(score: Float[Tensor, " n"], k: int) -> Int[Tensor, " k"]:
    """Ids of the ``k`` highest scores in ascending order; among equal scores the lowest id wins (torch.topk promises
    neither). Scores are compared as they are: pass float32 where half precision would tie."""
    order = torch.sort(score, descending=True, stable=True).indices
    return order[: min(k, score.shape[0])].sort().values


def top_per_row(score: Float[Tensor, "rows n"], counts: Int[Tensor, " rows"]) -> Bool[Tensor, "rows n"]:
    """Mask of the ``counts[r]`` highest scores of every row, with the tie rule of :func:`topk_ids`. One stable sort."""
    order = torch.sort(score, dim=-1, descending=True, stable=True).indices
    rank = torch.arange(score.shape[-1], device=score.device)
    return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, order, rank < counts[:, None])


def mask_ids(mask: Bool[Tensor, " n"], count: int) -> Int[Tensor, " count"]:
    """Ascending ids of a mask known to hold ``count`` true values: nonzero without its copy to the host. Where the
    count is wrong, and somebody will refuse that later, the ids are wrong but lie inside the mask."""
    count = max(count, 0)
    slot = torch.where(mask, mask.cumsum(0) - 1, count).clamp_max(count)
    ids = torch.zeros(count + 1, dtype=torch.long, device=mask.device)
    return ids.scatter_(0, slot, torch.arange(mask.shape[0], device=mask.device))[:count]
