"""What every outer method refuses, and the identity that all of them share at budget 1."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from holitom.errors import BadUsage
from holitom.types import Outer, TokenSet, VideoFeatures


def need_saliency(method: Outer, video: VideoFeatures) -> Tensor | None:
    """The video's saliency in float32 if the method reads it, else None. Raises BadUsage when it is missing."""
    if "saliency" not in method.requires:
        return None
    if video.saliency is None:
        raise BadUsage(
            f"{type(method).__name__} ranks tokens by saliency, but VideoFeatures.saliency is None",
            fix="let reduce_tokens compute it, or pass saliency=[T, N] (attention each token receives)",
        )
    return video.saliency.float()


def refuse_non_finite(video: VideoFeatures, norms: Tensor, similar: Tensor) -> np.ndarray:
    """The booleans ``similar`` on the host, after a check that rode along in the same copy: every token norm and every
    saliency is finite. Raises BadUsage that names which of the two is not, and the first frame where."""
    fine = {"tokens": norms.isfinite().all()}
    if video.saliency is not None:
        fine["saliency"] = video.saliency.isfinite().all()
    packed = torch.cat([similar.flatten(), torch.stack([*fine.values()])]).cpu().numpy()
    for name, good in zip(fine, packed[similar.numel() :], strict=True):
        if not good:
            values = norms if name == "tokens" else video.saliency
            frame = int((~values.isfinite()).any(dim=1).nonzero()[0])
            raise BadUsage(
                f"{name} hold a NaN or an infinity, first in frame {frame}",
                fix="check the vision tower's precision (float16 overflows; use bfloat16 or float32)",
            )
    return packed[: similar.numel()].reshape(similar.shape)


def every_token(video: VideoFeatures) -> TokenSet:
    """All tokens in raster order, unchanged: what a budget of 1 means."""
    ids = torch.arange(video.frames * video.cells, device=video.tokens.device)
    tokens = video.tokens.reshape(len(ids), -1)
    return TokenSet(tokens, ids // video.cells, ids % video.cells, torch.ones(len(ids), device=ids.device))
