"""Tensor operations that several methods share: counts, choices, groups, cosines.

Every choice is reproducible: among equal scores the lowest index wins. Comparisons are made in float32 whatever the
precision of the input. Nothing here loops over tokens, and nothing copies to the host.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

TINY = 1e-12
"""Lower bound of a norm that something is divided by, so that a zero vector has cosine 0 with everything."""


def on(array: np.ndarray, like: Tensor) -> Tensor:
    """A host array on the device of ``like``."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(like.device, non_blocking=True)


def workspace(rows: Tensor) -> int:
    """Float32 elements to work on at once: a quarter of the rows; on a CPU at most what stays near its core."""
    quarter = max(1 << 18, rows.numel() // 4)
    return min(quarter, 1 << 21) if rows.device.type == "cpu" else quarter


# --- counts


def apportion(sizes: Sequence[int] | np.ndarray, total: int) -> np.ndarray:
    """Share ``total`` among groups in proportion to their sizes, by largest remainder: the shares add up to
    min(total, sum of sizes), none exceeds its size, ties go to the first group. Integer arithmetic throughout."""
    size = np.asarray(sizes, dtype=np.int64)
    available = int(size.sum())
    if total >= available:
        return size.copy()
    share, remainder = np.divmod(size * int(total), available)
    share[np.argsort(-remainder, kind="stable")[: int(total) - int(share.sum())]] += 1
    return share


def spread(total: int, parts: int) -> np.ndarray:
    """Share ``total`` among equal parts so that the larger shares lie evenly over them: [parts], sum ``total``."""
    return np.diff(np.arange(parts + 1, dtype=np.int64) * int(total) // parts)


# --- choices


def ranks(score: Tensor) -> Tensor:
    """Place of every element in the descending order of its row [..., n]."""
    order = score.sort(dim=-1, descending=True, stable=True).indices
    place = torch.arange(score.shape[-1], device=score.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, place)


def top_mask(score: Tensor, counts: Tensor) -> Tensor:
    """Mask [rows, n] of the ``counts[r]`` highest scores of every row [rows, n]."""
    return ranks(score) < counts[:, None]


def top_ids(score: Tensor, k: int) -> Tensor:
    """Ids of the ``k`` highest scores [n], ascending."""
    return score.sort(descending=True, stable=True).indices[:k].sort().values


def top_of_groups(score: Tensor, label: Tensor, counts: Tensor) -> Tensor:
    """Mask [n] of the ``counts[g]`` highest scores [n] of every group; label [n]: the group of each."""
    order = score.sort(descending=True, stable=True).indices
    owner, by = label[order].sort(stable=True)
    place = torch.arange(len(by), device=by.device) - torch.searchsorted(owner, owner)
    return torch.zeros_like(label, dtype=torch.bool).index_put_((order[by],), place < counts[owner])


def ids_of(mask: Tensor, count: int) -> Tensor:
    """Ascending ids of a mask [n] known to hold ``count`` true values: nonzero without its copy to the host."""
    slot = torch.where(mask, mask.cumsum(0) - 1, count)
    ids = torch.zeros(count + 1, dtype=torch.long, device=mask.device)
    return ids.scatter_(0, slot, torch.arange(len(mask), device=mask.device))[:count]


# --- groups


def grouped(owner: Tensor, heads: Tensor) -> tuple[Tensor, Tensor]:
    """owner [n]: the row that each row belongs to; heads [c]: the owners, ascending -> the row ids grouped by owner
    [n], ascending inside a group, and the size of every group [c]."""
    owners, order = owner.sort(stable=True)
    edges = torch.cat([torch.searchsorted(owners, heads), heads.new_full((1,), len(owner))])
    return order, edges.diff()


def group_mean(rows: Tensor, ids: Tensor, sizes: Tensor) -> Tensor:
    """Means of rows[ids] over consecutive groups of ``sizes`` [G]: [G, D] in the dtype of the rows, zero for an empty
    group. Sums are made in float32, in a fixed order, and rounded once.

    An embedding_bag reads the rows in place. It returns a sum in the dtype of the rows, where a half could overflow: so
    half-precision rows are scaled by a power of two, which is exact, and the sum is divided by the rest.
    """
    if not len(sizes):
        return rows.new_zeros(0, rows.shape[1])
    start = sizes.cumsum(0) - sizes
    if rows.dtype == torch.float32:
        return embedding_bag(ids, rows, start, mode="mean")
    filled = sizes.clamp_min(1)
    power = torch.exp2(-filled.float().log2().ceil())
    weight = power.to(rows.dtype).repeat_interleave(sizes, output_size=len(ids))
    scaled = embedding_bag(ids, rows, start, mode="sum", per_sample_weights=weight)
    rest = (filled * power)[:, None]
    for part, by in zip(scaled.split(256), rest.split(256), strict=True):  # no float32 copy of the whole
        part.copy_(part.float().div_(by))
    return scaled


def frame_mean(tokens: Tensor) -> Tensor:
    """Mean token of every frame [T, N, D] -> [T, D] float32. Non-finite where one of the frame's tokens is."""
    return torch.cat([part.mean(1, dtype=torch.float32) for part in tokens.split(8)])


# --- cosines and inner products


@torch.no_grad()
def row_norms(tokens: Tensor) -> Tensor:
    """Euclidean norm of every token [T, N, D] -> [T, N] float32. A NaN or an infinity makes its norm non-finite."""
    if tokens.dtype == torch.float32:
        return torch.linalg.vector_norm(tokens, dim=-1)
    return torch.stack([torch.linalg.vector_norm(frame.float(), dim=-1) for frame in tokens])  # no copy of the whole


@torch.no_grad()
def neighbour_cosine(tokens: Tensor, norms: Tensor | None = None, lag: int = 1) -> Tensor:
    """cos(x[t, n], x[t + lag, n]) of tokens [T, N, D], by default for neighbouring frames: [T - lag, N] float32, so
    [0, N] for one frame. norms: row_norms(tokens), where the caller has them.

    One pair of frames at a time, which stays in a CPU's cache. Multiplies and adds: a matrix product may round to TF32.
    """
    norms = (row_norms(tokens) if norms is None else norms).clamp_min(TINY)
    dots = norms.new_empty(len(tokens) - lag, tokens.shape[1])
    step = 1 if tokens.device.type == "cpu" else max(1, len(tokens) // 8)
    for t in range(0, len(dots), step):
        here, there = tokens[t : t + step][: len(dots) - t], tokens[t + lag : t + lag + step]
        torch.sum(here.float() * there.float(), dim=-1, out=dots[t : t + step])
    return dots / norms[:-lag] / norms[lag:]


@torch.no_grad()
def nearest_row(rows: Tensor, ids: Tensor, heads: Tensor) -> tuple[Tensor, Tensor]:
    """rows [n, D]; ids [m], heads [c] into them -> for every row in ``ids`` its cosine with the most similar row of
    ``heads`` [m] float32, and that row's place in ``heads`` [m] (the first of equals). A NaN or an infinity in either
    row makes the cosine non-finite. In blocks of rows, so that no [m, c] table is held."""
    unit = rows[heads].float()
    unit /= torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp_min(TINY)
    cosine, nearest = unit.new_empty(len(ids)), torch.empty_like(ids)
    step = max(1, (rows.numel() // 8 if rows.device.type == "cpu" else 1 << 24) // (rows.shape[1] + len(heads)))
    for i in range(0, len(ids), step):
        here = rows[ids[i : i + step]].float()
        best = (here @ unit.T).max(1)
        cosine[i : i + step] = best.values / torch.linalg.vector_norm(here, dim=-1).clamp_min(TINY)
        nearest[i : i + step] = best.indices
    return cosine, nearest


def gram(x: Tensor) -> Tensor:
    """x @ x^T of every group [G, n, D] -> [G, n, n], exactly symmetric: a product need not round [i, j] and [j, i]
    alike, and equal scores must stay equal. Only blocks on and below the diagonal are multiplied."""
    square = x.new_empty(len(x), x.shape[1], x.shape[1])
    for i in range(0, x.shape[1], 64):
        square[:, i : i + 64, : i + 64] = x[:, i : i + 64] @ x[:, : i + 64].mT
    return square.tril() + square.tril(-1).mT
