"""Density peaks with a fixed number of neighbours: the scores themselves, and clusters with every row ranked.

Beside ops.clustering, which caps the neighbours by the number of clusters (HoliTom's rule) and returns centres alone.
Here k is at most the size of the group, as in PruneVid, FastVID and MMG-Vid, and the order of the scores is returned,
because one release emits its clusters in that order.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_CACHE = 1 << 21  # elements of a chunk on a CPU: few enough to stay near the core, more only cost memory traffic


def squared_distances(x: Float[Tensor, "groups n dim"]) -> Float[Tensor, "groups n n"]:
    """Squared Euclidean distances / dim in every group, float32, from a Gram matrix. Rows are taken relative to their
    group's first one, which leaves distances alone and puts equal rows at distance zero exactly."""
    return _from_origin(x.float() - x[:, :1].float())


def _from_origin(x: Tensor) -> Tensor:
    square = x @ x.transpose(1, 2)
    norm = square.diagonal(dim1=1, dim2=2).clone()
    square.mul_(-2).add_(norm[:, :, None]).add_(norm[:, None, :]).clamp_(min=0).div_(x.shape[2])
    return torch.minimum(square, square.transpose(1, 2))  # a matrix product need not round [i, j] and [j, i] alike


def peak_scores(
    square: Float[Tensor, "groups n n"], valid: Bool[Tensor, "groups n"], k: int, noise: float = 0.0
) -> Float[Tensor, "groups n"]:
    """density * delta of every row from :func:`squared_distances`; -1 where ``valid`` is False.

    density = exp(-mean squared distance to the k nearest rows, itself among them; all rows where there are fewer);
    delta = distance to the nearest denser row, for the densest row the largest distance in its group. Among equal
    densities the lower id counts as the denser one (the releases add random noise of 1e-6 instead). ``noise`` adds
    uniform noise of that size, from a generator with seed 0, to study what the releases do.
    """
    n = square.shape[-1]
    apart = square.masked_fill(~valid[:, None, :], torch.inf)
    near = apart.topk(min(k, n), largest=False).values
    used = valid.sum(-1).clamp(1, near.shape[-1])
    near = near.masked_fill_(torch.arange(near.shape[-1], device=near.device) >= used[:, None, None], 0)
    density = torch.exp(-near.sum(-1) / used[:, None])
    if noise:
        draw = torch.rand(density.shape, generator=torch.Generator().manual_seed(0))
        density = density + noise * draw.to(density.device)
    density = density.masked_fill_(~valid, -1)
    rank = ranks(density)
    denser = rank[:, None, :] < rank[:, :, None]
    delta = apart.masked_fill_(~denser, torch.inf).amin(-1)
    farthest = square.masked_fill(~(valid[:, None, :] & valid[:, :, None]), 0).amax((1, 2))
    delta = torch.where(rank == 0, farthest[:, None], delta).sqrt()
    return (density * delta).masked_fill_(~valid, -1)


def ranks(score: Float[Tensor, "groups n"]) -> Int[Tensor, "groups n"]:
    """Place of every element in its row's descending order; among equal ones the lowest index comes first."""
    order = torch.sort(score, dim=-1, descending=True, stable=True).indices
    place = torch.arange(score.shape[-1], device=score.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, place)


def ranked_clusters(
    rows: Float[Tensor, "rows dim"],
    ids: Int[Tensor, "groups n"],
    valid: Bool[Tensor, "groups n"],
    clusters: Int[Tensor, " groups"],
    k: int,
    room: int,
) -> tuple[Int[Tensor, "groups n"], Int[Tensor, "groups n"]]:
    """Density-peak clusters of padded groups: slot s of group g is rows[ids[g, s]] where ``valid``.

    Returns the rank [groups, n] of every slot's score in its group (the first ``clusters[g]`` are the centres), and the
    slot [groups, n] of its nearest centre (a centre's own; the lowest slot among equally near ones). clusters is at
    least 1 and at most the group's size. room: float32 elements of workspace; groups are worked through in chunks.
    """
    n = ids.shape[1]
    if rows.device.type == "cpu":
        room = min(room, _CACHE)
    step = max(1, room // (n * rows.shape[1] + 3 * n * n))
    rank, nearest = torch.empty_like(ids), torch.empty_like(ids)
    for i in range(0, ids.shape[0], step):
        chunk, wanted = valid[i : i + step], clusters[i : i + step, None]
        x = rows[ids[i : i + step]].float()
        square = _from_origin(x.sub_(x[:, :1].clone()))
        rank[i : i + step] = ranks(peak_scores(square, chunk, k))
        centre = rank[i : i + step] < wanted
        near = square.masked_fill_(~centre[:, None, :], torch.inf).argmin(-1)
        nearest[i : i + step] = torch.where(centre, torch.arange(n, device=ids.device), near)
    return rank, nearest
