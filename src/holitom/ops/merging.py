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

from holitom.ops.selection import mask_ids

Average = Literal["running", "mean"]
_AT_ONCE = 1 << 22  # float32 elements that are rounded in one piece, however small the result


def bag_means(
    rows: Float[Tensor, "n dim"], ids: Int[Tensor, " m"], lengths: Int[Tensor, " bags"], *, keep_dtype: bool = False
) -> Float[Tensor, "bags dim"]:
    """Mean of rows[ids] over consecutive bags of ``lengths``, [bags, D]; zero for an empty bag. In float32, or in the
    precision of the rows with ``keep_dtype``, which saves a float32 copy of the result.

    Half-precision rows are read as they are, added in float32, and rounded once to their own precision after the sum.
    """
    if not lengths.shape[0]:
        return rows.new_zeros(0, rows.shape[1], dtype=rows.dtype if keep_dtype else torch.float32)
    offsets = lengths.cumsum(0) - lengths
    if rows.dtype == torch.float32:
        return embedding_bag(ids, rows, offsets, mode="mean")
    # The sum of a bag is returned in half precision, where it could overflow: scale by a power of two, which is exact.
    filled = lengths.clamp_min(1)
    power = torch.exp2(-torch.ceil(torch.log2(filled.float())))
    weight = power.to(rows.dtype).repeat_interleave(lengths, output_size=ids.shape[0])
    scaled = embedding_bag(ids, rows, offsets, mode="sum", per_sample_weights=weight)
    share = (filled * power)[:, None]
    if not keep_dtype:
        return scaled.float().div_(share)
    step = max(-(-len(share) // 8), _AT_ONCE // rows.shape[1])
    for part, by in zip(scaled.split(step), share.split(step), strict=True):
        part.copy_(part.float().div_(by))
    return scaled


def merge_members(
    rows: Float[Tensor, "n dim"], owner: Int[Tensor, " n"], centres: Int[Tensor, " c"], beta: float | None
) -> tuple[Float[Tensor, "c dim"], Float[Tensor, " c"]]:
    """Merge every row into its centre: beta * centre + (1 - beta) * mean(other members), a centre alone stays itself.

    owner: [n] id of the centre each row belongs to (a centre owns itself); centres: [c] ascending ids. beta None is the
    plain mean of centre and members. Returns the merged rows as float32 and the number of rows behind each (float32).
    """
    order, size = _grouped(owner, centres)
    if beta is None:
        return bag_means(rows, order, size), size.float()
    others = order[mask_ids(owner[order] != order, rows.shape[0] - centres.shape[0])]
    mean = bag_means(rows, others, size - 1)
    weight = torch.where(size > 1, beta, 1.0)[:, None]
    return mean.mul_(1 - beta).addcmul_(rows.index_select(0, centres).float(), weight), size.float()


def fold_into(
    rows: Float[Tensor, "n dim"], owner: Int[Tensor, " n"], kept: Int[Tensor, " c"], average: Average
) -> Float[Tensor, "c dim"]:
    """Fold every row into the kept row it belongs to (a kept row owns itself), in ascending order of the row ids.

    "running": the release's repeated h_kept <- (h_kept + h_row) / 2 in closed form. With q rows the kept one ends up
    with weight 2^-q and the j-th row (from 1) with 2^-(q - j + 1), so that the last always weighs one half. Powers of
    two are exact in every precision, and half-precision states are rounded once, not q times as by the release.
    "mean": every row of the group weighs the same.
    """
    order, size = _grouped(owner, kept)
    if average == "mean":
        return bag_means(rows, order, size)
    offsets = size.cumsum(0) - size
    bag = torch.repeat_interleave(size, output_size=order.shape[0])
    own = owner[order] == order
    # Number the folded rows of a group 1..q; the kept row may stand anywhere among them and does not count.
    seen = (~own).cumsum(0)
    place = seen - (seen - (~own).long())[offsets][bag]
    exponent = torch.where(own, 1 - size[bag], place - size[bag])
    weight = torch.exp2(exponent.float()).to(rows.dtype)
    return embedding_bag(order, rows, offsets, mode="sum", per_sample_weights=weight)


def _grouped(owner: Tensor, heads: Tensor) -> tuple[Tensor, Tensor]:
    """Row ids grouped by owner (ascending inside a group), and the size of each group."""
    owners, order = torch.sort(owner, stable=True)
    edges = torch.cat([torch.searchsorted(owners, heads), heads.new_full((1,), owner.shape[0])])
    return order, edges.diff()
