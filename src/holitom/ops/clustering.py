"""Density-peak clustering with k nearest neighbours (DPC-KNN), for many groups of unequal size at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holitom.ops.selection import mask_ids
from holitom.ops.transfer import to_device


@torch.no_grad()
def density_peaks(
    rows: Float[Tensor, "n dim"], sizes: np.ndarray, clusters: np.ndarray, k: int, room: int
) -> tuple[Bool[Tensor, " n"], Int[Tensor, " n"]]:
    """Choose ``clusters[g]`` centres in every group of rows and give each row to its nearest centre.

    rows: the groups one after the other, ``sizes[g]`` rows each; every group asks for 1 <= clusters[g] <= sizes[g].
    room: elements of float32 workspace; groups are padded and worked through in chunks that fit (one group at least).
    Returns the centre mask [n] and, for each row, the row id of its centre (a centre's own id).

    As in the release: distance = Euclidean / sqrt(dim); density = exp(-mean squared distance to the k nearest rows,
    itself among them, k at most the number of clusters); delta = distance to the nearest denser row, for the densest
    the largest distance in its group; centres = highest density * delta. Deviation: the release adds random noise of
    1e-6 to break ties between densities; here the lower id counts as the denser one, so results are reproducible.
    """
    sizes, clusters = np.asarray(sizes, dtype=np.int64), np.asarray(clusters, dtype=np.int64)
    start = np.cumsum(sizes) - sizes
    total = rows.shape[0]
    device = rows.device
    centre = torch.ones(total, dtype=torch.bool, device=device)
    owner = torch.arange(total, device=device)
    hard = np.flatnonzero(clusters < sizes)  # where every row is a centre there is nothing to compute
    for chunk in _chunks(hard, sizes, rows.shape[1], room):
        n = int(sizes[chunk].max())
        place = np.arange(n)
        inside = place < sizes[chunk, None]
        # Padding repeats a group's first row: it adds no distance that the group does not have already.
        padded = start[chunk, None] + np.where(inside, place, 0)
        valid, ids, wanted = to_device(inside, padded, clusters[chunk], like=rows)
        peak, nearest = _peaks(rows, ids, valid, wanted, k)
        flat = valid.flatten()
        count = int(sizes[chunk].sum())
        slots = mask_ids(flat, count)
        target = ids.flatten()[slots]
        centre[target] = peak.flatten()[slots]
        owner[target] = ids.gather(1, nearest).flatten()[slots]
    return centre, owner


def _peaks(rows: Tensor, ids: Tensor, valid: Tensor, wanted: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Centre mask [g, n] and the slot of each row's nearest centre [g, n], for one chunk of padded groups."""
    n = ids.shape[1]
    square = _squared_distances(rows, ids)
    farthest = square.amax((1, 2))
    square.masked_fill_(~valid[:, None, :], torch.inf)

    near = square.topk(min(k, n), largest=False).values
    used = wanted.clamp(max=near.shape[-1])[:, None, None]
    near.masked_fill_(torch.arange(near.shape[-1], device=near.device) >= used, 0)
    density = torch.exp(-near.sum(-1) / used[..., 0]).masked_fill_(~valid, -1)

    order = torch.sort(density, dim=-1, descending=True, stable=True).indices
    place = torch.arange(n, device=ids.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, place)
    denser = rank[:, None, :] < rank[:, :, None]
    delta = torch.where(denser, square, torch.inf).amin(-1)
    delta = torch.where(rank == 0, farthest[:, None], delta).sqrt()

    score = (density * delta).masked_fill_(~valid, -1)
    best = torch.sort(score, dim=-1, descending=True, stable=True).indices
    peak = torch.zeros_like(valid).scatter_(-1, best, place < wanted[:, None])
    nearest = square.masked_fill_(~peak[:, None, :], torch.inf).argmin(-1)
    return peak, torch.where(peak, place, nearest)


def _squared_distances(rows: Tensor, ids: Tensor) -> Tensor:
    """[g, n, n] squared Euclidean distances / dim from a Gram matrix. Rows are taken relative to their group's first,
    which leaves distances alone and keeps the cancellation small (equal rows are at distance zero exactly)."""
    x = rows.index_select(0, ids.flatten()).unflatten(0, ids.shape).float()
    x.sub_(x[:, :1].clone())
    square = x @ x.transpose(1, 2)
    del x
    norm = square.diagonal(dim1=1, dim2=2).clone()
    square.mul_(-2).add_(norm[:, :, None]).add_(norm[:, None, :]).clamp_(min=0).div_(rows.shape[1])
    # A matrix product need not round [i, j] and [j, i] alike. With two neighbours, mutual nearest ones have equal
    # densities, and only equal distances keep that tie a tie.
    return torch.minimum(square, square.transpose(1, 2))


def _chunks(groups: np.ndarray, sizes: np.ndarray, dim: int, room: int) -> Iterator[np.ndarray]:
    """Consecutive groups whose padded rows and distance matrices fit into ``room`` elements together."""
    if not len(groups):
        return
    widest = int(sizes[groups].max())
    step = max(1, room // (widest * dim + 3 * widest * widest))
    for i in range(0, len(groups), step):
        yield groups[i : i + step]
