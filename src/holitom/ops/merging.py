"""Weighted sums over groups of rows: segment means, cluster merges, and the running average in closed form.

Every sum is an embedding_bag over sorted groups, which reads the rows in place and adds them in a fixed order: no copy
of the gathered rows, and no atomics, so that a GPU gives the same sum twice.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

Average = Literal["running", "mean"]


def bag_means(
    rows: Float[Tensor, "n dim"], ids: Int[Tensor, " m"], offsets: Int[Tensor, " bags"]
) -> Float[Tensor, "bags dim"]:
    """Mean of rows[ids] over consecutive bags that begin at ``offsets``; in the rows' precision."""
    return embedding_bag(ids, rows, offsets, mode="mean")


def merge_members(
    rows: Float[Tensor, "n dim"],
    owner: Int[Tensor, " n"],
    centres: Int[Tensor, " c"],
    beta: float | None,
) -> tuple[Float[Tensor, "c dim"], Float[Tensor, " c"]]:
    """Merge every row into its centre: beta * centre + (1 - beta) * mean(other members), a centre alone stays itself.

    owner: [n] id of the centre each row belongs to (a centre owns itself); centres: [c] ascending ids. beta None is the
    plain mean of centre and members. Returns the merged rows and the number of rows behind each.
    """
    order, offsets, size = _grouped(owner, centres)
    own = owner[order] == order
    members = size[_bag_of(offsets, order.shape[0])]
    if beta is None:
        weight = 1 / members
    else:
        shared = torch.where(own, beta, (1 - beta) / (members - 1).clamp_min(1))
        weight = torch.where(members > 1, shared, 1.0)
    return _weighted(rows, order, offsets, weight), size


def fold_into(
    rows: Float[Tensor, "n dim"], owner: Int[Tensor, " n"], kept: Int[Tensor, " c"], average: Average
) -> Float[Tensor, "c dim"]:
    """Fold every row into the kept row it belongs to (a kept row owns itself), in ascending order of the row ids.

    "running": the release's repeated h_kept <- (h_kept + h_row) / 2 in closed form. With q rows the kept one ends up
    with weight 2^-q and the j-th row (from 1) with 2^-(q - j + 1), so that the last always weighs one half.
    "mean": every row of the group weighs the same.
    """
    order, offsets, size = _grouped(owner, kept)
    bag = _bag_of(offsets, order.shape[0])
    if average == "mean":
        return _weighted(rows, order, offsets, 1 / size[bag])
    own = owner[order] == order
    # Number the folded rows of a group 1..q; the kept row may stand anywhere among them and does not count.
    place = (~own).cumsum(0) - torch.cat([own.new_zeros(1, dtype=torch.long), (~own).cumsum(0)])[offsets[:-1]][bag]
    folded = size[bag] - 1
    return _weighted(rows, order, offsets, torch.exp2(torch.where(own, -folded, place - folded - 1)))


def _grouped(owner: Tensor, heads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row ids grouped by owner (ascending inside a group), the bags' edges [c + 1], and their sizes as float32."""
    owners, order = torch.sort(owner, stable=True)
    edges = torch.cat([torch.searchsorted(owners, heads), heads.new_full((1,), owner.shape[0])])
    return order, edges, edges.diff().float()


def _bag_of(offsets: Tensor, rows: int) -> Tensor:
    return torch.searchsorted(offsets, torch.arange(rows, device=offsets.device), right=True) - 1


def _weighted(rows: Tensor, order: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    if offsets.shape[0] == 1:
        return rows.new_empty(0, rows.shape[1], dtype=torch.float32)
    return embedding_bag(
        order, rows.float(), offsets, mode="sum", per_sample_weights=weight.float(), include_last_offset=True
    )
