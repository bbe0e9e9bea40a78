"""What every surviving token stands for, of any outer method, without asking the method.

An outer stage decides which tokens to keep and which to average; given its decisions, kept = W @ tokens with a fixed
matrix W. Comparisons, arg-maxima and counts have no derivative, so differentiating the kept tokens by the source tokens
gives W itself. The channels of a token are independent: with two numbers per frame of kept tokens, 1 and the place in
the frame, one backward pass tells for several frames the weight of every source token in them and where it went.
"""

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
        owner = _heaviest(kept, leaf, video.grid[1])
    owner[kept.frame, kept.cell] = torch.arange(len(kept))
    return replace(kept, tokens=kept.tokens.detach()), owner


class _Detached(TorchFunctionMode):
    """Lets a method take values to numpy, or into a buffer of its own, for its decisions, although they are being
    recorded for a derivative."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled:  # the method's own no_grad, which the block below would undo
            return func(*args)
        if func is torch.Tensor.numpy:
            args = (args[0].detach(), *args[1:])
        with torch.set_grad_enabled(torch.is_grad_enabled() and (kwargs or {}).get("out") is None):
            return func(*args, **(kwargs or {}))


def _recorded(method: Outer, video: VideoFeatures, budget: float) -> tuple[TokenSet, Tensor]:
    leaf = video.tokens.detach().clone().requires_grad_()
    with torch.enable_grad(), _Detached():
        return method(replace(video, tokens=leaf), budget), leaf


def _heaviest(kept: TokenSet, leaf: Tensor, columns: int) -> Tensor:
    """[T, N] the token with the largest weight."""
    best, owner = torch.full(leaf.shape[:2], 1e-9), torch.full(leaf.shape[:2], NOBODY)
    every, cell = torch.arange(leaf.shape[0])[:, None], torch.arange(leaf.shape[1])[:, None]
    for frames in kept.frame.unique().split(max(1, leaf.shape[2] // 2)):
        inside = (kept.frame[:, None] == frames).float()  # [kept, frames of this pass]
        asked = torch.zeros_like(kept.tokens)
        asked[:, : 2 * len(frames)] = torch.cat([inside, inside.cumsum(0) * inside], 1)
        (found,) = torch.autograd.grad(kept.tokens, leaf, asked, retain_graph=True)
        weights, places = found[..., : 2 * len(frames)].permute(2, 0, 1).chunk(2)
        for frame, weight, where in zip(frames, weights, places, strict=True):
            mine = (kept.frame == frame).nonzero().flatten()
            place = where / torch.where(weight.abs() > 1e-9, weight, 1)  # from 1; no whole number if it has several
            one = place.round().long().clamp(1, len(mine)) - 1
            down, right = cell // columns - kept.cell[mine] // columns, cell % columns - kept.cell[mine] % columns
            one = torch.where((place - one - 1).abs() > 1e-2, (down**2 + right**2).argmin(1), one)
            weight = weight * (1 - 1e-6 * (every - frame).abs())
            owner, best = torch.where(weight > best, mine[one], owner), torch.maximum(weight, best)
    return owner
