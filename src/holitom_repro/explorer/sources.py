"""What every surviving token stands for, of any outer method, without asking the method.

An outer stage decides which tokens to keep and which to average; given its decisions, kept = W @ tokens with a fixed
matrix W. Comparisons, arg-maxima and counts have no derivative, so differentiating the kept tokens by the source tokens
gives W itself. One backward pass with two numbers per kept token (1 and its index) tells every source token its weight
and its owner; a random third number exposes the sources that went into several tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.overrides import TorchFunctionMode

from holitom.types import Outer, TokenSet, VideoFeatures

NOBODY = -1


def reduce_with_sources(
    method: Outer, video: VideoFeatures, budget: float | int
) -> tuple[TokenSet, Int[Tensor, "frames cells"]]:
    """The kept tokens, and for every source token the index of the kept token it went into (NOBODY: dropped).

    A kept token's own place always belongs to it. A source that went into several tokens is given to the one with the
    largest weight, the nearest frame at a tie; inside one frame to the nearest of them.
    """
    leaf = video.tokens.detach().clone().requires_grad_()
    with torch.enable_grad(), _Detached():
        kept = method(replace(video, tokens=leaf), float(budget))
    owner = _owners(kept, leaf) if kept.tokens.requires_grad else leaf.new_full(leaf.shape[:2], NOBODY).long()
    owner[kept.frame, kept.cell] = torch.arange(len(kept))
    return replace(kept, tokens=kept.tokens.detach()), owner


class _Detached(TorchFunctionMode):
    """Lets a method take values to numpy, or into a buffer of its own, for its decisions, although they are being
    recorded for a derivative."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.numpy:
            args = (args[0].detach(), *args[1:])
        with torch.set_grad_enabled(torch.is_grad_enabled() and (kwargs or {}).get("out") is None):
            return func(*args, **(kwargs or {}))


def _owners(kept: TokenSet, leaf: Tensor) -> Int[Tensor, "frames cells"]:
    index = torch.arange(len(kept), dtype=torch.float32)
    code = torch.rand(len(kept), generator=torch.Generator().manual_seed(0))
    weight, where, check = _pull(kept.tokens, leaf, torch.stack([torch.ones_like(index), index / len(kept), code], 1))
    used = weight.abs() > 1e-9
    owner = _rounded(where * len(kept), weight, used, len(kept))
    alone = (check / torch.where(used, weight, 1) - code[owner.clamp_min(0)]).abs() < 1e-4
    if bool((used & ~alone).any()):
        shared = _shared(kept, leaf, used & ~alone)
        owner = torch.where(used & ~alone, shared, owner)
    return owner


def _shared(kept: TokenSet, leaf: Tensor, wanted: Tensor) -> Int[Tensor, "frames cells"]:
    """Owners of sources with several: one backward pass for as many owning frames as the width of a token allows."""
    frames = kept.frame.unique().tolist()
    at_once = max(1, leaf.shape[2] // 2)
    local = torch.zeros(len(kept))
    for frame in frames:
        here = kept.frame == frame
        local[here] = torch.arange(int(here.sum()), dtype=torch.float32)
    best = torch.zeros_like(leaf[..., 0])
    owner = torch.full_like(best, NOBODY, dtype=torch.long)
    distance = torch.full_like(best, torch.inf)
    at = torch.arange(leaf.shape[0])[:, None]
    for start in range(0, len(frames), at_once):
        chunk = frames[start : start + at_once]
        masks = torch.stack([kept.frame == frame for frame in chunk], 1).float()
        pulled = _pull(kept.tokens, leaf, torch.cat([masks, masks * local[:, None]], 1))
        for frame, weight, where in zip(chunk, pulled[: len(chunk)], pulled[len(chunk) :], strict=True):
            mine = (kept.frame == frame).nonzero().flatten()
            used = wanted & (weight.abs() > 1e-9)
            exact = where / torch.where(used, weight, 1)
            place = _rounded(where, weight, used, len(mine))
            several = used & ((exact - place).abs() > 1e-2)
            place = torch.where(several, _nearest(kept.cell[mine], leaf.shape[1]), place.clamp_min(0))
            away = (at - frame).abs().float().expand_as(best)
            better = used & ((weight > best + 1e-6) | ((weight > best - 1e-6) & (away < distance)))
            best, distance = torch.where(better, weight, best), torch.where(better, away, distance)
            owner = torch.where(better, mine[place], owner)
    return owner


def _pull(tokens: Tensor, leaf: Tensor, numbers: Float[Tensor, "kept channels"]) -> list[Float[Tensor, "frames cells"]]:
    """W transposed times ``numbers``: one map over the source tokens per channel."""
    cotangent = torch.zeros_like(tokens)
    cotangent[:, : numbers.shape[1]] = numbers
    (pulled,) = torch.autograd.grad(tokens, leaf, cotangent, retain_graph=True)
    return list(pulled[..., : numbers.shape[1]].unbind(-1))


def _rounded(where: Tensor, weight: Tensor, used: Tensor, count: int) -> Int[Tensor, "frames cells"]:
    found = (where / torch.where(used, weight, 1)).round().long().clamp(0, count - 1)
    return torch.where(used, found, NOBODY)


def _nearest(cells: Int[Tensor, " kept"], count: int) -> Int[Tensor, " cells"]:
    """For every cell the nearest of ``cells``, on a square grid."""
    side = max(1, round(count**0.5))
    every = torch.arange(count)
    rows = (every[:, None] // side - cells // side) ** 2
    return (rows + (every[:, None] % side - cells % side) ** 2).argmin(1)


def rebuild_error(method: Outer, video: VideoFeatures, budget: float | int) -> float:
    """Largest difference between the kept tokens and the sums of source tokens under the weights found: 0 but for
    rounding where a method only keeps and averages."""
    leaf = video.tokens.detach().clone().requires_grad_()
    with torch.enable_grad(), _Detached():
        kept = method(replace(video, tokens=leaf), float(budget)).tokens
    if not kept.requires_grad:
        return float("inf")
    # A random direction: the derivative of kept @ direction is the weight matrix seen through it.
    mix = torch.rand(kept.shape[0], generator=torch.Generator().manual_seed(0)).to(kept)
    total = kept.detach().mul(mix[:, None]).sum(0)
    (weights,) = torch.autograd.grad(kept, leaf, mix[:, None].expand_as(kept))
    rebuilt = (weights * leaf.detach()).sum((0, 1))
    return float((rebuilt - total).abs().max() / mix.sum())
