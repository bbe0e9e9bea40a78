"""Diverse subsets: greedy MAP of a determinantal point process, for many groups of unequal size at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holitom.ops.selection import top_per_row
from holitom.ops.similarity import gram, row_norms

_BLOCK = 64


@torch.no_grad()
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

    The steps are sequential by nature: min(count, rows of the group, dim) of them, on a GPU for all groups together, on
    a CPU group by group, which spares the padding. Where many of a group's rows are chosen, its Gram matrix is formed
    once; every 64 steps one matrix product brings it up to date, and it shrinks as rows are taken. Where few are, or
    where a group has more rows than dimensions, no n x n matrix is formed: the kernel's rows are computed for the
    likeliest candidates, as many at a time as proved useful last time. Workspace: the rows and their Gram matrices, or
    the rows and [steps, n], float32.
    """
    counts = np.asarray(counts, dtype=np.int64)
    weight = quality[ids].float().square()
    wanted = torch.from_numpy(counts).to(rows.device)
    scale = row_norms(rows[None])[0][ids]
    spent = torch.where(valid, weight - 8 * weight.amax(), -torch.inf)  # below every row that still adds something
    residual = ((scale > 0) & valid).float()
    scale.clamp_min_(1e-12)
    parts = [(slice(None), slice(None))]
    if rows.device.type == "cpu":
        parts = [
            (slice(g, g + 1), slice(int(slots.nonzero().max()) + 1)) for g, slots in enumerate(valid) if slots.any()
        ]
    taken = torch.zeros_like(valid)
    for part in parts:
        search = _Search(weight[part], residual[part], spent[part], wanted[part[0]], eps)
        taken[part] = _taken(search, _Unit(rows, ids[part], scale[part]), valid[part], counts[part[0]])
    order = torch.where(valid, torch.where(taken, torch.inf, weight), -torch.inf)
    return top_per_row(order, wanted) & valid


def _taken(search: _Search, unit: _Unit, valid: Tensor, counts: np.ndarray) -> Tensor:
    """[groups, n] the rows that the steps take, by the cheaper of the two ways."""
    n, dim = valid.shape[1], unit.rows.shape[1]
    steps = min(int(counts.max(initial=0)), n, dim)
    if n > dim or 3 * steps < n:
        _by_candidates(search, unit, steps)
        return search.taken()
    if len(valid) == 1 and valid.device.type == "cpu":
        return _on_host(search, unit.gram()[0], steps)[None]
    return _by_gram(search, unit.gram(), steps, valid.sum(1).cpu().numpy(), counts)


@dataclass
class _Search:
    """What a step of the search reads and changes, [groups, n] each. ``spent`` ranks the rows whose residual is at most
    eps, below all others and by quality among themselves; it is -inf for a row that is taken or not there."""

    weight: Tensor
    residual: Tensor
    spent: Tensor
    wanted: Tensor
    eps: float

    def __post_init__(self) -> None:
        self.every = torch.arange(len(self.weight), device=self.weight.device)

    def gain(self) -> Tensor:
        return torch.where(self.residual > self.eps, self.weight * self.residual, self.spent)

    def taken(self) -> Tensor:
        return self.spent.isinf()

    def take(self, step: int, best: Tensor, kernel: Tensor, factor: Tensor, done: int) -> None:
        """Take slot best[g] of every group that still wants one. kernel: [groups, n] its rows of the kernel, from which
        the first ``done`` rows of the factor are subtracted here; row ``done`` of the factor is written."""
        if done:
            chosen = factor[:, :done]
            kernel = kernel - torch.bmm(chosen[self.every, :, best][:, None], chosen)[:, 0]
        pivot, running = self.residual[self.every, best], self.wanted > step
        root = torch.where(running & (pivot > self.eps), pivot.clamp_min(self.eps).rsqrt(), 0)
        torch.mul(kernel, root[:, None], out=factor[:, done])
        self.residual.addcmul_(factor[:, done], factor[:, done], value=-1)
        self.spent[self.every, best] = torch.where(running, -torch.inf, self.spent[self.every, best])
        self.residual[self.every, best] = torch.where(running, 0, self.residual[self.every, best])


@dataclass
class _Unit:
    """The rows of every group scaled to length one in float32, made where they are needed."""

    rows: Tensor
    ids: Tensor
    scale: Tensor

    def gram(self) -> Tensor:
        unit = self.rows.index_select(0, self.ids.flatten()).unflatten(0, self.ids.shape).float()
        return gram(unit.div_(self.scale[..., None]))

    def kernel(self, slots: Tensor) -> Tensor:
        """[groups, c, n]: the kernel's rows of slots [groups, c]. Blocks of rows, so that none is copied as a whole."""
        head = self.rows[self.ids.gather(1, slots)].float()
        head /= self.scale.gather(1, slots)[..., None]
        step = max(_BLOCK, self.rows.shape[0] // (8 * len(self.ids)))
        found = head.new_empty(len(head), head.shape[1], self.ids.shape[1])
        for part, some in zip(found.split(step, 2), self.ids.split(step, 1), strict=True):
            part.copy_(head @ self.rows[some].float().transpose(1, 2))
        return found.div_(self.scale[:, None])


def _by_gram(search: _Search, kernel: Tensor, steps: int, sizes: np.ndarray, counts: np.ndarray) -> Tensor:
    """Take rows with all of the kernel at hand -> [groups, n] those taken."""
    n = kernel.shape[1]
    place = torch.arange(n, device=kernel.device).expand(kernel.shape[:2])  # the slot behind every column that is left
    taken = torch.zeros(place.shape, dtype=torch.bool, device=kernel.device)
    for start in range(0, steps, _BLOCK):
        block = min(_BLOCK, steps - start)
        factor = kernel.new_zeros(len(kernel), block, kernel.shape[1])
        for done in range(block):
            best = search.gain().argmax(-1)
            search.take(start + done, best, kernel[search.every, best], factor, done)
        # How many rows are left is known without asking the device: a group loses one per step until it is done.
        left = int(np.where(counts > start + block, sizes - start - block, 0).max(initial=0))
        if start + block < steps and 4 * left <= 3 * kernel.shape[1]:
            keep = search.taken().byte().sort(dim=1, stable=True).indices[:, :left]
            taken.scatter_(1, place, search.taken())
            place = place.gather(1, keep)
            kernel = torch.stack([k[some][:, some] for k, some in zip(kernel, keep, strict=True)])
            factor = factor.gather(2, keep[:, None].expand(-1, block, -1))
            fields = (x.gather(1, keep) for x in (search.weight, search.residual, search.spent))
            search = _Search(*fields, search.wanted, search.eps)
        kernel.baddbmm_(factor.transpose(1, 2), factor, alpha=-1)
    return taken.scatter_(1, place, search.taken())


def _on_host(search: _Search, kernel: Tensor, steps: int) -> Tensor:
    """What :func:`_by_gram` does, for one group on a CPU -> [n]; to the bit, if a product rounds alike. A step is a few
    short vector operations, which numpy begins in a fraction of torch's time."""
    weight, residual, spent = (x[0].numpy().copy() for x in (search.weight, search.residual, search.spent))
    place, taken = np.arange(len(weight)), np.zeros(len(weight), dtype=bool)
    for start in range(0, steps, _BLOCK):
        block, here, gain = min(_BLOCK, steps - start), kernel.numpy(), np.empty_like(weight)
        factor, rest = kernel.new_zeros(block, len(kernel)), torch.from_numpy(residual)
        for done, row in enumerate(factor.numpy()):
            np.multiply(weight, residual, out=gain)
            np.copyto(gain, spent, where=residual <= search.eps)
            best = int(gain.argmax())
            pivot = residual[best]
            if pivot > search.eps:  # else it adds nothing, and its row of the factor stays zero
                chosen = factor[:done]
                np.subtract(here[best], torch.mm(chosen[:, best][None], chosen)[0].numpy(), out=row)
                np.multiply(row, 1 / np.sqrt(pivot), out=row)
                rest.addcmul_(factor[done], factor[done], value=-1)
            residual[best], spent[best] = 0, -np.inf
        gone = np.isinf(spent)
        taken[place[gone]] = True
        if start + block >= steps:
            break
        if 4 * (len(gone) - gone.sum()) <= 3 * len(gone):
            place, weight, residual, spent = (x[~gone] for x in (place, weight, residual, spent))
            keep = torch.from_numpy(np.flatnonzero(~gone))
            kernel, factor = kernel.index_select(0, keep).index_select(1, keep), factor.index_select(1, keep)
        kernel.addmm_(factor.T, factor, alpha=-1)
    return torch.from_numpy(taken)


def _by_candidates(search: _Search, unit: _Unit, steps: int) -> None:
    """Take rows with the kernel's rows of the best candidates at hand, until the best row is none of them."""
    groups, n = search.weight.shape
    factor = search.weight.new_zeros(groups, steps, n)
    step, pool = 0, 8
    while step < steps:
        pool = min(pool, n, steps - step)
        slots = search.gain().sort(dim=1, descending=True, stable=True).indices[:, :pool]
        where = torch.full((groups, n), -1, device=slots.device).scatter_(
            1, slots, torch.arange(pool, device=slots.device).expand_as(slots)
        )
        kernel, began = unit.kernel(slots), step
        while step < steps:
            # The first candidate comes from the same sort that chose them: among equals argmax may differ from it.
            best = slots[:, 0] if step == began else search.gain().argmax(-1)
            at = where[search.every, best]
            if ((at < 0) & (search.wanted > step)).any():
                break
            search.take(step, best, kernel[search.every, at.clamp_min(0)], factor, step)
            step += 1
        del kernel  # before the next one is made
        pool = min(4 * _BLOCK, max(8, unit.rows.shape[1] // 8), max(8, 2 * (step - began)))
