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
from torch import Tensor
from torch.overrides import TorchFunctionMode

from holitom.types import Outer, TokenSet, VideoFeatures

NOBODY = -1


def reduce_with_sources(method: Outer, video: VideoFeatures, budget: float) -> tuple[TokenSet, Tensor]:
    """The kept tokens, and [T, N] for every source token the index of the kept token it went into (NOBODY: dropped).

    A kept token's own place always belongs to it. A source that went into several tokens is given to the one with the
    largest weight, at a tie to the nearest: in time, then in the frame.
    """
    kept, leaf = _recorded(method, video, budget)
    owner = torch.full(leaf.shape[:2], NOBODY)
    if kept.tokens.requires_grad:
        index = torch.arange(len(kept)) + 1.0
        code = torch.rand(len(kept), generator=torch.Generator().manual_seed(0))
        weight, where, check = _pulled(kept.tokens, leaf, torch.stack([torch.ones_like(index), index, code], 1))
        used = weight.abs() > 1e-9
        weight = torch.where(used, weight, 1)
        owner = torch.where(used, (where / weight).round().long().clamp(1, len(kept)) - 1, NOBODY)
        several = used & ((check / weight - code[owner]).abs() > 1e-4)
        if several.any():
            owner = torch.where(several, _heaviest(kept, leaf, video.grid[1]), owner)
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


def _recorded(method: Outer, video: VideoFeatures, budget: float) -> tuple[TokenSet, Tensor]:
    leaf = video.tokens.detach().clone().requires_grad_()
    with torch.enable_grad(), _Detached():
        return method(replace(video, tokens=leaf), budget), leaf


def _pulled(tokens: Tensor, leaf: Tensor, numbers: Tensor) -> Tensor:
    """W transposed times ``numbers`` [M, channels]: one map [T, N] over the source tokens per channel."""
    cotangent = torch.zeros_like(tokens)
    cotangent[:, : numbers.shape[1]] = numbers
    (found,) = torch.autograd.grad(tokens, leaf, cotangent, retain_graph=True)
    return found[..., : numbers.shape[1]].permute(2, 0, 1)


def _heaviest(kept: TokenSet, leaf: Tensor, columns: int) -> Tensor:
    """[T, N] the token with the largest weight, found frame by frame of the kept tokens: as many frames in one backward
    pass as half the width of a token."""
    best, owner = torch.zeros(leaf.shape[:2]), torch.full(leaf.shape[:2], NOBODY)
    every, cell = torch.arange(leaf.shape[0])[:, None], torch.arange(leaf.shape[1])[:, None]
    for frames in kept.frame.unique().split(max(1, leaf.shape[2] // 2)):
        inside = (kept.frame[:, None] == frames).float()
        pulled = _pulled(kept.tokens, leaf, torch.cat([inside, inside.cumsum(0) * inside], 1))
        for frame, weight, where in zip(frames, *pulled.chunk(2), strict=True):
            mine = (kept.frame == frame).nonzero().flatten()
            place = where / torch.where(weight.abs() > 1e-9, weight, 1)  # from 1; no whole number if it has several
            one = place.round().long().clamp(1, len(mine)) - 1
            away = (cell // columns - kept.cell[mine] // columns) ** 2 + (
                cell % columns - kept.cell[mine] % columns
            ) ** 2
            one = torch.where((place - one - 1).abs() > 1e-2, away.argmin(1), one)
            weight = weight - 1e-6 * (every - frame).abs()
            owner, best = torch.where(weight > best, mine[one], owner), torch.maximum(weight, best)
    return owner
