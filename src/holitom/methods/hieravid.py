"""HieraVid (arXiv 2604.01881): merge over time, then keep diverse tokens of every segment, fewer the deeper the layer.

After Ethan16162/VidTokenPrune at 2733a94, the first author's development code: no release, and whether the paper's
tables used exactly that is not known. The paper's equations were not available. Assumptions are numbered.

Segment level, before layer 0 (class HieraVid):
1. A cell is unchanged where its cosine to the previous frame is above 0.6; a segment begins where less than beta = 0.4
   of the cells are unchanged.
2. The tokens most like their cell's previous frame, in the whole video (A1), are merged into it: a run of them is
   averaged into the token before the run, which keeps its position.
3. Every segment has a marginal gain: MMG-Vid's equation 6.
Frame level, at layers 7, 14 and 21 of 28 (class HieraVidSelect): of every segment a diverse subset stays, by greedy MAP
of a determinantal point process with kernel diag(r) S diag(r). S is the cosine of the states; r is the attention of the
last prompt token, scaled to [0, 1] with the *least* attended token on top (A2), plus 1e-6. A segment may keep (1 - p) +
0.1 * gain of its tokens, within [0.05, 0.95].
Layer level (hieravid): p at layers 0, 7, 14 and 21. The paper's percentages are averages over the layers; the shares of
"30%" give its printed 24.5 % of the FLOPs.

Deviations: counts are exact (A4; the code rounds down in every segment: counts="coded"). Tokens leave before a layer's
attention instead of between its attention and its MLP (A5). Rows that depend on those chosen follow by quality (A3; in
the code by rounding noise, which can end in NaN). Newlines are left alone; the code merges them like patches on
LLaVA-Video. Below one token per cell, where merging over time ends, evenly spaced cells stay. The code's later version
(37503c3: no determinantal selection at layer 7, Nystrom kernels) is not built.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from holitom.errors import BadUsage
from holitom.methods.base import InnerStage, OuterStage, budget_tokens, every_token, on_host, token_set
from holitom.methods.mmg_vid import keep_ratios, marginal_gains, share_out
from holitom.ops.clusters import padding
from holitom.ops.diverse import greedy_map
from holitom.ops.segments import above, cut_at_changes
from holitom.ops.tensors import frame_mean, group_mean, grouped, ids_of, neighbour_cosine, on, row_norms, top_ids
from holitom.types import Reduction, TokenSet, VideoFeatures

SCHEDULES = {"30%": (0.5, 0.3, 0.3, 0.57), "20%": (0.5, 0.5, 0.7, 0.8), "10%": (0.7, 0.6, 0.85, 0.9)}
"""Share removed at layers 0, 7, 14 and 21 of 28, of what is left by then; the names are the paper's budgets."""
LAYERS = (0, 7, 14, 21)


@dataclass(frozen=True)
class HieraVid(OuterStage):
    """The segment level. similarity: cosine above which a cell is unchanged (strict); threshold: the authors' beta.
    round(budget * T * N) tokens stay. ``group`` is a token's segment, ``gain`` its segment's marginal gain: the later
    stages read both. Raises BadUsage for a budget outside (0, 1] and for a NaN in the tokens."""

    similarity: float = 0.6
    threshold: float = 0.4

    positions = "original"
    fidelity = "reconstruction"

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        """Reduce one video. One copy to the host: which cells are unchanged."""
        wanted, norms = budget_tokens(video, budget), row_norms(video.tokens)
        similar = neighbour_cosine(video.tokens, norms)
        unchanged = on_host(above(similar, self.similarity), tokens=norms)
        lengths = cut_at_changes(unchanged, self.threshold).lengths
        every = torch.arange(video.frames, device=norms.device)
        gains = marginal_gains(group_mean(frame_mean(video.tokens), every, on(lengths, norms)))
        kept = every_token(video) if wanted == video.frames * video.cells else _merge(video, similar, wanted)
        group = on(np.repeat(np.arange(len(lengths)), lengths), norms)[kept.frame]
        return replace(kept, group=group, gain=gains[group])


def _merge(video: VideoFeatures, similar: Tensor, wanted: int) -> TokenSet:
    """Step 2: ``wanted`` tokens of the video; similar [T - 1, N]."""
    frames, cells, _ = video.tokens.shape
    left = max(wanted, cells)
    merged = torch.zeros(frames * cells, dtype=torch.bool, device=similar.device)
    merged[top_ids(similar.flatten(), frames * cells - left) + cells] = True
    frame = torch.arange(frames, device=similar.device)[:, None].expand(frames, cells)
    start = torch.where(merged.view(frames, cells), 0, frame).cummax(0).values
    heads = ids_of(~merged, left)
    order, size = grouped((start * cells + torch.arange(cells, device=similar.device)).flatten(), heads)
    tokens = group_mean(video.tokens.flatten(0, 1), order, size)
    if wanted < cells:
        some = (2 * torch.arange(wanted, device=similar.device) + 1) * cells // (2 * wanted)
        tokens, heads, size = tokens[some], heads[some], size[some]
    return token_set(video, heads, tokens, size)


@dataclass(frozen=True)
class HieraVidSelect(InnerStage):
    """The frame level. layer: first layer that sees fewer tokens; ratio: p, the share of the tokens still there that is
    removed. relevance -1: the least attended token has the highest quality, as coded, which may be an oversight or a
    wish for diversity; 1: the most attended. counts "exact": round((1 - ratio) * V) tokens stay; "coded": int() of each
    segment's share, which drops 5 % even at ratio 0. Without groups all visual tokens are one segment."""

    layer: int
    ratio: float
    relevance: Literal[-1, 1] = -1
    counts: Literal["exact", "coded"] = "exact"

    score = "this"
    reads_groups = True
    fidelity = "reconstruction"

    @property
    def identity(self) -> bool:
        """Whether these parameters ask for nothing."""
        return self.ratio == 0 and self.counts == "exact"

    def keep(self, hidden: Tensor, score: Tensor, visual: Tensor, n0: int, **groups: Tensor | None) -> Tensor:
        """Copies groups and gains to the host."""
        group, gain = groups.get("group"), groups.get("gain")
        attention = self.finite(score[visual]) * self.relevance
        self.finite(row_norms(hidden[None])[0, visual], "states that enter")
        labels = np.zeros(len(visual), dtype=np.int64) if group is None else group.cpu().numpy()
        order, sizes = np.argsort(labels, kind="stable"), np.unique(labels, return_counts=True)[1]
        start = sizes.cumsum() - sizes
        gains = np.zeros(len(sizes)) if gain is None else gain.cpu().numpy()[order[start]]
        ratios = keep_ratios(1 - self.ratio, gains)
        if self.counts == "exact":
            counts = share_out(sizes, ratios, max(1, round((1 - self.ratio) * len(visual))))
        else:
            counts = (sizes * ratios).astype(np.int64)
            counts[sizes.argmax()] += not counts.any()
        if counts.sum() == len(visual):
            return torch.arange(len(visual), device=visual.device)
        attention = attention - attention.amin()
        quality = attention / attention.amax().clamp_min(torch.finfo(torch.float32).tiny) + 1e-6
        kept = torch.zeros(len(visual) + 1, dtype=torch.bool, device=visual.device)
        for width in np.unique(np.ceil(np.log2(sizes))):  # segments of like size together: little padding
            alike = np.ceil(np.log2(sizes)) == width
            place, inside = padding(sizes[alike])
            ids, valid = on(order[start[alike][:, None] + place], visual), on(inside, visual)
            chosen = greedy_map(hidden[visual[ids]], quality[ids], valid, on(counts[alike], visual))
            kept[torch.where(chosen, ids, len(visual))] = True  # what is not chosen falls on the spare place
        return ids_of(kept[:-1], int(counts.sum()))


def hieravid(schedule: str = "30%", layers: int = 28) -> Reduction:
    """The complete method for a decoder of ``layers`` layers: "30%", "20%" or "10%" of the tokens on average over the
    layers, as the paper counts; the budget before the language model is 50, 50 or 30 %."""
    if schedule not in SCHEDULES:
        raise BadUsage(f"HieraVid has no schedule {schedule!r}", fix=f"choose from {', '.join(SCHEDULES)}")
    first, *later = SCHEDULES[schedule]
    starts = (max(1, int(layer * layers / 28 + 0.5)) for layer in LAYERS[1:])  # halves up
    stages = tuple(HieraVidSelect(start, ratio) for start, ratio in zip(starts, later, strict=True))
    return Reduction(f"HieraVid {schedule} (layer average)", HieraVid(), 1 - first, stages)
