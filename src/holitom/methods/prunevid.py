"""PruneVid's merging stage (arXiv 2412.16117): windows of like frames, static cells merged over each window, then
density-peak clusters everywhere. Written from a description of Visual-AI/PruneVid at b12600c (its PLLaVA code; the
LLaVA-OneVision code was never published); no line of that repository, which is CC-BY-NC-SA, is used here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from holitom.errors import BadUsage
from holitom.methods.inputs import budget_tokens, every_token, on, refuse_non_finite
from holitom.ops.density import ranked_clusters
from holitom.ops.merging import bag_means
from holitom.ops.segment_budgets import frame_means
from holitom.ops.segmentation import Segments, above
from holitom.ops.selection import apportion
from holitom.ops.similarity import row_norms
from holitom.types import Fidelity, Positions, TokenSet, VideoFeatures, check_budget


@dataclass(frozen=True)
class PruneVid:
    """Cluster the frames into windows, merge cells that stay the same in a window, cluster what is left.

    tau: a cell is static in a window when its mean cosine over all pairs of the window's frames is above it (strict).
    temporal_segment_ratio: clusters of frames as a share of T. k: neighbours in the densities. Static cells are
    averaged over their window; static tokens (per window) and dynamic tokens (per frame) are then clustered, and a
    token is the plain mean of its cluster. Windows of one frame have no static cells.

    The clean reading keeps round(budget * T * N) tokens, shared among all groups by largest remainder, fewer only where
    merging over time alone goes further. Output: per window its static tokens by cell (owned by its first frame), then
    its dynamic tokens by frame and cell. ``size`` counts source tokens; ``group`` numbers the groups in that order.

    ``released``: int(n * cluster_ratio) clusters per group (at least one), groups of at most 14 left alone, clusters in
    descending order of their score. cluster_ratio None follows from the budget, min(1, budget * T * N / tokens left
    after merging over time), how the release would have reached the table's budgets (its own procedure is
    unpublished); a number is the release's own knob and then decides alone, whatever the budget.
    """

    tau: float = 0.8
    temporal_segment_ratio: float = 0.25
    k: int = 7
    cluster_ratio: float | None = None
    released: bool = False

    requires: ClassVar[frozenset[str]] = frozenset()
    positions: ClassVar[Positions] = "contiguous"
    deviations: ClassVar[tuple[str, ...]] = (
        "Written from a description of the code for PLLaVA; the authors' code for LLaVA-OneVision is unpublished.",
        "Ties between densities go to the lower index, where the release draws random noise of 1e-6.",
        "The number of tokens follows from the budget; the procedure behind the papers' ratios is unpublished.",
        "Clean reading only: groups of at most 14 tokens are clustered too, so that the count is exact.",
        "Clean reading only: clusters are in raster order, in the release in descending order of their score.",
        "Budget 1 returns every token unchanged; fewer than 7 frames, one frame and tiny groups work.",
    )

    def __post_init__(self) -> None:
        if self.k < 1 or not 0 < self.temporal_segment_ratio <= 1:
            raise BadUsage(
                f"k={self.k}, temporal_segment_ratio={self.temporal_segment_ratio}",
                fix="k from 1 on, a ratio in (0, 1]",
            )
        if self.cluster_ratio is not None and not (self.released and 0 < self.cluster_ratio <= 1):
            raise BadUsage(
                f"cluster_ratio={self.cluster_ratio} with released={self.released}",
                fix="it is a knob of the release in (0, 1]: set released=True, or leave it out and give a budget",
            )

    @property
    def fidelity(self) -> Fidelity:
        return "golden" if self.released else "port"

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        """Reduce one video. Two copies to the host (labels of the frames, static cells).

        Raises BadUsage for a budget outside (0, 1] and for a NaN in the tokens.
        """
        budget = check_budget(budget)
        windows = self.segments(video)
        if budget == 1.0 and self.cluster_ratio is None:
            return every_token(video)
        tokens, cells = video.tokens.flatten(0, 1), video.cells
        owner = np.repeat(np.arange(len(windows)), windows.lengths)  # the window of every frame
        dynamic = ~windows.static[owner]
        sizes = np.concatenate([windows.static.sum(1), dynamic.sum(1)])
        keep = self._counts(sizes, budget, video)
        group = np.concatenate([np.arange(len(windows)), owner])
        order = np.argsort(group, kind="stable")  # per window: static, then its frames
        begin = np.empty_like(keep)
        begin[order] = np.cumsum(keep[order]) - keep[order]
        number = np.empty_like(order)
        number[order] = np.arange(len(order))

        window, cell = np.nonzero(windows.static)
        length = windows.lengths[window]
        first = windows.first[window] * cells + cell
        step = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        means = bag_means(tokens, on(np.repeat(first, length) + step * cells, tokens), on(length, tokens))
        row = np.zeros(windows.static.shape, dtype=np.int64)
        row[windows.static] = np.arange(len(first))

        parts = len(windows)
        static = self._cluster(means, windows.static, row, keep[:parts], begin[:parts], video)
        raster = np.arange(video.frames * cells).reshape(video.frames, cells)
        moving = self._cluster(tokens, dynamic, raster, keep[parts:], begin[parts:], video)

        total = int(keep.sum())
        out = tokens.new_empty(total, tokens.shape[1])
        ids = torch.empty(total, dtype=torch.long, device=tokens.device)
        size = torch.empty(total, device=tokens.device)
        place, merged, count, centre = static
        out[place], ids[place] = merged.to(out.dtype), on(first, tokens)[centre]
        size[place] = (count * on(length, tokens)[centre]).float()
        place, merged, count, centre = moving
        out[place], ids[place], size[place] = merged.to(out.dtype), centre, count.float()
        return TokenSet(out, ids // cells, ids % cells, size, on(np.repeat(number[order], keep[order]), tokens))

    def segments(self, video: VideoFeatures) -> Segments:
        """The windows, with the static cells of each, on the host."""
        norms = row_norms(video.tokens)
        changed = np.flatnonzero(np.diff(refine_runs(self._labels(video, norms))))
        first = np.concatenate([[0], changed + 1])
        last = np.append(first[1:], video.frames) - 1
        likeness = _pair_cosine(video.tokens, norms, first, last - first + 1)
        static = above(likeness, self.tau).cpu().numpy() & (last > first)[:, None]
        return Segments(first, last, static, int((static * (last - first)[:, None]).sum()))

    def frame_labels(self, video: VideoFeatures) -> np.ndarray:
        """[T] the cluster of every frame before the runs are refined; 0 has the highest score."""
        return self._labels(video, row_norms(video.tokens))

    def _labels(self, video: VideoFeatures, norms: Tensor) -> np.ndarray:
        means = frame_means(video.tokens)
        every = torch.arange(video.frames, device=means.device)[None]
        wanted = every.new_full((1,), max(1, int(video.frames * self.temporal_segment_ratio)))
        room = video.tokens.numel()
        rank, nearest = ranked_clusters(means, every, torch.ones_like(every, dtype=torch.bool), wanted, self.k, room)
        label = rank.gather(1, nearest)[0]
        return refuse_non_finite({"tokens": norms}, label).astype(np.int64)

    def _counts(self, sizes: np.ndarray, budget: float, video: VideoFeatures) -> np.ndarray:
        if not self.released:
            return apportion(sizes, budget_tokens(video, budget))
        ratio = self.cluster_ratio or min(1.0, budget * video.frames * video.cells / int(sizes.sum()))
        clusters = np.maximum((sizes * ratio).astype(np.int64), 1)
        return np.where(sizes > 14, clusters, sizes)

    def _cluster(
        self,
        rows: Tensor,
        alive: np.ndarray,
        row_of: np.ndarray,
        keep: np.ndarray,
        begin: np.ndarray,
        video: VideoFeatures,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cluster every group (a row of ``alive`` [G, N]) into keep[g] tokens that go to the places from begin[g] on:
        places [C], their rows [C, D], how many rows each merges, and the row id of each centre."""
        used = np.flatnonzero(keep > 0)
        if not len(used):
            none = torch.empty(0, dtype=torch.long, device=rows.device)
            return none, rows[:0].float(), none, none
        alive, row_of, keep = alive[used], row_of[used], keep[used]
        sizes = alive.sum(1)
        left = np.argsort(~alive, axis=1, kind="stable")[:, : sizes.max()]  # the group's cells first, in raster order
        valid = np.arange(left.shape[1]) < sizes[:, None]
        ids = np.take_along_axis(row_of, left, axis=1)
        ids = on(np.where(valid, ids, ids[:, :1]), rows)
        slots = torch.arange(left.shape[1], device=rows.device).expand_as(ids)
        rank, nearest = slots.clone(), slots.clone()
        hard = np.flatnonzero(sizes > 14 if self.released else keep < sizes)
        room = video.tokens.numel() * video.tokens.element_size() // 4
        for width in np.unique(sizes[hard] // 16):  # groups of like size together: little padding
            alike = hard[sizes[hard] // 16 == width]
            n, some = int(sizes[alike].max()), on(alike, rows)
            mask = on(valid[alike, :n], rows)
            found = ranked_clusters(rows, ids[some, :n], mask, on(keep[alike], rows), self.k, room)
            rank[some, :n], nearest[some, :n] = found
            rank[some, n:] = n  # padding is never a centre
        centre = (rank < on(keep, rows)[:, None]) & on(valid, rows)
        place = rank if self.released else centre.cumsum(1) - 1
        start = np.cumsum(keep) - keep
        place = place + on(start, rows)[:, None]

        filled = on(np.flatnonzero(valid), rows)
        key, order = place.gather(1, nearest).flatten()[filled].sort(stable=True)
        count = int(keep.sum())
        lengths = torch.searchsorted(key, torch.arange(count + 1, device=rows.device)).diff()
        merged = bag_means(rows, ids.flatten()[filled][order], lengths)
        heads = ids.new_empty(count + 1).scatter_(0, torch.where(centre, place, count).flatten(), ids.flatten())[:count]
        places = on(np.repeat(begin[used] - start, keep) + np.arange(count), rows)
        return places, merged, lengths, heads


def refine_runs(labels: np.ndarray) -> np.ndarray:
    """Give every run of frames that is not the longest of its label to a neighbour: [T] labels -> [T] labels.

    Only a label's longest runs stay (all of them when several are equally long, none when the longest is one frame).
    From left to right, every other run takes the label on its left, with all that this label has taken in so far, or of
    the next run that stays, whichever is longer; the left one when both are equally long, 0 when there is neither.
    """
    labels = np.asarray(labels)
    edges = np.flatnonzero(np.diff(labels, prepend=labels[:1] - 1))
    label, length = labels[edges], np.diff(edges, append=len(labels))
    longest = np.zeros(labels.max() + 1, dtype=np.int64)
    np.maximum.at(longest, label, length)
    stays = (length == longest[label]) & (length > 1)
    following = [*np.flatnonzero(stays), -1]
    taken, reach, ahead = 0, 0, 0  # the label on the left, its length so far, the place in ``following``
    refined = np.empty_like(label)
    for run in range(len(label)):
        if stays[run]:
            ahead += 1
            new = label[run]
        else:
            after = length[following[ahead]] if following[ahead] >= 0 else 0
            new = label[following[ahead]] if after > reach else taken
        reach = reach + length[run] if run and new == taken else length[run]
        taken = refined[run] = new
    return np.repeat(refined, length)


def _pair_cosine(tokens: Tensor, norms: Tensor, first: np.ndarray, length: np.ndarray) -> Tensor:
    """[W, N] mean cosine of a cell over all pairs of different frames of each window, 0 for one frame. With unit
    vectors u: (|sum u|^2 - sum |u|^2) / (W * (W - 1)), so no pair is ever formed."""
    weight = 1 / norms.clamp_min(1e-12)
    offsets, count = on(first, tokens), on(length, tokens).float()[:, None]
    every = torch.arange(tokens.shape[0], device=tokens.device)
    if tokens.dtype == torch.float32 and not tokens.is_cuda:
        windows = [slice(i, i + n) for i, n in zip(first.tolist(), length.tolist(), strict=True)]
        total = torch.stack([_sum_square(tokens[some], weight[some]) for some in windows])
    else:
        total = _sum_squares_together(tokens, weight, offsets)
    own = embedding_bag(every, (norms > 0).float(), offsets, mode="sum")
    return (total - own) / (count * (count - 1)).clamp_min(1)


def _sum_square(tokens: Tensor, weight: Tensor) -> Tensor:
    """[N] squared length of every cell's weighted sum over one window: a product of a row with a matrix per cell."""
    total = weight.T[:, None] @ tokens.transpose(0, 1)
    return torch.linalg.vector_norm(total[:, 0], dim=-1).square_()


def _sum_squares_together(tokens: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """[W, N] the same for all windows in few kernels, some cells at a time, so that only they are held in float32."""
    frames, cells, dim = tokens.shape
    every = torch.arange(frames, device=tokens.device)
    step = -(-cells // 8)
    sums = []
    for begin in range(0, cells, step):
        cell = torch.arange(begin, min(begin + step, cells), device=tokens.device)[:, None]
        if tokens.dtype == torch.float32:
            rows, ids = tokens.reshape(-1, dim), every * cells + cell
        else:
            rows, ids = tokens[:, begin : begin + step].reshape(-1, dim).float(), every * len(cell) + cell - begin
        starts = (cell - begin) * frames + offsets
        scale = weight[:, begin : begin + step].T.flatten()
        total = embedding_bag(ids.flatten(), rows, starts.flatten(), mode="sum", per_sample_weights=scale)
        sums.append(total.square().sum(-1).view(len(cell), -1))
    return torch.cat(sums).T
