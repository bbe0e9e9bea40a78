"""HieraVid (arXiv 2604.01881): merge over time, then choose diverse tokens per segment, fewer the deeper the layer.
Facts about the authors' code: Ethan16162/VidTokenPrune at 2733a94, a development repository, not a release; whether the
paper's tables used it exactly is not known. The paper's percentages are averages over the layers of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from holitom.errors import BadUsage
from holitom.methods.inner import check_stage, surviving
from holitom.methods.inputs import budget_tokens, every_token, on, refuse_non_finite
from holitom.methods.scored import finite_scores, finite_states
from holitom.ops.determinantal import greedy_map
from holitom.ops.merging import bag_means
from holitom.ops.segment_budgets import frame_means, keep_ratios, marginal_gains, padded_groups, weighted_shares
from holitom.ops.selection import keep_count, mask_ids, topk_ids
from holitom.ops.similarity import neighbour_cosine, row_norms
from holitom.types import Fidelity, Positions, Reduction, TokenSet, VideoFeatures, check_budget

SCHEDULES = {"30%": (0.5, 0.3, 0.3, 0.57), "20%": (0.5, 0.5, 0.7, 0.8), "10%": (0.7, 0.6, 0.85, 0.9)}
"""Share removed at layers 0, 7, 14 and 21 of 28, of what is left by then; the names are the paper's budgets."""
LAYERS = (0, 7, 14, 21)


@dataclass(frozen=True)
class HieraVid:
    """The first stage: the tokens most like their cell's previous frame are merged into it, until the budget is met.

    similarity: cosine to the previous frame above which a cell counts as unchanged (strict). threshold: a new segment
    begins where less than this share of a frame's cells is unchanged (the authors' beta). k: weight in the segments'
    marginal gain (see ops.segment_budgets). scope "video" (assumption A1, as coded): the most similar tokens of the
    whole video are merged, also across segments; "segment": across them only where the budget leaves no choice.

    Runs of merged tokens at one cell are averaged into the token before the run, which keeps its original position.
    The count is exact. Below one token per cell, where merging over time ends, evenly spaced cells remain. ``group``
    is the token's segment, ``gain`` its segment's marginal gain: the later stages read both.
    """

    similarity: float = 0.6
    threshold: float = 0.4
    k: float = 0.5
    scope: Literal["video", "segment"] = "video"

    requires: ClassVar[frozenset[str]] = frozenset()
    positions: ClassVar[Positions] = "original"
    fidelity: ClassVar[Fidelity] = "reconstruction"
    deviations: ClassVar[tuple[str, ...]] = (
        "From the first author's development code; the paper's equations were not available.",
        "Newline embeddings are left alone; the code merges them like patches on LLaVA-Video.",
        "Below one frame's worth of tokens, evenly spaced cells remain (the code has no rule).",
    )

    def __post_init__(self) -> None:
        if self.scope not in ("video", "segment"):
            raise BadUsage(f"scope={self.scope!r} is unknown", fix="choose from video, segment")

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        """Reduce one video. One copy to the host. Raises BadUsage for a bad budget or a NaN in the tokens."""
        budget = check_budget(budget)
        frames, cells = video.frames, video.cells
        norms = row_norms(video.tokens)
        sim = neighbour_cosine(video.tokens, norms)
        changed = (sim > float(np.float32(self.similarity))).float().mean(1) < float(np.float32(self.threshold))
        cuts = refuse_non_finite({"tokens": norms}, changed).astype(bool)
        lengths = np.diff(np.concatenate([[0], np.flatnonzero(cuts) + 1, [frames]]))
        every = torch.arange(frames, device=sim.device)
        gains = marginal_gains(bag_means(frame_means(video.tokens), every, on(lengths, sim)), self.k)
        segment = on(np.repeat(np.arange(len(lengths)), lengths), sim)

        wanted = budget_tokens(video, budget)
        kept = every_token(video) if wanted == frames * cells else self._merge(video, sim, changed, wanted)
        group = segment[kept.frame]
        return TokenSet(kept.tokens, kept.frame, kept.cell, kept.size, group, gains[group])

    def _merge(self, video: VideoFeatures, sim: Tensor, changed: Tensor, wanted: int) -> TokenSet:
        frames, cells, _ = video.tokens.shape
        left = max(wanted, cells)
        rank = sim - 4.0 * changed[:, None] if self.scope == "segment" else sim
        merged = torch.zeros(frames * cells, dtype=torch.bool, device=sim.device)
        merged[topk_ids(rank.flatten(), frames * cells - left) + cells] = True
        frame = torch.arange(frames, device=sim.device)[:, None].expand(frames, cells)
        start = torch.where(merged.view(frames, cells), 0, frame).cummax(0).values
        owner = (start * cells + torch.arange(cells, device=sim.device)).flatten()
        heads = mask_ids(~merged, left)
        owners, members = owner.sort(stable=True)
        edges = torch.searchsorted(owners, torch.cat([heads, heads.new_full((1,), frames * cells)]))
        size = edges.diff()
        tokens = bag_means(video.tokens.flatten(0, 1), members, size, keep_dtype=True)
        if wanted < cells:
            some = (2 * torch.arange(wanted, device=sim.device) + 1) * cells // (2 * wanted)
            tokens, heads, size = tokens[some], heads[some], size[some]
        return TokenSet(tokens, heads // cells, heads % cells, size.float())


@dataclass(frozen=True)
class HieraVidSelect:
    """A later stage: of every segment's visual tokens, keep a diverse subset (greedy MAP of a determinantal process).

    layer: first layer that sees fewer tokens; ratio: share of the tokens still there that is removed. The kernel is
    cosine of the states, times a quality: the attention that the last prompt token pays in ``layer``, scaled to
    [0, 1] over the video, plus 1e-6. relevance -1 (assumption A2, as coded): the *least* attended token has the highest
    quality, which may be an oversight or a wish for diversity; +1: the most attended. A segment may keep
    (1 - ratio) + extra * gain of its tokens, within ``clamp``. eps (A3): see ops.determinantal.greedy_map.
    The clean reading scales these shares so that round((1 - ratio) * V) tokens stay; ``released`` (A4): int() of each
    segment's. Without groups all visual tokens are one segment.
    """

    layer: int
    ratio: float
    relevance: Literal[-1, 1] = -1
    extra: float = 0.1
    clamp: tuple[float, float] = (0.05, 0.95)
    eps: float = 1e-5
    released: bool = False

    score: ClassVar[Literal["this"]] = "this"
    query: ClassVar[Literal["last"]] = "last"
    positions: ClassVar[Positions] = "original"
    prune_past: ClassVar[bool] = False
    causal: ClassVar[bool] = True
    include_newlines: ClassVar[bool] = False
    reads_groups: ClassVar[bool] = True
    fidelity: ClassVar[Fidelity] = "reconstruction"
    deviations: ClassVar[tuple[str, ...]] = (
        "From the first author's development code; the paper's equations were not available.",
        "Tokens leave before the layer's attention instead of between its attention and its MLP (A5).",
        "Clean reading: the total is exact; the code rounds down in every segment and drops 5 % at ratio 0.",
        "Dependent tokens are ranked by quality; in the code they follow rounding noise, which can end in NaN.",
        "The later version of the code (spread instead of determinantal selection at layer 7, Nystrom) is not built.",
    )

    def __post_init__(self) -> None:
        check_stage(self.layer, self.ratio)
        if self.relevance not in (-1, 1):
            raise BadUsage(f"relevance={self.relevance!r} is unknown", fix="choose -1 (as coded) or 1")
        if not 0 < self.clamp[0] <= self.clamp[1] <= 1:
            raise BadUsage(f"clamp {self.clamp} is not a range in (0, 1]", fix="use (0.05, 0.95)")

    @property
    def identity(self) -> bool:
        """Whether these parameters ask for nothing."""
        return self.ratio == 0 and not self.released

    def __call__(
        self,
        hidden: Float[Tensor, "seq dim"],
        score: Float[Tensor, " seq"],
        visual: Int[Tensor, " visual"],
        n0: int,
        group: Int[Tensor, " visual"] | None = None,
        gain: Float[Tensor, " visual"] | None = None,
    ) -> tuple[Int[Tensor, " kept"], Float[Tensor, "kept dim"]]:
        """hidden [S, D] entering ``layer``, score [S], visual: ascending ids, group and gain [V] -> (ids [S']
        ascending, hidden[ids]). Copies to the host: groups and gains, and per chunk of segments their sizes. Raises
        BadUsage for a NaN in the visual tokens' scores or states."""
        total = visual.shape[0]
        attention = finite_scores(self, score[visual]) * self.relevance
        labels = np.zeros(total, dtype=np.int64) if group is None else group.cpu().numpy()
        ids, valid, sizes = padded_groups(labels)
        gains = np.zeros(len(sizes)) if gain is None else gain.cpu().numpy()[ids[:, 0]]
        keep = self._counts(sizes, gains)
        if keep.sum() == total:
            return torch.arange(hidden.shape[0], device=hidden.device), hidden
        span = (attention.amax() - attention.amin()).clamp_min(torch.finfo(torch.float32).tiny)
        finite_states(self, row_norms(hidden[None])[0, visual])
        quality = score.new_zeros(score.shape, dtype=torch.float32)
        quality[visual] = (attention - attention.amin()) / span + 1e-6
        mask = torch.zeros(total + 1, dtype=torch.bool, device=visual.device)
        for chunk, width in _chunks(sizes, hidden.shape[1], total * hidden.shape[1]):
            some, real = (torch.from_numpy(a[chunk, :width]).to(visual.device) for a in (ids, valid))
            chosen = greedy_map(hidden, quality, visual[some], real, keep[chunk], self.eps)
            mask[torch.where(chosen, some, total)] = True
        kept = surviving(hidden.shape[0], visual, mask_ids(mask[:total], int(keep.sum())))
        return kept, hidden.index_select(0, kept)

    def _counts(self, sizes: np.ndarray, gains: np.ndarray) -> np.ndarray:
        ratios = keep_ratios(1 - self.ratio, gains, self.extra, self.clamp)
        if not self.released:
            return weighted_shares(sizes * ratios, sizes, max(1, round((1 - self.ratio) * int(sizes.sum()))))
        keep = np.array([keep_count(int(n), float(r), "floor") for n, r in zip(sizes, ratios, strict=True)])
        if not keep.sum():
            keep[np.argmax(sizes)] = 1
        return keep


def hieravid_stages(schedule: str = "30%", layers: int = 28, **settings: object) -> tuple[HieraVidSelect, ...]:
    """The three stages behind the first one, for a decoder of ``layers`` layers; settings go to every stage."""
    removed = _schedule(schedule)
    return tuple(
        HieraVidSelect(_moved(start, layers), ratio, **settings)
        for start, ratio in zip(LAYERS[1:], removed[1:], strict=True)
    )


def hieravid(schedule: str = "30%", layers: int = 28, outer: HieraVid | None = None, **settings: object) -> Reduction:
    """The complete method: "30%", "20%" or "10%" of the tokens on average over the layers, as the paper counts; the
    budget before the language model is 50, 50 or 30 %."""
    budget = 1 - _schedule(schedule)[0]
    stages = hieravid_stages(schedule, layers, **settings)
    return Reduction(f"HieraVid {schedule} (layer average)", outer or HieraVid(), budget, stages)


def layer_shares(schedule: str = "30%", layers: int = 28) -> list[float]:
    """Share of the visual tokens that enters every layer."""
    left = np.cumprod(1 - np.array(_schedule(schedule)))
    starts = [0, *(_moved(start, layers) for start in LAYERS[1:])]
    return [float(left[sum(layer >= start for start in starts) - 1]) for layer in range(layers)]


def _moved(layer: int, layers: int) -> int:
    """Layer of 28 in a decoder of another depth, halves up, from 1 on."""
    return max(1, int(layer * layers / 28 + 0.5))


def _schedule(name: str) -> Sequence[float]:
    if name not in SCHEDULES:
        raise BadUsage(f"HieraVid has no schedule {name!r}", fix=f"choose from {', '.join(SCHEDULES)}")
    return SCHEDULES[name]


def _chunks(sizes: np.ndarray, dim: int, room: int) -> list[tuple[np.ndarray, int]]:
    """Groups of like size together (none below half of the largest, so that padding stays small), and the width of the
    chunk; the padded rows and Gram matrices of a chunk fit into ``room`` elements (one group at least)."""
    order = np.argsort(-sizes, kind="stable")
    chunks, start = [], 0
    while start < len(order):
        width = int(sizes[order[start]])
        alike = int((sizes[order[start:]] * 2 >= width).sum())
        fits = min(alike, max(1, room // (width * (width + dim))))
        chunks.append((order[start : start + fits], width))
        start += fits
    return chunks
