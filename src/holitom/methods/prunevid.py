"""PruneVid (arXiv 2412.16117): merge what stays the same in a window of frames, cluster the rest, then keep what the
question attends to. Both stages, as described of Visual-AI/PruneVid at b12600c, its code for PLLaVA (that for
LLaVA-OneVision was never published); no line of that repository, which is CC-BY-NC-SA, is used here.

Merging, before the language model (models/pllava/modeling_pllava.py :: merge_frames_dynamic):
1. Windows: density-peak clusters of the frames' mean tokens, int(T * temporal_segment_ratio) of them; of every label
   only the longest runs of frames stay, other runs join a neighbour (refine_clusters).
2. A cell is static in a window when its mean cosine over all pairs of the window's frames is above tau.
3. Static cells are averaged over their window.
4. The static tokens of a window, and the dynamic tokens of a frame, are each a group. A group of n > 14 tokens is
   clustered by density peaks (k = 7) into int(n * cluster_ratio); a token is the plain mean of its cluster.
5. Output: per window its static tokens, then its frames; inside a clustered group in descending density-peak score.
Selection, inside it (elastic_cache.py): after layer 10 a token's score is the largest attention that any token of the
question pays to it in any head; int(alpha * n) of every group stay, in the caches of the earlier layers too.

How the papers reached their ratios is unpublished. Here a budget gives cluster_ratio = min(1, budget * T * N / tokens
left by step 3). The count is so not exact: groups are rounded down, and small groups stay whole, which on a small grid
is far above the budget.

Deviations: ties between densities go to the lower index (the release adds random noise of 1e-6); at least one cluster
of frames, one of a group and one selected token stay; short videos work (the release fails below 7 frames); a window of
one frame has no static cells; budget 1 is the identity. Without PruneVid's groups the selection takes all visual tokens
as one.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from holitom.methods.base import InnerStage, OuterStage, every_token, on_host, token_set
from holitom.ops.clusters import padding, ranked_clusters
from holitom.ops.segments import Segments, above, static_means
from holitom.ops.tensors import TINY, frame_mean, group_mean, grouped, ids_of, on, row_norms, top_of_groups
from holitom.types import TokenSet, VideoFeatures, check_budget

SMALL = 14
"""Groups of at most this many tokens are not clustered."""


@dataclass(frozen=True)
class PruneVid(OuterStage):
    """The merging stage. tau: static above this mean cosine (strict); temporal_segment_ratio: clusters of frames as a
    share of T; k: neighbours in the densities. ``size`` counts source tokens, ``group`` numbers the groups of step 4 in
    the order of the output. Raises BadUsage for a budget outside (0, 1] and for a NaN in the tokens."""

    tau: float = 0.8
    temporal_segment_ratio: float = 0.25
    k: int = 7

    fidelity = "golden"

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        budget = check_budget(budget)
        windows = self.windows(video)
        if budget == 1:
            return every_token(video)
        tokens = video.frames * video.cells
        return self.merge(video, windows, min(1.0, budget * tokens / (tokens - windows.removed)))

    def windows(self, video: VideoFeatures) -> Segments:
        """Steps 1 and 2. Two copies to the host: the labels of the frames, and the static cells."""
        norms = row_norms(video.tokens)
        first = np.flatnonzero(np.diff(refine_runs(self.frame_labels(video)), prepend=-1))
        last = np.append(first[1:], video.frames) - 1
        static = above(_pair_cosine(video.tokens, norms, last - first + 1), self.tau)
        return Segments(first, last, on_host(static, tokens=norms) & (last > first)[:, None])

    def frame_labels(self, video: VideoFeatures) -> np.ndarray:
        """[T] the cluster of every frame; 0 has the highest score."""
        means = frame_mean(video.tokens)
        frames = torch.arange(video.frames, device=means.device)[None]
        clusters = frames.new_full((1,), max(1, int(video.frames * self.temporal_segment_ratio)))
        rank, nearest = ranked_clusters(means, frames, torch.ones_like(frames, dtype=torch.bool), clusters, self.k)
        return rank.gather(1, nearest)[0].cpu().numpy()

    def merge(self, video: VideoFeatures, windows: Segments, cluster_ratio: float) -> TokenSet:
        """Steps 3 to 5, with the release's own knob in place of a budget."""
        rows, owner = video.tokens.flatten(0, 1), np.repeat(np.arange(len(windows)), windows.lengths)
        means, first, span, static = static_means(video.tokens, windows, np.ones(len(windows), dtype=bool))
        moving = ~windows.static[owner]
        window, merged, size, centre = _cluster(means, np.arange(len(means)), static, cluster_ratio, self.k)
        frame, others, other_size, ids = _cluster(rows, np.flatnonzero(moving), moving.sum(1), cluster_ratio, self.k)
        before = windows.first + np.arange(len(windows))  # the number of a window's static group
        later = np.arange(video.frames) + owner + 1  # the number of a frame's group
        group = on(np.concatenate([before[window], later[frame]]), rows)
        order = group.sort(stable=True).indices
        tokens, ids = torch.cat([merged, others])[order], torch.cat([first[centre], ids])[order]
        kept = token_set(video, ids, tokens, torch.cat([size * span[centre], other_size])[order])
        return replace(kept, group=group[order])


def refine_runs(labels: np.ndarray) -> np.ndarray:
    """Give every run of frames that is not the longest of its label to a neighbour: [T] labels -> [T] labels.

    Only a label's longest runs stay (all of them when several are equally long, none when the longest is one frame).
    From left to right, every other run takes the label on its left, with all that this label has taken in so far, or of
    the next run that stays, whichever is longer; the left one when both are equally long, 0 when there is neither.
    """
    start = np.flatnonzero(np.diff(labels, prepend=-1))
    label, length = labels[start], np.diff(start, append=len(labels))
    longest = np.zeros(labels.max() + 1, dtype=np.int64)
    np.maximum.at(longest, label, length)
    stays = (length == longest[label]) & (length > 1)
    places, refined = np.arange(len(label)), np.empty_like(label)
    ahead = np.minimum.accumulate(np.where(stays, places, len(label))[::-1])[::-1]  # itself, or the next that stays
    following, after = np.append(label, 0)[ahead], np.append(length, 0)[ahead]
    taken = reach = 0  # the label on the left, and its length so far
    for run in places:
        new = following[run] if stays[run] or after[run] > reach else taken
        reach = length[run] + (reach if run and new == taken else 0)
        taken = refined[run] = new
    return np.repeat(refined, length)


@torch.no_grad()
def _pair_cosine(tokens: Tensor, norms: Tensor, lengths: np.ndarray) -> Tensor:
    """[W, N] mean cosine of a cell over all pairs of different frames of each window, 0 for one frame: with unit
    vectors u, (|sum u|^2 - sum |u|^2) / (W * (W - 1)). Some cells at a time, so that no copy of the video is made."""
    frames, cells, dim = tokens.shape
    length, every = on(lengths, tokens), torch.arange(frames, device=tokens.device)
    start, weight, sums = length.cumsum(0) - length, 1 / norms.clamp_min(TINY), []
    for cell in torch.arange(cells, device=tokens.device)[:, None].split(-(-cells // 8)):
        rows, ids = tokens.reshape(-1, dim), every * cells + cell
        if tokens.dtype != torch.float32:  # a sum in half precision would be rounded to it
            rows, ids = tokens[:, cell[:, 0]].reshape(-1, dim).float(), every * len(cell) + cell - cell[0]
        bags, by = ((cell - cell[0]) * frames + start).flatten(), weight[:, cell[:, 0]].T.flatten()
        total = embedding_bag(ids.flatten(), rows, bags, mode="sum", per_sample_weights=by)
        sums.append(total.square().sum(-1).view(len(cell), -1).T)
    own = embedding_bag(every, (norms > 0).float(), start, mode="sum")
    pairs = (length * (length - 1)).clamp_min(1)[:, None]
    return (torch.cat(sums, 1) - own) / pairs


def _cluster(
    rows: Tensor, ids: np.ndarray, sizes: np.ndarray, ratio: float, k: int
) -> tuple[np.ndarray, Tensor, Tensor, Tensor]:
    """Step 4 for the groups rows[ids], ``sizes[g]`` one after the other. Returns the clusters' groups [C], their means
    [C, D], how many rows each merges [C], and the row of each centre [C]; by group, then by falling score."""
    counts = np.where(sizes > SMALL, np.maximum((sizes * ratio).astype(np.int64), 1), sizes)
    group = np.repeat(np.arange(len(sizes)), counts)
    sizes, counts = sizes[sizes > 0], counts[sizes > 0]
    place, inside = padding(sizes)
    slot, rank = on(ids[(sizes.cumsum() - sizes)[:, None] + place], rows), on(place, rows)
    nearest = rank.clone()
    for width in np.unique(sizes[sizes > SMALL] // 32):  # groups of like size together: little padding
        alike = np.flatnonzero((sizes // 32 == width) & (sizes > SMALL))
        some, n = on(alike, rows), int(sizes[alike].max())
        found = ranked_clusters(rows, slot[some, :n], on(inside[alike, :n], rows), on(counts[alike], rows), k)
        rank[some, :n], nearest[some, :n] = found
    total, real = int(counts.sum()), on(np.flatnonzero(inside), rows)
    number = (rank.gather(1, nearest) + on(counts.cumsum() - counts, rows)[:, None]).flatten()[real]  # of the cluster
    row = slot.flatten()[real]
    order, size = grouped(number, torch.arange(total, device=rows.device))
    middle = ids_of((rank < on(counts, rows)[:, None]).flatten()[real], total)
    centre = torch.empty_like(middle).scatter_(0, number[middle], row[middle])
    return group, group_mean(rows, row[order], size), size, centre


@dataclass(frozen=True)
class PruneVidSelect(InnerStage):
    """The selection stage. layer: the first layer that sees fewer tokens, counted from 0 (11: after the release's layer
    10); alpha: share of every group that stays. Groups are PruneVid's, as its TokenSet names them."""

    layer: int = 11
    alpha: float = 0.4

    query = "text"
    prune_past = True
    reads_groups = True
    fidelity = "port"
    share = "alpha"
    idle = 1

    def keep(self, hidden: Tensor, score: Tensor, visual: Tensor, n0: int, **groups: Tensor | None) -> Tensor:
        """Copies to the host: the groups' sizes."""
        best = self.finite(score.amax((0, 1))[visual])
        group = groups.get("group")
        group = torch.zeros_like(visual) if group is None else group
        _, label, sizes = group.unique(return_inverse=True, return_counts=True)
        counts = (self.alpha * sizes.double()).long()
        counts[sizes.argmax()] += counts.sum() == 0
        return ids_of(top_of_groups(best, label, counts), int(counts.sum()))
