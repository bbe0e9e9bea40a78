"""Diverse subsets: greedy MAP of a determinantal point process, for many groups of unequal size at once."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def greedy_map(rows: Tensor, quality: Tensor, valid: Tensor, counts: Tensor, eps: float = 1e-5) -> Tensor:
    """Choose ``counts[g]`` slots of every padded group: rows [G, n, D], quality (above 0) and valid [G, n], counts [G]
    -> mask [G, n].

    The kernel of a group is diag(q) S diag(q) with S the cosine of its rows and q their quality. Each step adds the row
    that raises the determinant of the chosen minor most: the largest q^2 * residual, where the residual is what the
    rows chosen so far leave of the unit vector (an incremental Cholesky factorisation, Chen et al. 2018). Once a
    residual falls to ``eps`` its row adds nothing but rounding noise; such rows, and rows of zeros, follow by quality.
    Ties: lowest slot. The steps are sequential by nature: max(counts) of them, for all groups together. Workspace: the
    Gram matrices and twice the rows. One copy to the host, max(counts).
    """
    unit, weight = normalize(rows.float(), dim=-1), quality.float().square()
    kernel, every = unit @ unit.mT, torch.arange(len(rows), device=rows.device)
    residual = (valid & unit.any(-1)).float()
    spent = torch.where(valid, weight - 8 * weight.amax(), -torch.inf)  # below every row that still adds something
    steps = int(counts.max()) if len(counts) else 0
    factor = kernel.new_zeros(len(rows), steps, rows.shape[1])
    for step in range(steps):
        best = torch.where(residual > eps, weight * residual, spent).argmax(-1)
        pivot, running, past = residual[every, best], counts > step, factor[:, :step]
        row = kernel[every, best] - (past[every, :, best][:, None] @ past)[:, 0]
        scale = torch.where(running & (pivot > eps), pivot.clamp_min(eps).rsqrt(), 0)
        torch.mul(row, scale[:, None], out=factor[:, step])
        residual.addcmul_(factor[:, step], factor[:, step], value=-1)
        residual[every, best] = torch.where(running, 0, pivot)
        spent[every, best] = torch.where(running, -torch.inf, spent[every, best])
    return spent.isinf() & valid


def first_come(near: Tensor) -> Tensor:
    """Who stays when every row of a group is asked in turn, and goes where a row that stayed is near: near [G, n, n]
    booleans, symmetric -> mask [G, n].

    In rounds: of the open rows those stay that no earlier open row is near to, and what is near to them goes. The
    result is that of the walk; there are as many rounds as its longest chain, each with one copy to the host."""
    earlier = near.tril(-1)
    stays, open_ = near.new_zeros(near.shape[:2]), near.new_ones(near.shape[:2])
    while open_.any():
        free = open_ & ~(earlier & open_[:, None]).any(-1)
        stays |= free
        open_ &= ~(free | (earlier & free[:, None]).any(-1))
    return stays
