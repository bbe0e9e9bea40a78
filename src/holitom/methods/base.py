"""What the methods share: what they read and refuse, how many tokens a budget means, and what a stage leaves over."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from holitom.errors import BadUsage
from holitom.ops.tensors import ids_of, spread, top_ids
from holitom.types import TokenSet, VideoFeatures, check_budget

# --- before the language model


def need_field(method: object, video: VideoFeatures, name: str) -> Tensor:
    """An optional field of the video, in float32. BadUsage where it is missing."""
    value = getattr(video, name)
    if value is None:
        raise BadUsage(
            f"{type(method).__name__} reads VideoFeatures.{name}, which is None",
            fix=f"let reduce_tokens compute it, or give VideoFeatures({name}=...)",
        )
    return value.float()


def refuse_non_finite(**fields: Tensor) -> None:
    """BadUsage that names the first field [T, ...] with a NaN or an infinity, and the first frame where. For the tokens
    give their norms: those are small, and non-finite where a token is."""
    if torch.stack([value.isfinite().all() for value in fields.values()]).all():
        return
    for name, value in fields.items():
        if not value.isfinite().all():
            frame = int((~value.isfinite()).flatten(1).any(1).nonzero()[0])
            raise BadUsage(
                f"{name} hold a NaN or an infinity, first in frame {frame}",
                fix="check the vision tower's precision (float16 overflows; use bfloat16 or float32)",
            )


def on_host(wanted: Tensor, **fields: Tensor) -> np.ndarray:
    """A boolean tensor on the host, in the one copy that also says whether every field is finite: BadUsage as in
    :func:`refuse_non_finite`."""
    finite = torch.stack([value.isfinite().all() for value in fields.values()]).all()
    found = torch.cat([finite[None], wanted.flatten()]).cpu().numpy()
    if not found[0]:
        refuse_non_finite(**fields)
    return found[1:].reshape(wanted.shape)


def budget_tokens(video: VideoFeatures, budget: float) -> int:
    """round(budget * T * N), at least one token: what an exact count means."""
    return max(1, round(check_budget(budget) * (video.frames * video.cells)))


def frame_counts(video: VideoFeatures, budget: float) -> np.ndarray:
    """[T] tokens to keep in each frame: round(budget * T * N) in all, spread so that two frames differ by at most one;
    below one token per frame some frames get none."""
    return spread(budget_tokens(video, budget), video.frames)


def token_set(video: VideoFeatures, ids: Tensor, tokens: Tensor | None = None, size: Tensor | None = None) -> TokenSet:
    """The tokens at ``ids`` [M] of the flattened video (frame * N + cell), in that order; ``tokens`` [M, D] where they
    were merged, ``size`` [M] where they stand for more than themselves."""
    kept = video.tokens.flatten(0, 1)[ids] if tokens is None else tokens.to(video.tokens.dtype)
    size = torch.ones(len(ids), device=ids.device) if size is None else size.float()
    return TokenSet(kept, ids // video.cells, ids % video.cells, size)


def every_token(video: VideoFeatures) -> TokenSet:
    """All tokens in raster order, unchanged: what a budget of 1 means."""
    return token_set(
        video, torch.arange(video.frames * video.cells, device=video.tokens.device), video.tokens.flatten(0, 1)
    )


# --- inside the language model


def check_stage(stage: Any, lowest: int = 1) -> None:
    """BadUsage unless ``stage.layer`` is an int from ``lowest`` on: 1 where the score comes from the layer before."""
    if not isinstance(stage.layer, int) or isinstance(stage.layer, bool) or stage.layer < lowest:
        raise BadUsage(
            f"{type(stage).__name__} at layer {stage.layer!r}", fix=f"count layers from 0, and use {lowest} or more"
        )


def check_share(stage: Any, name: str, *, none: bool = False) -> None:
    """BadUsage unless the field is a share in (0, 1]; with ``none`` in [0, 1), for a share that is removed."""
    share = getattr(stage, name)
    if not (0 <= share < 1 if none else 0 < share <= 1):
        raise BadUsage(
            f"{type(stage).__name__}({name}={share!r}) is outside {'[0, 1)' if none else '(0, 1]'}",
            fix="give a share of the visual tokens, such as 0.5",
        )


def finite(stage: Any, values: Tensor, what: str = "attention scores") -> Tensor:
    """The values in float32. BadUsage for a NaN or an infinity among them."""
    if not values.isfinite().all():
        raise BadUsage(
            f"the {what} of {type(stage).__name__} at layer {stage.layer} hold a NaN or an infinity",
            fix="check the precision of the language model (float16 overflows; use bfloat16 or float32)",
        )
    return values.float()


def highest(stage: Any, score: Tensor, visual: Tensor, count: int) -> Tensor:
    """Places in ``visual`` [V] (ids into the sequence) of the ``count`` (at least one) tokens with the highest score
    [S], ascending. BadUsage for a NaN or an infinity among their scores."""
    return top_ids(finite(stage, score[visual]), max(1, count))


def surviving(seq: int, visual: Tensor, kept: Tensor) -> Tensor:
    """Ascending ids of a sequence of ``seq`` tokens without the visual ones [V] that are not among the places ``kept``
    [K] of them."""
    stays = torch.ones(seq, dtype=torch.bool, device=visual.device)
    stays[visual] = False
    stays[visual[kept]] = True
    return ids_of(stays, seq - len(visual) + len(kept))
