"""DyCoke (arXiv 2411.15024): drop the cells that a frame shares with an earlier one of its window of four, and, while
generating, read only the visual tokens that matter to the newest token.

Before the language model (:class:`DyCoke`), in every window of frames (a, b, c, d):
1. Compare b with a, and d with c, cell by cell, by the cosine; compare c with a.
2. a stays whole. b, c and d keep their int((1 - K) * N) least similar cells. Nothing is averaged, although the paper
   calls the stage token temporal merging.

While generating (:class:`DyCokeDecode`), at every token: the layers from l on read the int((1 - P) * V) visual tokens
to which the newest token attends most in layer l - 1, and all text.

Read in KD-TAO/DyCoke at dd74634: llava/model/llava_arch.py, dycole_ttm, and llava/model/language_model/
modeling_qwen2.py. As there, frame c of the last window stays whole when T is divisible by 4 (28.1 % of the tokens at
T = 32 and K = 1, not 25 %), kept cells of a frame are in ascending order of similarity, and the last visual token is
always read while generating. Deviations: an odd last frame, which the release loses, stays whole; up to four frames,
where the release fails, are treated like the end of a longer video; budget 1 is the identity. While generating, the
set is chosen anew at every token: the release reads everything as long as attention resembles that of the token before
(cosine from 0.9), where the paper means to keep the last set.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from holitom.errors import BadUsage
from holitom.methods.base import OuterStage, Stage, refuse_non_finite, token_set
from holitom.ops.tensors import neighbour_cosine, on, row_norms, top_ids
from holitom.types import TokenSet, VideoFeatures, check_budget


@dataclass(frozen=True)
class DyCoke(OuterStage):
    """The paper's K, the share removed from a compressed frame, follows from the budget by (1 + 3 (1 - K)) / 4, so that
    25 % (K = 1) is the least that can be asked for. The number kept is above the budget by what the last window keeps,
    and by rounding below it. BadUsage for a budget below 25 % and for a NaN."""

    fidelity = "golden"

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        if check_budget(budget) == 1:
            return super().__call__(video, budget)
        if budget < 0.25 - 1e-9:
            what = f"DyCoke keeps one whole frame in four, so {budget:g} is below what it can reach"
            raise BadUsage(what, fix="ask for 0.25 or more")
        # The small number undoes rounding in the way from K to the budget and back.
        return temporal_merging(video, int((4 * budget - 1) / 3 * video.cells + 1e-9))


def temporal_merging(video: VideoFeatures, kept: int) -> TokenSet:
    """The paper's token temporal merging with ``kept`` cells of N in every compressed frame: frame by frame, and the
    cells of a compressed one from the least similar on. BadUsage for a NaN."""
    frames, cells, windows = video.frames, video.cells, len(range(0, video.frames - 4, 4))
    norms = row_norms(video.tokens)
    refuse_non_finite(tokens=norms)
    # 1. Similarity with the frame that each one is compared with; of equal cells the lowest is kept.
    similar = torch.zeros_like(norms)
    similar[1::2] = neighbour_cosine(video.tokens, norms)[::2]
    similar[2::4][:windows] = neighbour_cosine(video.tokens[::2], norms[::2])[::2][:windows]
    least = similar.sort(dim=1, stable=True).indices
    # 2. All cells of a whole frame, whose similarities are all 0, and the least similar ones of the others.
    counts = np.full(frames, cells)
    counts[1::2] = kept
    counts[2::4][:windows] = kept
    places = np.flatnonzero(np.arange(cells) < counts[:, None])
    first = torch.arange(frames, device=least.device)[:, None] * cells
    return token_set(video, (first + least).flatten()[on(places, least)])


@dataclass(frozen=True)
class DyCokeDecode(Stage):
    """layer: the paper's l, the first layer that reads less; ratio: its P, the share of the visual tokens left unread
    (0.7 in the release's description, 0.8 in its code). BadUsage for a layer below 1 and a ratio outside [0, 1).

    The cache keeps every token, and attention masks the unread ones: the answers are those of the release, which copies
    the chosen keys and values out of its cache, but neither memory nor time is saved here.
    """

    layer: int = 3
    ratio: float = 0.7

    fidelity = "port"

    def __call__(self, row: Tensor, visual: Tensor) -> Tensor | None:
        """row [S]: attention of the newest token in layer - 1, mean over heads; visual [V]: ascending ids of the visual
        tokens in it -> the ids to read, ascending; None for all of them. BadUsage for a NaN in their attention."""
        if self.identity or not len(visual):
            return None
        score = self.finite(row[visual])[:-1]  # the last one is always read
        return torch.cat([visual[top_ids(score, int(len(score) * (1 - self.ratio)))], visual[-1:]])
