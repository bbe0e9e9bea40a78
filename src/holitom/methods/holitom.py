"""HoliTom (arXiv 2505.21334, NeurIPS 2025), both stages: merge a video's tokens over time and space before the language
model, and once more inside it.

Before the language model (paper 3.2, 3.3; cokeshao/HoliTom at e9b2972, holitom/llava_arch.py):
1. A cell is redundant between neighbouring frames where the cosine of its two tokens exceeds tau. A dynamic programme
   cuts the video into segments so that merging what is redundant throughout a segment removes most tokens (``cut``).
2. The budget is shared out: the same ratio of every segment's static tokens and of every frame's dynamic ones.
3. Static tokens are averaged over their segment, then merged over space: density peaks of DPC-KNN (equation 5 is its
   delta) take in their nearest neighbours, a centre with the weight beta.
4. Of the dynamic tokens of each frame those stay that receive most attention in the vision tower.
5. Per segment the static tokens, then the dynamic ones.
Inside it (paper 3.4; holitom/modeling_qwen2.py), at layer K: the share R of the visual tokens that the last prompt
token attends to least is merged into the most similar of the others.

Four things differ between the paper and its release. The presets follow the release, which its tables were measured
with, and so does this file but for the defaults of the last point (``HoliTomMerge``):
the densest token's delta is one maximum per group of tokens (equation 5: one per token); tokens stand in the order of
the segments (text: the original spatial order); the inner merge halves once for every token that is taken in (text: a
plain mean); layer K - 1 attends without a causal mask and newlines count as visual tokens (text: neither).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from holitom.errors import BadUsage
from holitom.methods.base import InnerStage, OuterStage, budget_tokens, every_token, on_host, surviving, token_set
from holitom.ops.clusters import density_peaks, merge_members, running_means
from holitom.ops.segments import Segments, above, cut, static_means
from holitom.ops.tensors import apportion, ids_of, nearest_row, neighbour_cosine, on, row_norms, top_ids, top_mask
from holitom.types import Fidelity, TokenSet, VideoFeatures


@dataclass(frozen=True)
class HoliTom(OuterStage):
    """Before the language model: merge over time where a cell stays the same, then over space, select elsewhere.

    tau: cosine above which a cell is redundant (strict; the scripts use 0.65 for a budget of 10 % and 0.80 otherwise).
    beta: weight of a cluster's centre against the mean of its other members (None: plain mean of all). k: neighbours of
    DPC-KNN. max_window: longest segment, in frames. counts "released": ceil per frame for dynamic tokens, round per
    segment for static ones, so that about budget * T * N tokens stay; a nearly static video ends below, because merging
    over time alone goes that far. counts "exact": round(budget * T * N) tokens of every video, as an engine needs them:
    shared out by largest remainder, and where merging over time leaves too few, the most salient of the tokens that it
    has taken in come back as they are; no release has this, so it counts as a reconstruction.

    A static token is owned by the first frame of its segment; ``size`` counts the source tokens behind each one.
    Deviations from the release: budget 1 returns every token unchanged (the release would still merge over time); ties
    of densities go to the lowest index (the release adds noise of 1e-6); at least one token stays.
    """

    tau: float = 0.8
    beta: float | None = 0.6
    k: int = 7
    max_window: int = 1024
    counts: Literal["released", "exact"] = "released"

    requires = frozenset({"saliency"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1 or self.max_window < 1 or not (self.beta is None or 0 <= self.beta <= 1):
            raise BadUsage(f"{self} cannot be", fix="k and max_window count from 1, and beta lies in [0, 1] or is None")

    @property
    def fidelity(self) -> Fidelity:
        return "golden" if type(self) is HoliTom and self.counts == "released" else "reconstruction"

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        """Reduce one video to about ``budget * T * N`` tokens. One copy to the host: which cells are redundant.

        Raises BadUsage for a budget outside (0, 1], a missing saliency, or a NaN in tokens or saliency.
        """
        wanted, saliency = budget_tokens(video, budget), self.fields(video)["saliency"]
        norms = row_norms(video.tokens)
        redundant = above(neighbour_cosine(video.tokens, norms), self.tau)
        redundant = on_host(redundant, tokens=norms, saliency=saliency)
        if budget == 1:
            return every_token(video)
        segments = self.cut(redundant)
        dynamic = ~segments.static.repeat(segments.lengths, axis=0)  # [T, N]
        keep_static, keep_dynamic = self._share_out(segments, dynamic, budget, wanted)
        owner, static, size = self.merge_static(video, saliency, segments, keep_static)
        ids, merged, sizes = self.select_dynamic(video, saliency, dynamic, keep_dynamic)
        if self.counts == "exact" and (missing := wanted - len(owner) - len(ids)):
            left = saliency.flatten().index_fill(0, torch.cat([owner, ids]), -torch.inf)
            ids, sizes = torch.cat([ids, top_ids(left, missing)]), torch.cat([sizes, sizes.new_ones(missing)])
        return _in_order(video, segments, (owner, static, size), (ids, merged, sizes))

    def segments(self, video: VideoFeatures) -> Segments:
        """The segments alone, with the static cells of each: for a picture of them."""
        return self.cut(above(neighbour_cosine(video.tokens), self.tau).cpu().numpy())

    def cut(self, redundant: np.ndarray) -> Segments:
        """Step 1. redundant [T - 1, N]: which cells stay the same from one frame to the next."""
        return cut(redundant, self.max_window)

    def merge_static(
        self, video: VideoFeatures, saliency: Tensor, segments: Segments, keep: np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Step 3. keep [S] -> flat ids of the owners, merged rows, and source tokens behind each. saliency: for
        variants, which choose static tokens by it."""
        means, first, length, sizes = static_means(video.tokens, segments, keep > 0)
        centre, owner = density_peaks(means, sizes, keep[keep > 0], self.k)
        chosen = ids_of(centre, int(keep.sum()))
        merged, count = merge_members(means, owner, chosen, self.beta)
        return first[chosen], merged, count * length[chosen]

    def select_dynamic(
        self, video: VideoFeatures, saliency: Tensor, dynamic: np.ndarray, keep: np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Step 4. dynamic [T, N], keep [T] -> flat ids, the rows of the first ones where they are no longer those of
        the video, and source tokens behind each."""
        top = top_mask(saliency.masked_fill(~on(dynamic, saliency), -torch.inf), on(keep, saliency))
        ids = ids_of(top.flatten(), int(keep.sum()))
        return ids, video.tokens[:0, 0], torch.ones(len(ids), device=ids.device)  # no row is changed here

    def _share_out(
        self, segments: Segments, dynamic: np.ndarray, budget: float, wanted: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Step 2. How many static tokens of every segment [S] and dynamic ones of every frame [T] stay."""
        n_static, n_dynamic = segments.static.sum(1), dynamic.sum(1)
        if self.counts == "exact":
            return tuple(np.split(apportion(np.concatenate([n_static, n_dynamic]), wanted), [len(segments)]))
        left = dynamic.size - segments.removed  # by merging over time alone
        ratio = min(budget / (left / dynamic.size), 1.0)
        keep_static = np.rint(n_static * ratio).astype(np.int64)  # half to even
        keep_dynamic = np.minimum(np.ceil(n_dynamic * ratio).astype(np.int64), n_dynamic)
        if not keep_static.any() and not keep_dynamic.any():
            keep_static[n_static.argmax()] = 1
        return keep_static, keep_dynamic


def _in_order(
    video: VideoFeatures, segments: Segments, static: tuple[Tensor, ...], dynamic: tuple[Tensor, ...]
) -> TokenSet:
    """Step 5. Of every segment the static tokens by cell, then the others by frame and cell."""
    (owner, merged, behind), (ids, changed, sizes) = static, dynamic
    every = torch.cat([owner, ids])
    segment = on(np.arange(len(segments)).repeat(segments.lengths), every)[every // video.cells]
    later = torch.arange(len(every), device=every.device) >= len(owner)
    order = ((2 * segment + later) * (video.frames * video.cells) + every).argsort()
    tokens, place = video.tokens.flatten(0, 1)[every[order]], order.argsort()
    for first, rows in ((0, merged), (len(owner), changed)):
        tokens[place[first : first + len(rows)]] = rows.to(tokens.dtype)
    return token_set(video, every[order], tokens, torch.cat([behind, sizes])[order])


@dataclass(frozen=True)
class HoliTomMerge(InnerStage):
    """Inside the language model: keep the visual tokens that the last prompt token attends to most, and merge each
    other one into the kept one that it is most like (cosine of the states that enter the layer).

    layer: the paper's K, the first layer that sees the shorter sequence (18 of 28 in its tables); ratio: its R, the
    share of the visual tokens that is merged away; round(V * (1 - ratio)) stay, half to even, at least one. The score
    is layer K - 1's attention, mean over heads. average "running": h <- (h + h_j) / 2 for one token after the other, as
    released, so that the last weighs one half; "mean": the text's plain mean. The defaults causal and include_newlines
    are the text's reading; causal=False, include_newlines=True is the release, and what the presets of the tables use.
    """

    layer: int
    ratio: float
    average: Literal["running", "mean"] = "running"
    causal: bool = True
    include_newlines: bool = False

    @property
    def fidelity(self) -> Fidelity:
        released = self.average == "running" and not self.causal and self.include_newlines
        return "golden" if released else "port"

    def __call__(self, hidden: Tensor, score: Tensor, visual: Tensor, n0: int) -> tuple[Tensor, Tensor]:
        """hidden [S, D] entering ``layer``, score [S], visual [V]: ascending ids -> ids that stay [S'] and their states
        [S', D]. Raises BadUsage for a NaN in the visual tokens' scores or states."""
        kept = self.highest(score, visual, round(len(visual) * (1 - self.ratio)))
        ids = surviving(len(hidden), visual, kept)
        if len(kept) == len(visual):
            return ids, hidden
        rows = hidden[visual]
        rest = surviving(len(visual), kept, kept[:0])
        cosine, nearest = nearest_row(rows, rest, kept)
        self.finite(cosine, "states that enter")
        owner = torch.arange(len(rows), device=rows.device).index_copy(0, rest, kept[nearest])
        released = self.average == "running"
        merged = running_means(rows, owner, kept) if released else merge_members(rows, owner, kept, None)[0]
        out = hidden[ids]
        out[torch.searchsorted(ids, visual[kept])] = merged.to(out.dtype)
        return ids, out
