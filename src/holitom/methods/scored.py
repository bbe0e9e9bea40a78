"""What stages inside the language model refuse before they rank tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from holitom.errors import BadUsage
from holitom.ops.transfer import refuse_if


def finite_scores(stage: Any, score: Tensor) -> Tensor:
    """The scores in float32. Raises BadUsage for a NaN or an infinity among them: at once on a CPU, and elsewhere with
    one flag read, which a run inside a model reads later (ops.transfer)."""
    refuse_if(
        ~score.isfinite().all(),
        lambda: BadUsage(
            f"the attention scores of {type(stage).__name__} at layer {stage.layer} hold a NaN or an infinity",
            fix="check the precision of the language model (float16 overflows; use bfloat16 or float32)",
        ),
    )
    return score.float()


def finite_states(stage: Any, likeness: Tensor) -> None:
    """Raises BadUsage if a NaN or an infinity in the states has made a comparison of them not finite; when, as
    in :func:`finite_scores`."""
    refuse_if(
        ~likeness.isfinite().all(),
        lambda: BadUsage(
            f"the states that enter {type(stage).__name__} at layer {stage.layer} hold a NaN or an infinity",
            fix="check the precision of the language model (float16 overflows; use bfloat16 or float32)",
        ),
    )


def check_keep(layer: int, ratio: float, what: str) -> None:
    """A stage stands at layer 0 or later and keeps a share in (0, 1]."""
    if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
        raise BadUsage(f"layer {layer!r} is not a decoder layer", fix="count layers from 0")
    if not 0.0 < ratio <= 1.0:
        raise BadUsage(f"{what} {ratio!r} is outside (0, 1]", fix="give the share of visual tokens to keep")
