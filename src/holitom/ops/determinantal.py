"""Diverse subsets: greedy MAP of a determinantal point process, for many groups of unequal size at once."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holitom.ops.selection import top_per_row

_BLOCK = 64


def greedy_map(
    rows: Float[Tensor, "rows dim"],
    quality: Float[Tensor, " rows"],
    ids: Int[Tensor, "groups n"],
    valid: Bool[Tensor, "groups n"],
    counts: np.ndarray,
    eps: float = 1e-5,
) -> Bool[Tensor, "groups n"]:
    """Choose ``counts[g]`` slots of every padded group: slot s of group g is rows[ids[g, s]] where ``valid``.

    The kernel of a group is diag(q) S diag(q) with S the cosine of its rows and q their quality (above 0). Each step
    adds the row that raises the determinant of the chosen minor most: the largest q^2 * residual, where the residual is
    what the rows chosen so far leave of the unit vector (an incremental Cholesky factorisation, as Chen et al. 2018).
    Once a residual falls to ``eps`` its row adds nothing but rounding noise; such rows follow by quality, so the result
    does not depend on noise. Ties: lowest slot.

    The steps are sequential by nature: min(largest count, rows of the group, dim) of them, each for all groups
    together, and every 64 steps the kernels are brought up to date by one matrix product. Only the groups' own Gram
    matrices are formed, and none where a group has more rows than dimensions: its kernel rows are then computed when
    they are needed. Workspace: about twice the rows in float32.
    """
    groups, n = ids.shape
    unit = rows[ids].float()
    unit.div_(torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp_min_(1e-12))
    residual = (unit.any(-1) & valid).float()
    steps = min(int(np.max(counts, initial=0)), n, unit.shape[-1])
    gram = unit @ unit.transpose(1, 2) if n <= unit.shape[-1] else None
    if gram is not None:
        del unit
    weight = quality[ids].float().square()
    spent = weight - 8 * weight.amax()  # below every row that still adds something, by quality among themselves
    taken = ~valid
    wanted = torch.from_numpy(np.asarray(counts, dtype=np.int64)).to(rows.device)
    factor = weight.new_zeros(groups, min(steps, _BLOCK) if gram is not None else steps, n)
    every = torch.arange(groups, device=rows.device)
    done = 0  # rows of the factor that await being subtracted from the kernels
    for step in range(steps):
        gain = torch.where(residual > eps, weight * residual, spent)
        best = gain.masked_fill_(taken, -torch.inf).argmax(-1)
        kernel = gram[every, best] if gram is not None else torch.bmm(unit, unit[every, best][..., None])[..., 0]
        if done:
            chosen = factor[:, :done]
            weights = chosen.gather(2, best[:, None, None].expand(-1, done, 1))
            kernel = kernel - torch.bmm(weights.transpose(1, 2), chosen)[:, 0]
        pivot = residual[every, best]
        running = (wanted > step) & ~taken[every, best]
        scale = torch.where(running & (pivot > eps), pivot.clamp_min(eps).rsqrt(), 0)
        factor[:, done] = kernel * scale[:, None]
        residual = (residual - factor[:, done].square()).clamp_min_(0)
        taken[every, best] |= running
        done += 1
        if gram is not None and done == _BLOCK:
            gram.baddbmm_(factor.transpose(1, 2), factor, alpha=-1)
            done = 0
    order = torch.where(valid, torch.where(taken, torch.inf, weight), -torch.inf)
    return top_per_row(order, wanted) & valid
