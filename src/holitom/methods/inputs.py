"""What outer stages share: the fields they read, the check for NaN, counts, and the identity at budget 1."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from holitom.errors import BadUsage
from holitom.ops.selection import spread
from holitom.ops.transfer import to_device, to_host
from holitom.types import TokenSet, VideoFeatures, check_budget

_MEANING = {
    "saliency": "[T, N], the attention each token receives in the vision tower",
    "keys": "[T, N, Dk], the tower's keys, mean over heads",
    "frame_embed": "[T, E], one vector per frame",
}


def need_field(method: object, video: VideoFeatures, name: str) -> Tensor:
    """An optional field of the video in float32. Raises BadUsage when it is missing."""
    value = getattr(video, name)
    if value is None:
        raise BadUsage(
            f"{type(method).__name__} reads VideoFeatures.{name}, which is None",
            fix=f"let reduce_tokens compute it, or pass {name}={_MEANING[name]}",
        )
    return value.float()


def refuse_non_finite(fields: Mapping[str, Tensor], rider: Tensor | None = None) -> np.ndarray:
    """Raise BadUsage naming the first field [T, ...] with a NaN or an infinity, and the first frame where.

    One copy to the host; ``rider``, wanted there anyway, travels in the same copy and is returned in its own shape and
    type (on a CPU it is not copied, so leave it as it is). For the tokens give their norms: those are small, and
    non-finite where a token is.
    """
    values = list(fields.values())
    flags = torch.stack([value.isfinite().all().to(values[0].device) for value in values])
    finite, found = to_host(flags, flags[:0] if rider is None else rider)
    for (name, value), fine in zip(fields.items(), finite.tolist(), strict=True):
        if not fine:
            frame = int((~value.isfinite()).flatten(1).any(dim=1).nonzero()[0])
            raise BadUsage(
                f"{name} hold a NaN or an infinity, first in frame {frame}",
                fix="check the vision tower's precision (float16 overflows; use bfloat16 or float32)",
            )
    return found.numpy()


def budget_tokens(video: VideoFeatures, budget: float) -> int:
    """round(budget * T * N), at least one token: what every exact count means."""
    return max(1, round(check_budget(budget) * (video.frames * video.cells)))


def frame_counts(video: VideoFeatures, budget: float) -> np.ndarray:
    """[T] tokens to keep in each frame: round(budget * T * N) in all, at least one, spread so that two frames differ by
    at most one; below one token per frame some frames get none."""
    return spread(budget_tokens(video, budget), video.frames)


def every_token(video: VideoFeatures) -> TokenSet:
    """All tokens in raster order, unchanged: what a budget of 1 means."""
    ids = torch.arange(video.frames * video.cells, device=video.tokens.device)
    tokens = video.tokens.reshape(len(ids), -1)
    return TokenSet(tokens, ids // video.cells, ids % video.cells, torch.ones(len(ids), device=ids.device))


def on(array: np.ndarray, like: Tensor) -> Tensor:
    """A host array as a tensor on the device of ``like``; the host does not wait for the copy."""
    return to_device(array, like=like)[0]
