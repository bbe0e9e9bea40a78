"""What the inner stages share: which visual tokens stay, and the ids of everything that does."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holitom.errors import BadUsage
from holitom.methods.scored import finite_scores
from holitom.ops.selection import keep_count, mask_ids, topk_ids


def check_stage(layer: int, ratio: float) -> None:
    """A stage begins at layer 1 or later (its score comes from the layer before) and removes a share in [0, 1)."""
    if not isinstance(layer, int) or isinstance(layer, bool):
        raise BadUsage(f"layer {layer!r} is no int", fix="give the number of a layer, 1 or more")
    if layer < 1:
        raise BadUsage(
            f"layer {layer!r} cannot be reduced: the score comes from the layer before it", fix="use 1 or more"
        )
    if not 0.0 <= ratio < 1.0:
        raise BadUsage(
            f"ratio {ratio!r} is outside [0, 1)", fix="give the share of visual tokens to remove, such as 0.5"
        )


def kept_visual(stage: Any, score: Float[Tensor, " seq"], visual: Int[Tensor, " visual"]) -> Int[Tensor, " kept"]:
    """Indices into ``visual`` of the round(V * (1 - stage.ratio)) tokens (at least one) with the highest score,
    ascending. Raises BadUsage for a NaN or an infinity among their scores."""
    wanted = keep_count(visual.shape[0], 1 - stage.ratio, "round")
    return topk_ids(finite_scores(stage, score[visual]), max(1, wanted))


def surviving(seq: int, visual: Int[Tensor, " visual"], kept: Int[Tensor, " kept"]) -> Int[Tensor, " left"]:
    """Ascending ids of the sequence without the visual tokens that were not kept."""
    mask = torch.ones(seq, dtype=torch.bool, device=visual.device)
    mask[visual] = False
    mask[visual[kept]] = True
    return mask_ids(mask, seq - visual.shape[0] + kept.shape[0])
