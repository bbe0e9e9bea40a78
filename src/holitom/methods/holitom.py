"""HoliTom's outer stage (arXiv 2505.21334): cut the video into segments, merge static cells over time, then reduce in
space. Facts about the release: cokeshao/HoliTom at e9b2972, holitom/llava_arch.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from holitom.errors import BadUsage
from holitom.methods.inputs import budget_tokens, every_token, need_field, refuse_non_finite
from holitom.ops.clustering import density_peaks
from holitom.ops.merging import bag_means, merge_members
from holitom.ops.other_segmentations import cut_at_changes
from holitom.ops.segmentation import Segments, above, cut, fixed_windows
from holitom.ops.selection import apportion, mask_ids, top_per_row
from holitom.ops.similarity import neighbour_cosine, row_norms
from holitom.ops.transfer import to_device
from holitom.types import Fidelity, Positions, TokenSet, VideoFeatures, check_budget

# Float32 elements of clustering workspace: what stays in a CPU's cache; on a GPU, room for all segments of most videos.
_ROOM = {"cpu": 1 << 20, "cuda": 1 << 27}


@dataclass(frozen=True)
class HoliTom:
    """Merge over time where a cell stays the same, keep the salient tokens and the density peaks elsewhere.

    tau: cosine above which a cell counts as unchanged from one frame to the next (strict; the paper uses 0.65 at a
    budget of 10 % and 0.80 otherwise). beta: weight of a cluster's centre against the mean of its other members (None:
    plain mean of all). k: neighbours in the density of DPC-KNN. max_window: longest segment, in frames.
    counts "released": ceil per frame for dynamic tokens, round per segment for static ones, as in the release, so the
    number of tokens is near budget * T * N. counts "exact": round(budget * T * N) tokens, shared by largest remainder.
    In both, a nearly static video ends below the budget, because merging over time alone goes that far.

    Ablations: segmentation "fixed" (windows of ``max_window`` frames), "threshold" (a segment ends where less than
    ``min_similar`` of the cells stay unchanged) or "none"; static_by / dynamic_by choose between "cluster" and
    "saliency" for the tokens that are merged over time and for the others. cluster_share: the release's D, the share
    of every frame's dynamic budget that goes to clusters of what saliency leaves (dynamic_by "cluster": all of it).

    Output order: for each segment its static tokens by cell (owned by its first frame), then its dynamic tokens by
    frame and cell. ``size`` counts the source tokens behind each token: frames times cluster members.

    Deviations from the release: budget 1 returns every token unchanged (the release would still merge over time); no
    random noise on densities, ties go to the lowest index; at least one token is kept; cluster_share works, in our
    reading (in the release D > 0 fails on a shape).
    """

    tau: float = 0.8
    beta: float | None = 0.6
    k: int = 7
    max_window: int = 1024
    counts: Literal["released", "exact"] = "released"
    segmentation: Literal["dp", "fixed", "threshold", "none"] = "dp"
    static_by: Literal["cluster", "saliency"] = "cluster"
    dynamic_by: Literal["saliency", "cluster"] = "saliency"
    min_similar: float | int = 0.4
    cluster_share: float | int = 0.0

    positions: ClassVar[Positions] = "contiguous"

    def __post_init__(self) -> None:
        _one_of("counts", self.counts, ("released", "exact"))
        _one_of("segmentation", self.segmentation, ("dp", "fixed", "threshold", "none"))
        _one_of("static_by", self.static_by, ("cluster", "saliency"))
        _one_of("dynamic_by", self.dynamic_by, ("saliency", "cluster"))
        if self.k < 1 or self.max_window < 1:
            raise BadUsage(f"k={self.k}, max_window={self.max_window}: both count from 1", fix="use positive integers")
        if self.beta is not None and not 0 <= self.beta <= 1:
            raise BadUsage(f"beta {self.beta} is outside [0, 1]", fix="use the released 0.6, or None for a plain mean")
        for name in ("min_similar", "cluster_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadUsage(f"{name} {getattr(self, name)} is outside [0, 1]", fix="give a share, such as 0.4")

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"saliency"} if "saliency" in (self.static_by, self.dynamic_by) else ())

    @property
    def fidelity(self) -> Fidelity:
        """What the release computes is "golden"; the ablations, for which it has no code, are "reconstruction"."""
        released = (self.counts, self.segmentation, self.static_by, self.dynamic_by, self.cluster_share)
        return "golden" if released == ("released", "dp", "cluster", "saliency", 0) else "reconstruction"

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        """Reduce one video to about ``budget * T * N`` tokens. One copy to the host (the similar pairs as booleans),
        the only time that the host waits.

        Raises BadUsage for a budget outside (0, 1], a missing saliency, or a NaN in tokens or saliency.
        """
        budget = check_budget(budget)
        saliency = need_field(self, video, "saliency") if "saliency" in self.requires else None
        similar = self._similar(video)
        if budget == 1.0:
            return every_token(video)
        plan = self._plan(similar, budget, budget_tokens(video, budget))
        static, size, static_ids = self._merge_static(video.tokens, saliency, plan)
        dynamic_ids, dynamic, dynamic_size = self._keep_dynamic(video.tokens, saliency, plan)
        return _assemble(video, plan, (static_ids, static, size), (dynamic_ids, dynamic, dynamic_size))

    def segments(self, video: VideoFeatures) -> Segments:
        """The segments alone, with the static cells of each: what the method notebook draws."""
        return self._cut(self._similar(video))

    def _similar(self, video: VideoFeatures) -> np.ndarray:
        """[T - 1, N] which cells stay the same from one frame to the next, with the check for NaN in the same copy."""
        norms = row_norms(video.tokens)
        fields = {"tokens": norms} | ({} if video.saliency is None else {"saliency": video.saliency})
        return refuse_non_finite(fields, above(neighbour_cosine(video.tokens, norms), self.tau))

    def _cut(self, similar: np.ndarray) -> Segments:
        if self.segmentation == "dp":
            return cut(similar, self.max_window)
        if self.segmentation == "threshold":
            return cut_at_changes(similar, self.min_similar)
        return fixed_windows(similar, self.max_window if self.segmentation == "fixed" else 1)

    def _plan(self, similar: np.ndarray, budget: float, wanted: int) -> _Plan:
        segments = self._cut(similar)
        cells = similar.shape[1]
        n_static = segments.static.sum(axis=1)
        dynamic = ~np.repeat(segments.static, segments.lengths, axis=0)
        n_dynamic = dynamic.sum(axis=1)
        total = dynamic.shape[0] * cells
        left = total - segments.removed
        if self.counts == "exact":
            share = apportion(np.concatenate([n_static, n_dynamic]), wanted)
            keep_static, keep_dynamic = np.split(share, [len(segments)])
        else:
            ratio = min(budget / (left / total), 1.0)
            keep_static = np.rint(n_static * ratio).astype(np.int64)  # half to even, as Python's round in the release
            keep_dynamic = np.minimum(np.ceil(n_dynamic * ratio).astype(np.int64), n_dynamic)
            if not keep_static.sum() + keep_dynamic.sum():
                keep_static[np.argmax(n_static)] = 1
        return _Plan(segments, dynamic, keep_static, keep_dynamic)

    def _merge_static(self, tokens: Tensor, saliency: Tensor | None, plan: _Plan) -> tuple[Tensor, Tensor, Tensor]:
        """Means over time of the static cells, then one token per cluster (or salient cell): rows, sizes, flat ids."""
        frames, cells, _ = tokens.shape
        alive = plan.segments.static & (plan.keep_static > 0)[:, None]
        segment, cell = np.nonzero(alive)
        length = plan.segments.lengths[segment]
        offsets = np.cumsum(length) - length
        step = np.arange(length.sum()) - np.repeat(offsets, length)
        first = plan.segments.first[segment] * cells + cell
        members, spans, begin = to_device(np.repeat(first, length) + step * cells, length, first, like=tokens)
        means = bag_means(tokens.reshape(frames * cells, -1), members, spans, keep_dtype=True)
        sizes, keep = alive.sum(axis=1)[plan.keep_static > 0], plan.keep_static[plan.keep_static > 0]
        if self.static_by == "saliency":
            salient = bag_means(saliency.reshape(-1, 1), members, spans)[:, 0]
            chosen = _top_per_group(salient, alive, plan.keep_static)
            return means[chosen], spans[chosen].float(), begin[chosen]
        merged, count, chosen = self._cluster(means, sizes, keep, tokens)
        return merged, count * spans[chosen], begin[chosen]

    def _keep_dynamic(
        self, tokens: Tensor, saliency: Tensor | None, plan: _Plan
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Flat ids of the dynamic tokens that are kept; merged rows and sizes too if some are clusters."""
        share = 1.0 if self.dynamic_by == "cluster" else self.cluster_share
        salient = np.rint(plan.keep_dynamic * (1 - share)).astype(np.int64)
        clusters = plan.keep_dynamic - salient
        left, wanted, clustered = to_device(plan.dynamic, salient, clusters > 0, like=tokens)
        top = torch.zeros_like(left)
        if salient.any():
            top = top_per_row(saliency.masked_fill(~left, -torch.inf), wanted)
        top_ids = mask_ids(top.flatten(), int(salient.sum()))
        if not clusters.any():
            return top_ids, None, None
        flat = tokens.reshape(-1, tokens.shape[-1])
        sizes = np.where(clusters > 0, plan.dynamic.sum(axis=1) - salient, 0)
        rest = mask_ids((left & ~top & clustered[:, None]).flatten(), int(sizes.sum()))
        merged, count, chosen = self._cluster(
            flat.index_select(0, rest), sizes[clusters > 0], clusters[clusters > 0], tokens
        )
        ids, order = torch.cat([top_ids, rest[chosen]]).sort()
        rows = torch.cat([flat.index_select(0, top_ids), merged])[order]
        return ids, rows, torch.cat([count.new_ones(len(top_ids)), count])[order]

    def _cluster(
        self, rows: Tensor, sizes: np.ndarray, clusters: np.ndarray, tokens: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        room = min(tokens.nbytes // 4, _ROOM.get(tokens.device.type, 1 << 24))  # at most the size of the input
        centre, owner = density_peaks(rows, sizes, clusters, self.k, room)
        chosen = mask_ids(centre, int(clusters.sum()))
        merged, count = merge_members(rows, owner, chosen, self.beta)
        return merged.to(tokens.dtype), count, chosen


@dataclass(frozen=True)
class _Plan:
    """What the host decides: the segments, the dynamic tokens [T, N], and how many tokens each part keeps."""

    segments: Segments
    dynamic: np.ndarray
    keep_static: np.ndarray
    keep_dynamic: np.ndarray


def _assemble(
    video: VideoFeatures,
    plan: _Plan,
    static: tuple[Tensor, Tensor, Tensor],
    dynamic: tuple[Tensor, Tensor | None, Tensor | None],
) -> TokenSet:
    """Put the two kinds in order: static tokens of a segment, then its dynamic ones. One gather for all tokens."""
    static_ids, static_rows, static_size = static
    dynamic_ids, dynamic_rows, dynamic_size = dynamic
    group = np.concatenate(
        [np.arange(len(plan.segments)), np.repeat(np.arange(len(plan.segments)), plan.segments.lengths)]
    )
    kept = np.concatenate([plan.keep_static, plan.keep_dynamic])
    order = np.argsort(group, kind="stable")
    begin = np.empty_like(kept)
    begin[order] = np.cumsum(kept[order]) - kept[order]
    slot = np.repeat(begin - (np.cumsum(kept) - kept), kept) + np.arange(kept.sum())
    split = int(plan.keep_static.sum())
    here, there = to_device(slot, like=video.tokens)[0].split([split, len(slot) - split])

    ids = torch.empty(len(slot), dtype=torch.long, device=video.tokens.device)
    ids[here], ids[there] = static_ids, dynamic_ids
    tokens = video.tokens.reshape(-1, video.tokens.shape[-1]).index_select(0, ids)
    tokens[here] = static_rows
    size = torch.ones(len(slot), device=ids.device)
    size[here] = static_size
    if dynamic_rows is not None:
        tokens[there], size[there] = dynamic_rows, dynamic_size
    return TokenSet(tokens, ids // video.cells, ids % video.cells, size)


def _top_per_group(score: Tensor, alive: np.ndarray, counts: np.ndarray) -> Tensor:
    table = score.new_full(alive.shape, -torch.inf)
    mask, wanted, row, cell = to_device(alive, counts, *np.nonzero(alive), like=score)
    table[row, cell] = score
    keep = top_per_row(table, wanted) & mask
    row_of = mask.flatten().cumsum(0) - 1
    return row_of[mask_ids(keep.flatten(), int(counts.sum()))]


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise BadUsage(f"{name}={value!r} is unknown", fix=f"choose from {', '.join(allowed)}")
