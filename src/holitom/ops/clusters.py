"""Density-peak clustering with k nearest neighbours (DPC-KNN) for many groups at once, and merging what it finds.

density = exp(-mean squared distance to the k nearest rows, itself among them), distance = Euclidean / sqrt(dim);
delta = distance to the nearest denser row, for the densest row the largest distance in its group; centres are the rows
of highest density * delta. Among equal densities the lower index counts as the denser one: the releases add random
noise of 1e-6 instead. The release of HoliTom takes one largest distance per group, its paper one per row.

Groups of unequal size are padded: slot s of group g is rows[ids[g, s]] where ``valid``. The padding repeats a row of
its group. Groups are worked through in chunks, so that their distances never take more memory than the rows.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding, embedding_bag

from holitom.ops.tensors import gram, group_mean, grouped, ids_of, on, ranks, workspace


@torch.no_grad()
def squared_distances(x: Tensor) -> Tensor:
    """Squared Euclidean distances / dim in every group [G, n, D] -> [G, n, n] float32, exactly symmetric. Rows are
    taken relative to their group's first one: equal rows are at distance zero exactly."""
    inner = gram(x - x[:, :1].float())  # in float32, without a copy of the rows in it
    norm = inner.diagonal(dim1=1, dim2=2)
    square = norm[:, :, None] + norm[:, None]  # first the sum, which is symmetric
    return square.sub_(inner, alpha=2).clamp_(min=0).div_(x.shape[2])


@torch.no_grad()
def peak_scores(square: Tensor, valid: Tensor | None, k: int, most: Tensor | None = None) -> Tensor:
    """density * delta [G, n] of every row from its group's squared distances [G, n, n]; -1 where not ``valid`` [G, n]
    (None: all are). k: neighbours, at most the size of the group, and at most ``most`` [G] (None: no such bound)."""
    n = square.shape[-1]
    if valid is None:
        valid = torch.ones(square.shape[:2], dtype=torch.bool, device=square.device)
    used = valid.sum(-1).clamp(1, k)
    used = used if most is None else torch.minimum(used, most)
    near = _nearest(square.masked_fill(~valid[:, None], torch.inf), min(k, n))
    near = near.masked_fill(torch.arange(near.shape[-1], device=near.device) >= used[:, None, None], 0)
    spacing = near.sum(-1) / used[:, None]
    # ranked by the mean distance: exp rounds equal values differently inside and at the end of a vector
    delta = separation(square, -spacing.masked_fill(~valid, torch.inf), valid)
    return (torch.exp(-spacing) * delta).masked_fill(~valid, -1)


def separation(square: Tensor, density: Tensor, valid: Tensor | None = None) -> Tensor:
    """delta [G, n]: the distance of every row to the nearest denser one, for the densest row the largest distance in
    its group. square: [G, n, n] squared distances; density: [G, n], anything in its order, lowest in the padding; valid
    as in :func:`peak_scores`."""
    rank = ranks(density)
    delta = square.masked_fill(rank[:, None] >= rank[:, :, None], torch.inf).amin(-1)
    if valid is not None:
        square = square.masked_fill(~(valid[:, None] & valid[:, :, None]), 0)
    return torch.where(rank == 0, square.amax((1, 2))[:, None], delta).sqrt()


@torch.no_grad()
def group_scores(rows: Tensor, ids: Tensor, valid: Tensor | None, k: int) -> Tensor:
    """:func:`peak_scores` [G, n] of padded groups of rows [n, D]."""
    score = torch.empty(ids.shape, device=rows.device)
    for some, square in _chunks(rows, ids):
        score[some] = peak_scores(square, None if valid is None else valid[some], k)
    return score


@torch.no_grad()
def ranked_clusters(
    rows: Tensor, ids: Tensor, valid: Tensor, clusters: Tensor, k: int, *, capped: bool = False
) -> tuple[Tensor, Tensor]:
    """Density-peak clusters of padded groups. Returns the rank [G, n] of every slot's score in its group (the first
    ``clusters[g]`` are the centres), and the slot [G, n] of its nearest centre (a centre's own; the lowest of equally
    near ones). clusters [G]: from 1 to the size of the group. capped: no more neighbours than clusters, as in HoliTom.
    """
    rank, nearest = torch.empty_like(ids), torch.empty_like(ids)
    slot = torch.arange(ids.shape[1], device=ids.device)
    for some, square in _chunks(rows, ids):
        rank[some] = ranks(peak_scores(square, valid[some], k, clusters[some] if capped else None))
        centre = rank[some] < clusters[some, None]
        nearest[some] = torch.where(centre, slot, square.masked_fill(~centre[:, None], torch.inf).argmin(-1))
    return rank, nearest


@torch.no_grad()
def density_peaks(
    rows: Tensor, sizes: np.ndarray, clusters: np.ndarray, k: int, members: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """HoliTom's clusters: rows [n, D], or ``rows[members]``, are the groups one after the other, ``sizes[g]`` rows
    each, of which ``clusters[g]`` (from 1) become centres; k neighbours, at most as many as clusters. Returns the
    centre mask [n] and, for each row, the row of its centre [n] (a centre's own)."""
    owner = torch.arange(int(sizes.sum()), device=rows.device)
    centre = torch.ones_like(owner, dtype=torch.bool)
    start, hard = sizes.cumsum() - sizes, clusters < sizes  # where every row is a centre there is nothing to compute
    if not hard.any():
        return centre, owner
    place, inside = padding(sizes[hard])
    ids, valid, total = on(start[hard][:, None] + place, rows), on(inside, rows), int(sizes[hard].sum())
    where = ids if members is None else members[ids]
    rank, nearest = ranked_clusters(rows, where, valid, on(clusters[hard], rows), k, capped=True)
    real = ids_of(valid.flatten(), total)
    target = ids.flatten()[real]
    centre[target] = (rank < on(clusters[hard], rows)[:, None]).flatten()[real]
    owner[target] = ids.gather(1, nearest).flatten()[real]
    return centre, owner


def padding(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Groups of ``sizes`` rows -> the place in its group of every slot [G, widest] (0 behind the end), and which slots
    are inside [G, widest]."""
    place = np.arange(sizes.max(initial=0))
    inside = place < sizes[:, None]
    return np.where(inside, place, 0), inside


def merge_members(rows: Tensor, owner: Tensor, centres: Tensor, beta: float | None) -> tuple[Tensor, Tensor]:
    """Merge every row [n, D] into its centre: beta * centre + (1 - beta) * mean(other members), a centre alone stays.

    owner [n]: the centre each row belongs to (a centre owns itself); centres [c]: ascending. beta None: the plain mean
    of centre and members. Returns the merged rows [c, D] as float32, and how many rows are behind each [c] float32.
    """
    order, size = grouped(owner, centres)
    if beta is None:
        return group_mean(rows, order, size).float(), size.float()
    others = order[ids_of(owner[order] != order, len(rows) - len(centres))]
    weight = torch.where(size > 1, beta, 1.0)[:, None]
    mean = group_mean(rows, others, size - 1).float()
    return mean.mul_(1 - beta).addcmul_(rows[centres].float(), weight), size.float()


def running_means(rows: Tensor, owner: Tensor, centres: Tensor) -> Tensor:
    """As :func:`merge_members`, by a running average: centre <- (centre + row) / 2 for one row after the other.

    In closed form: with q rows the centre ends up with weight 2^-q and the j-th row, from 1, with 2^-(q - j + 1).
    Powers of two are exact in every precision, and the sum is rounded once.
    """
    order, size = grouped(owner, centres)
    start, own = size.cumsum(0) - size, owner[order] == order
    group = torch.repeat_interleave(size, output_size=len(order))
    seen = (~own).cumsum(0)
    j = seen - (seen - (~own).long())[start][group]  # the centre may stand anywhere among them and does not count
    weight = torch.exp2((torch.where(own, 1, j) - size[group]).float())
    return embedding_bag(order, rows, start, mode="sum", per_sample_weights=weight.to(rows.dtype))


def _nearest(square: Tensor, k: int) -> Tensor:
    """The k smallest of every row, ascending. numpy's partial sort is nine times as fast as torch's on a CPU."""
    if square.device.type != "cpu":
        return square.topk(k, largest=False).values
    return torch.from_numpy(np.sort(np.partition(square.numpy(), k - 1, axis=-1)[..., :k], axis=-1))


def _chunks(rows: Tensor, ids: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Groups that fit into the workspace together, with their squared distances, which the caller may overwrite."""
    each = ids.shape[1] * (rows.shape[1] + 3 * ids.shape[1])
    step = max(1, workspace(rows) // max(1, each))
    for i in range(0, len(ids), step):
        yield slice(i, i + step), squared_distances(embedding(ids[i : i + step], rows))
