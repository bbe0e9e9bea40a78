"""V-CAST: frames where the video turns get more tokens, and of every frame the tokens that stand out. An exact count,
no attention: what a serving engine can ask for. After xinyouu/V-CAST at c672e67 (modeling_qwen3_vl_v_cast.py).

1. Curvature of frame t: 1 - cos(v[t] - v[t-1], v[t+1] - v[t]) of the normalised mean tokens v; 1 at both ends.
2. softmax(curvature / 0.7) shares out the tokens: one for every frame, then the whole part of each frame's share of the
   rest, at most all its tokens; what is left fills up the frames in descending order of the fraction that they lost.
3. Of every frame the tokens with the highest (1 - cosine with the frame's mean token) + norm, the norm scaled to [0, 1]
   inside the frame. In raster order, unchanged, with the positions of the full prompt.

Written for Qwen3-VL. Deviations: where there is no token for every frame the release keeps more than it is asked for,
here some frames get none; a video of one frame is reduced too (the release leaves it); ties go to the lower index.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cosine_similarity, normalize, pad

from holitom.methods.base import OuterStage, budget_tokens, refuse_non_finite, token_set
from holitom.ops.tensors import TINY, frame_mean, ids_of, on, row_norms, top_mask
from holitom.types import TokenSet, VideoFeatures


@dataclass(frozen=True)
class VCast(OuterStage):
    """temperature: of the softmax over the frames' curvatures. Keeps round(budget * T * N) tokens. BadUsage for a
    budget outside (0, 1] and for a NaN in the tokens."""

    temperature: float = 0.7

    positions = "original"
    fidelity = "port"

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        """Reduce one video. Two copies to the host: is everything finite, and the frames' shares."""
        wanted, norms = budget_tokens(video, budget), row_norms(video.tokens)
        refuse_non_finite(tokens=norms)
        with torch.no_grad():
            centre = normalize(frame_mean(video.tokens), dim=-1, eps=1e-6)
            step = centre.diff(dim=0)
            turn = 1 - cosine_similarity(step[:-1], step[1:], dim=-1, eps=1e-6)  # from 0, straight on, to 2, back again
            curvature = pad(turn, (1, 1), value=1.0)[: video.frames]
            shares = (curvature / self.temperature).softmax(0).cpu().numpy()
            parts = zip(video.tokens.split(8), centre[..., None].split(8), strict=True)
            dots = torch.cat([(part.float() @ mean)[..., 0] for part, mean in parts])
            low, high = norms.aminmax(dim=1, keepdim=True)
            score = 1 - dots / norms.clamp_min(TINY) + (norms - low) / (high - low + 1e-6)
            mask = top_mask(score, on(share_frames(shares, wanted, video.cells), norms))
        return token_set(video, ids_of(mask.flatten(), wanted))


def share_frames(shares: np.ndarray, total: int, cells: int) -> np.ndarray:
    """Step 2: the frames' shares [T], which add up to 1 -> tokens of every frame [T], ``total`` in all."""
    least = int(total >= len(shares))
    share = shares * (total - least * len(shares))
    counts = least + np.minimum(np.floor(share), cells - least).astype(np.int64)
    order = np.argsort(np.floor(share) - share, kind="stable")
    room = cells - counts[order]
    counts[order] += np.clip(total - counts.sum() - (room.cumsum() - room), 0, room)
    return counts
