"""DyCoke (arXiv 2411.15024): drop the cells that a frame shares with an earlier one of its window of four, and, while
generating, read only the visual tokens that matter to the newest token. Facts about the release: KD-TAO/DyCoke at
dd74634, llava/model/llava_arch.py (dycole_ttm) and llava/model/language_model/modeling_qwen2.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from holitom.errors import BadUsage
from holitom.methods.inner import check_stage
from holitom.methods.inputs import budget_tokens, every_token, on, refuse_non_finite
from holitom.methods.scored import finite_scores
from holitom.ops.selection import keep_count, mask_ids, spread, topk_ids
from holitom.ops.similarity import row_norms
from holitom.types import Fidelity, Positions, TokenSet, VideoFeatures, check_budget

_TINY = 1e-12


@dataclass(frozen=True)
class DyCoke:
    """Keep the first frame of every window whole, and of the others the cells that changed most. Tokens are dropped,
    never averaged, although the paper calls the stage merging.

    In a window (a, b, c, d) frame b is compared with a, d with c, and c with a, cell by cell with the cosine; a
    compressed frame keeps its least similar cells. The paper's K, the share removed from a compressed frame, follows
    from the budget: (1 + 3 (1 - K)) / 4 = budget, so that 25 % (K = 1) is the least that windows of four can reach.

    window: frames per window, 4 in the paper. A longer one reaches below 25 % (and is no longer the paper's method):
    odd frames of a window are compared with the frame before, even ones with its first.
    released True: the release's loop, which leaves the frame c of the last window whole when T is divisible by 4
    (28.1 % instead of 25 % at T = 32), drops the last frame when T is odd, orders kept cells by similarity, and keeps
    int((1 - K) N) cells per compressed frame. It fails up to four frames, so it is refused there.

    The clean reading keeps round(budget * T * N) tokens in raster order; fewer than one window's frames cannot go below
    one whole frame. Raises BadUsage for a budget below 1 / window and for a NaN.
    """

    window: int = 4
    released: bool = False

    requires: ClassVar[frozenset[str]] = frozenset()
    positions: ClassVar[Positions] = "contiguous"
    deviations: ClassVar[tuple[str, ...]] = (
        "Every window is compressed; the release skips the last one.",
        "The last T mod 4 frames join the window before them; the release drops an odd last frame.",
        "Kept cells stay in raster order; the release orders them by similarity.",
        "The number kept is exact over the whole video, so compressed frames differ by up to one token.",
        "Budget 1 returns every token; at most T = 3 the first frame stays whole, whatever the budget.",
    )

    def __post_init__(self) -> None:
        if not isinstance(self.window, int) or self.window < 2:
            raise BadUsage(
                f"window={self.window!r} is not a number of frames from 2 on", fix="use 4, as the paper does"
            )
        if self.released and self.window != 4:
            raise BadUsage(f"the released loop has windows of 4, not {self.window}", fix="use released=False")

    @property
    def fidelity(self) -> Fidelity:
        if self.window != 4:
            return "reconstruction"
        return "golden" if self.released else "port"

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        """Reduce one video. One copy to the host (the check for NaN): nothing else depends on values."""
        budget = check_budget(budget)
        norms = row_norms(video.tokens)
        refuse_non_finite({"tokens": norms})
        if budget == 1.0:
            return every_token(video)
        if budget < 1 / self.window - 1e-9:
            raise BadUsage(
                f"DyCoke keeps one whole frame in {self.window}, so {budget:g} is below what it can reach",
                fix=f"ask for {1 / self.window:g} or more, or use DyCoke(window={math.ceil(1 / budget)})",
            )
        partner, counts = self._released_plan(video, budget) if self.released else self._plan(video, budget)
        similar = _cosine_with(video.tokens, norms, partner)
        order = torch.sort(similar, dim=1, stable=True).indices  # least similar first; a whole frame stays as it is
        kept = on(np.arange(video.cells) < counts[:, None], similar)
        if not self.released:
            order = order.masked_fill(~kept, video.cells).sort(dim=1).values
        ids = order + torch.arange(video.frames, device=order.device)[:, None] * video.cells
        ids = ids.flatten()[mask_ids(kept.flatten(), int(counts.sum()))]
        tokens = video.tokens.reshape(-1, video.tokens.shape[-1])[ids]
        return TokenSet(tokens, ids // video.cells, ids % video.cells, torch.ones(len(ids), device=ids.device))

    def _plan(self, video: VideoFeatures, budget: float) -> tuple[np.ndarray, np.ndarray]:
        """For each frame, the frame it is compared with (itself: kept whole) and how many cells it keeps."""
        frame = np.arange(video.frames)
        windows = max(1, video.frames // self.window)
        first = np.minimum(frame // self.window, windows - 1) * self.window
        partner = np.where((frame - first) % 2 == 1, frame - 1, first)
        counts = np.full(video.frames, video.cells)
        left = max(0, budget_tokens(video, budget) - windows * video.cells)
        if video.frames > windows:
            counts[frame != first] = spread(left, video.frames - windows)
        return partner, counts

    def _released_plan(self, video: VideoFeatures, budget: float) -> tuple[np.ndarray, np.ndarray]:
        if video.frames <= 4:
            raise BadUsage(
                f"the released code of DyCoke fails on {video.frames} frames (it needs 5)", fix="use released=False"
            )
        frame = np.arange(video.frames)
        reached = (frame % 4 == 2) & (frame - 2 < video.frames - 4)
        partner = np.where(frame % 2 == 1, frame - 1, np.where(reached, frame - 2, frame))
        # The small number undoes rounding in the way from K to the budget and back.
        share = (4 * budget - 1) / 3
        counts = np.where(partner == frame, video.cells, keep_count(video.cells, share + 1e-9, "floor"))
        if video.frames % 2:
            counts[-1] = 0
        return partner, counts


@dataclass(frozen=True)
class DyCokeDecode:
    """While generating: from ``layer`` on, read only the visual tokens to which the newest token attends most in
    layer - 1. The cache keeps every token, so another set can be read at the next step: no memory is saved. At every
    step the chosen keys and values are copied out of the cache, and attention reads the copies. With a share p left
    unread that is three passes over (1 - p) of the visual cache instead of one over all of it, a gain above p = 2/3;
    the release gathers in the same way.

    layer: first layer that reads less (3 in the release); ratio: share of the visual tokens left unread (the paper's P;
    0.7 in the release's description, 0.8 in its code). int(V * (1 - ratio)) are read, at least one; text always is.
    released True: the last visual token counts as text, and with ``previous`` (the row of the step before) nothing is
    left unread while the cosine of both rows over the visual tokens is ``threshold`` or more.
    """

    layer: int = 3
    ratio: float = 0.7
    threshold: float = 0.9
    released: bool = False

    deviations: ClassVar[tuple[str, ...]] = (
        "The set is chosen anew at every step; the paper keeps the last one while attention stays similar, the release "
        "then reads everything.",
        "The last visual token is one like the others; the release always reads it.",
    )
    fidelity: ClassVar[Fidelity] = "port"

    def __post_init__(self) -> None:
        check_stage(self.layer, self.ratio)

    @property
    def identity(self) -> bool:
        """Whether these parameters ask for nothing."""
        return self.ratio == 0

    @property
    def reads_previous(self) -> bool:
        """Only the release compares two steps."""
        return self.released

    def __call__(
        self,
        row: Float[Tensor, " seq"],
        visual: Int[Tensor, " visual"],
        previous: Float[Tensor, " before"] | None = None,
    ) -> Int[Tensor, " read"] | None:
        """row: [S] attention of the newest token in layer - 1, mean over heads; visual: ascending ids of the visual
        tokens in it; previous: the row of the step before, if any -> the ids to read, ascending; None for all of them.
        Raises BadUsage for a NaN in the visual tokens' attention."""
        if self.ratio == 0 or not visual.shape[0]:
            return None
        scores = finite_scores(self, row[visual])
        if not self.released:
            return visual[topk_ids(scores, max(1, keep_count(visual.shape[0], 1 - self.ratio, "floor")))]
        ranked, always, score = visual[:-1], visual[-1:], scores[:-1]
        if previous is not None and _cosine(score, previous[ranked].float()) >= self.threshold:
            return None
        chosen = topk_ids(score, keep_count(ranked.shape[0], 1 - self.ratio, "floor"))
        return torch.cat([ranked[chosen], always])


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()).clamp_min(_TINY))


def _cosine_with(tokens: Tensor, norms: Tensor, partner: np.ndarray) -> Tensor:
    """[T, N] float32 cosine of every cell with the same cell of its frame's partner; 0 for a frame that is its own.
    An eighth of the frames at a time, so that the float32 copies stay below the input's size."""
    similar = norms.new_zeros(norms.shape)
    compared = np.flatnonzero(partner != np.arange(len(partner)))
    step = -(-len(partner) // 8)
    for i in range(0, len(compared), step):
        here = on(compared[i : i + step], norms)
        there = on(partner[compared[i : i + step]], norms)
        dots = (tokens[here].float() * tokens[there].float()).sum(-1)
        similar[here] = dots / norms[here].clamp_min(_TINY) / norms[there].clamp_min(_TINY)
    return similar
