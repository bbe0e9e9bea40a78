"""Density peaks with a fixed number of neighbours: the scores themselves, and clusters with every row ranked.

Beside ops.clustering, which caps the neighbours by the number of clusters (HoliTom's rule) and returns centres alone.
Here k is at most the size of the group, as in PruneVid, FastVID and MMG-Vid, and the order of the scores is returned,
because one release emits its clusters in that order.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holitom.ops.similarity import gram

CACHE = 1 << 21  # elements of a chunk on a CPU: few enough to stay near the core, more only cost memory traffic


@torch.no_grad()
def squared_distances(x: Float[Tensor, "groups n dim"]) -> Float[Tensor, "groups n n"]:
    """Squared Euclidean distances / dim in every group, float32 and exactly symmetric, from a Gram matrix. Rows are
    taken relative to their group's first one, which leaves distances alone and puts equal rows at distance zero
    exactly."""
    return _from_origin(x.float() - x[:, :1].float())


def _from_origin(x: Tensor) -> Tensor:
    inner = gram(x)
    norm = inner.diagonal(dim1=1, dim2=2)
    square = norm[:, :, None] + norm[:, None, :]
    return square.sub_(inner, alpha=2).clamp_(min=0).div_(x.shape[2])


@torch.no_grad()
def peak_scores(
    square: Float[Tensor, "groups n n"],
    valid: Bool[Tensor, "groups n"] | None,
    k: int,
    noise: Float[Tensor, "groups n"] | None = None,
) -> Float[Tensor, "groups n"]:
    """density * delta of every row from :func:`squared_distances`; -1 where ``valid`` is False (None: all are valid).

    density = exp(-mean squared distance to the k nearest rows, itself among them; all rows where there are fewer);
    delta = distance to the nearest denser row, for the densest row the largest distance in its group. Among equal
    densities the lower id counts as the denser one (the releases add random noise of 1e-6 instead). ``noise`` is added
    to the densities, to study what the releases do.
    """
    n = square.shape[-1]
    if valid is None:
        apart, farthest = square, square.amax((1, 2))
        density = torch.exp(-_nearest(square, min(k, n)).mean(-1))
    else:
        farthest = square.masked_fill(~(valid[:, None, :] & valid[:, :, None]), 0).amax((1, 2))
        apart = square.masked_fill(~valid[:, None, :], torch.inf)
        near = _nearest(apart, min(k, n))
        used = valid.sum(-1).clamp(1, near.shape[-1])
        near = near.masked_fill(torch.arange(near.shape[-1], device=near.device) >= used[:, None, None], 0)
        density = torch.exp(-near.sum(-1) / used[:, None])
    if noise is not None:
        density = density + noise
    if valid is not None:
        density = density.masked_fill_(~valid, -1)
    rank = ranks(density)
    denser = rank[:, None, :] < rank[:, :, None]
    delta = torch.where(denser, apart, torch.inf).amin(-1)
    delta = torch.where(rank == 0, farthest[:, None], delta).sqrt()
    score = density * delta
    return score if valid is None else score.masked_fill_(~valid, -1)


def _nearest(square: Tensor, k: int) -> Tensor:
    """The k smallest of every row, ascending. numpy's partial sort is nine times faster than torch's on a CPU."""
    if square.device.type != "cpu":
        return square.topk(k, largest=False).values
    return torch.from_numpy(np.sort(np.partition(square.detach().numpy(), k - 1, axis=-1)[..., :k], axis=-1))


def uniform_noise(size: float, groups: int, n: int, device: torch.device | str = "cpu") -> Float[Tensor, "groups n"]:
    """Noise in [0, size) for :func:`peak_scores`, from a generator with seed 0: the same on every device."""
    return size * torch.rand(groups, n, generator=torch.Generator().manual_seed(0)).to(device)


def ranks(score: Float[Tensor, "groups n"]) -> Int[Tensor, "groups n"]:
    """Place of every element in its row's descending order; among equal ones the lowest index comes first."""
    order = torch.sort(score, dim=-1, descending=True, stable=True).indices
    place = torch.arange(score.shape[-1], device=score.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, place)


@torch.no_grad()
def group_scores(
    rows: Float[Tensor, "rows dim"],
    ids: Int[Tensor, "groups n"],
    valid: Bool[Tensor, "groups n"] | None,
    k: int,
    room: int,
    noise: Float[Tensor, "groups n"] | None = None,
) -> Float[Tensor, "groups n"]:
    """:func:`peak_scores` of padded groups: slot s of group g is rows[ids[g, s]] where ``valid`` (None: everywhere).

    room: float32 elements of workspace; groups are worked through in chunks.
    """
    score = torch.empty(ids.shape, device=rows.device)
    for some, square in _square_chunks(rows, ids, room):
        score[some] = peak_scores(square, _part(valid, some), k, _part(noise, some))
    return score


@torch.no_grad()
def frame_scores(
    tokens: Float[Tensor, "frames n dim"], k: int, room: int, noise: Float[Tensor, "frames n"] | None = None
) -> Float[Tensor, "frames n"]:
    """:func:`group_scores` with the tokens of every frame as a group: no row is gathered."""
    score = torch.empty(tokens.shape[:2], device=tokens.device)
    step = _step(tokens.shape[1], tokens.shape[2], room, tokens.device)
    held = tokens.new_empty(min(step, len(tokens)), *tokens.shape[1:], dtype=torch.float32)  # one for all chunks
    for i in range(0, len(tokens), step):
        part = tokens[i : i + step]
        x = torch.sub(part.float(), part[:, :1].float(), out=held[: len(part)])
        score[i : i + step] = peak_scores(_from_origin(x), None, k, _part(noise, slice(i, i + step)))
    return score


@torch.no_grad()
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
    rank, nearest = torch.empty_like(ids), torch.empty_like(ids)
    slot = torch.arange(ids.shape[1], device=ids.device)
    for some, square in _square_chunks(rows, ids, room):
        rank[some] = ranks(peak_scores(square, valid[some], k))
        centre = rank[some] < clusters[some, None]
        near = square.masked_fill_(~centre[:, None, :], torch.inf).argmin(-1)
        nearest[some] = torch.where(centre, slot, near)
    return rank, nearest


def _part(x: Tensor | None, some: slice) -> Tensor | None:
    return None if x is None else x[some]


def _step(n: int, dim: int, room: int, device: torch.device) -> int:
    """Groups whose rows and distance matrices fit into ``room`` elements together, on a CPU into its cache."""
    return max(1, (min(room, CACHE) if device.type == "cpu" else room) // (n * dim + 3 * n * n))


def _square_chunks(rows: Tensor, ids: Tensor, room: int) -> Iterator[tuple[slice, Tensor]]:
    """Groups that fit into ``room`` together, and their squared distances, which the caller may overwrite."""
    n = ids.shape[1]
    step = _step(n, rows.shape[1], room, rows.device)
    held = rows.new_empty(min(step, ids.shape[0]) * n, rows.shape[1], dtype=torch.float32)  # one for all chunks
    for i in range(0, ids.shape[0], step):
        some = ids[i : i + step].flatten()
        x = held[: len(some)]
        if rows.dtype == torch.float32:
            torch.index_select(rows, 0, some, out=x)
        else:
            x.copy_(rows.index_select(0, some))
        x = x.unflatten(0, (-1, n))
        yield slice(i, i + step), _from_origin(x.sub_(x[:, :1].clone()))
