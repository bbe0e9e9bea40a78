"""FlashVID (arXiv 2602.08024, ICLR 2026), both stages: salient and diverse tokens as they are, the others merged along
trees through time and then inside their frame; late in the language model a last cut.

Before the language model (Fanziyang-v/FlashVID at 3efef7e, flashvid/utils.py, token_selection.py):
1. Segments as in FastVID, from the frames' mean tokens.
2. ADTS: of a frame's budget the share alpha. The next token is the one with the largest w * distance to its nearest
   chosen one, distance = 1 - cosine, w = attention received in the tower * (token . mean token of the segment). The
   first: the largest w * distance to its nearest neighbour.
3. TSTM: every other token of a frame hangs on the most similar one of the frame before, in the same segment, where
   their cosine is above tau; only so many do, the most similar ones, that the budget is left.
4. The trees of a segment are merged to what is left of its budget, by density peaks (k = 7) in every frame.
Inside it: at layer K the share R of the visual tokens stays, those that the last prompt token attends to most; the
release calls it by its name, FastV, and so it is here (rounded, where the release rounds up).

Two ways to count: a retention of r is fe * r before the language model, and R is such that the mean over the L layers
is r (equations 13 to 15): fe = 1.25, K = 20, L = 28 give 12.5 %, then 3.75 %, for "10 %". ``flashvid`` makes that
setting; the outer stage itself takes, as every method here, the share that enters the language model.

A reconstruction: the release was not run beside it, and this departs from it on purpose. The text averages trees, and
clusters of trees; the release sums a tree over all its tokens but divides by the root and its direct children alone, so
that long trees grow. Here trees are compared by their roots, and a token is the mean of all that went into it: the same
where trees have one token, and half the work. The release rounds up per frame, cuts one link too many, merges the
chosen tokens of a segment of one frame in again, and may choose a token twice where w is negative; here round(budget *
T * N) tokens stay. Ties go to the lower index; budget 1 is the identity.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import threshold

from holitom.errors import BadUsage
from holitom.methods.base import OuterStage, every_token, frame_counts, on_host, token_set
from holitom.methods.fastv import FastV
from holitom.methods.fastvid import FastVID
from holitom.ops.clusters import peak_scores
from holitom.ops.tensors import (
    TINY,
    apportion,
    frame_mean,
    gram,
    group_mean,
    grouped,
    ids_of,
    on,
    ranks,
    top_of_groups,
    workspace,
)
from holitom.types import Reduction, TokenSet, VideoFeatures, check_budget


@dataclass(frozen=True)
class FlashVID(OuterStage):
    """Before the language model. alpha: share of the budget that is chosen by ADTS; tau: cosine above which a token
    hangs on one of the frame before (strict); segments, cut: at least so many segments, and one ends below this cosine
    of frames. BadUsage for a budget outside (0, 1], a missing saliency, and a NaN."""

    alpha: float = 0.7
    tau: float = 0.8
    segments: int = 8
    cut: float = 0.9

    requires = frozenset({"saliency"})
    fidelity = "reconstruction"

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        """Reduce one video. Copies to the host: where segments end, and how many trees a frame has."""
        counts, saliency = frame_counts(video, budget), self.fields(video)["saliency"]
        means = frame_mean(video.tokens)
        ends = on_host(FastVID(self.segments, self.cut).ends(means), tokens=means, saliency=saliency)
        if budget == 1:
            return every_token(video)
        # 1. Segments.
        start = np.flatnonzero(np.append(True, ends))
        lengths, rows = np.diff(start, append=video.frames), video.tokens.flatten(0, 1)
        segment = np.repeat(np.arange(len(start)), lengths)
        with torch.no_grad():
            # 2. ADTS.
            every = torch.arange(video.frames, device=means.device)
            centre = group_mean(means, every, on(lengths, means))[on(segment, means)]
            distance, before, dots, norms = _products(video.tokens, centre, start)
            own = np.ceil(counts * self.alpha - 1e-9).astype(np.int64)
            chosen = _diverse(distance, saliency * dots, on(own, means))
            left = np.add.reduceat(counts - own, start)  # what each segment may keep beside
            if not left.any():
                return token_set(video, ids_of(chosen.flatten(), own.sum()))
            # 3. Trees.
            before[1:].masked_fill_(chosen[:-1, None], -1)
            links = before.max(-1)
            similar = links.values.masked_fill_(chosen, -1)
            most = np.add.reduceat(video.cells - counts, start)  # links that leave the budget
            label = on(np.repeat(segment, video.cells), means)
            closest = top_of_groups(similar.flatten(), label, on(most, means)).view_as(chosen)
            hangs = (similar > self.tau) & closest
            owner = torch.arange(len(rows), device=rows.device).view_as(hangs)
            owner = torch.where(hangs, (owner // video.cells - 1) * video.cells + links.indices, owner).flatten()
            for _ in range(int(lengths.max()).bit_length()):
                owner = owner[owner]
            # 4. Clusters of them.
            tree = ~hangs & ~chosen
            heads = tree.sum(1).cpu().numpy()
            wanted = np.concatenate([apportion(heads[segment == s], int(n)) for s, n in enumerate(left)])
            many = on(wanted, means)[:, None]
            square = (norms[..., None] - norms[:, None]).square_()
            square.addcmul_(distance.mul_(2 * norms[:, None]), norms[..., None]).div_(rows.shape[1])
            middle = ranks(peak_scores(square, tree, 7, many[:, 0].clamp_min(1))) < many
            nearest = square.masked_fill_(~middle[:, None], torch.inf).argmin(-1) + every[:, None] * video.cells
            itself = torch.arange(len(rows), device=rows.device).view_as(tree)
            owner = torch.where(tree & ~middle & (many > 0), nearest, itself).flatten()[owner]
            # In raster order; in a frame that keeps no tree, its trees go.
            stays = (chosen | middle).flatten()
            ids = ids_of(stays, int(counts.sum()))
            order, size = grouped(torch.where(stays[owner], owner, -1), ids)
            order = order[len(rows) - int(size.sum()) :]
        return token_set(video, ids, group_mean(rows, order, size), size)


def _products(tokens: Tensor, centre: Tensor, start: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1 - cosine of every frame's tokens with each other, where equal ones are at 0 exactly; cosine with those of the
    frame before, -1 in the frames ``start`` that begin a segment: [T, N, N] both; inner product of every token with
    ``centre`` [T, D], and its norm: [T, N] both. Some frames at a time."""
    frames, cells, _ = tokens.shape
    inside, before = centre.new_empty(2, frames, cells, cells)
    dots, norms = centre.new_empty(2, frames, cells)
    step, begins, last = max(1, workspace(tokens) // tokens[0].numel() // 2), set(start.tolist()), None
    for t in range(0, frames, step):
        here = tokens[t : t + step].float()
        dots[t : t + step] = (here @ centre[t : t + step, :, None])[..., 0]
        norms[t : t + step] = norm = torch.linalg.vector_norm(here, dim=-1)
        here = here / norm.clamp_min(TINY)[..., None]
        inside[t : t + step] = gram(here)
        if t not in begins:  # as frame 0 always does
            before[t] = here[0] @ last.T
        before[t + 1 : t + step] = here[1:] @ here[:-1].mT
        last = here[-1]
    before[on(start, before)] = -1
    return threshold(inside.neg_().add_(1), 1e-6, 0, inplace=True), before, dots, norms


def _diverse(distance: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Step 2: distance [T, N, N], weight [T, N] -> mask [T, N] of ``counts[t]`` tokens of every frame."""
    every = torch.arange(len(weight), device=weight.device)
    scaled = distance * weight[:, None]
    scaled.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    nearest, chosen = scaled.amin(1), torch.zeros_like(weight, dtype=torch.bool)
    for step in range(int(counts.max())):
        best = nearest.masked_fill(chosen, -torch.inf).argmax(-1)
        nearest = torch.minimum(nearest, scaled[every, best]) if step else scaled[every, best]
        chosen[every, best] |= counts > step
    return chosen


def flashvid(mean: float, layers: int = 28, *, expansion: float = 1.25, layer: int = 20) -> Reduction:
    """The complete method for ``mean``, the share of the tokens on average over ``layers`` layers (equation 15).
    expansion: fe, how much of it enters the language model; layer: K of 28. expansion 1: no stage inside."""
    start = max(1, int(layer * layers / 28 + 0.5))
    ratio = (layers - expansion * start) / (expansion * (layers - start))
    if expansion < 1 or ratio <= 0 or check_budget(mean) * expansion > 1:
        what = f"no share is left of {mean:g} * {expansion:g}"
        raise BadUsage(what, fix="give an expansion from 1 to 28 / 20, as 1.25")
    inner = (FastV(start, 1 - ratio),) if ratio < 1 else ()
    return Reduction("FlashVID", FlashVID(), mean * expansion, inner)
