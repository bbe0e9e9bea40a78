"""What the tower of a tiny model does: where attention goes, how alike neighbouring frames are, what leaks out.

These statistics decide how each method fares on a model, so the model card shows them. None of them was trained for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from holitom_repro.tiny.model import CELLS, GRID, normalise, project, received_attention, tower_states
from holitom_repro.tiny.pretrain import cell_looks, draw_frames
from holitom_repro.tiny.world import SIZE, make_clip

QUANTILES = (0.05, 0.5, 0.95)
THRESHOLDS = (0.65, 0.8, 0.9, 0.95)


def rank_auc(score: Float[Tensor, " n"], positive: Bool[Tensor, " n"]) -> float:
    """Chance that a positive scores above a negative; 0.5 says that the score knows nothing."""
    ranks = torch.empty_like(score, dtype=torch.float64)
    ranks[score.argsort()] = torch.arange(1, len(score) + 1, dtype=torch.float64)
    ones = int(positive.sum())
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * (len(score) - ones)))


def _touched(labels: np.ndarray) -> Tensor:
    """Label maps [F, 32, 32] -> [F, 16] bool: any object pixel in the cell."""
    side = SIZE // GRID
    return torch.from_numpy(labels.reshape(-1, GRID, side, GRID, side).any((2, 4)).reshape(-1, CELLS))


@torch.no_grad()
def attention_statistics(model, rng: np.random.Generator, frames: int = 2000) -> dict[str, float]:
    """How the attention received in the last tower layer tells cells with an object from background cells."""
    drawn = draw_frames(rng, frames)
    received = torch.cat([received_attention(model, _entering(model, part)) for part in drawn.pixels.split(256)])
    shown = drawn.looks.any(-1)
    top = torch.zeros_like(shown).scatter(1, received.topk(CELLS // 4, 1).indices, True)
    return {
        "object_over_background": round(float(received[shown].mean() / received[~shown].mean()), 2),
        "auc": round(rank_auc(received.flatten(), shown.flatten()), 3),
        "objects_in_top_quarter": round(float((top & shown).sum() / shown.sum()), 3),
    }


@torch.no_grad()
def similarity_statistics(model, draw: Callable[[int], np.random.Generator], clips: int = 60, frames: int = 32) -> dict:
    """Cosine of neighbouring frames: cells at rest, cells with an object, cells across a cut."""
    values: dict[str, list[Tensor]] = {"at rest": [], "object": [], "cut": []}
    for i in range(clips):
        clip = make_clip(draw(i), frames, "general")
        tokens = project(model, tower_states(model, normalise(clip.frames))[0])
        same = F.cosine_similarity(tokens[:-1], tokens[1:], dim=-1)
        shown, touched = torch.from_numpy(cell_looks(clip.labels)).any(-1), _touched(clip.labels)
        cut = torch.from_numpy(clip.scenes[1:] != clip.scenes[:-1])[:, None].expand_as(same)
        values["cut"].append(same[cut])
        values["object"].append(same[~cut & (shown[1:] | shown[:-1])])
        values["at rest"].append(same[~cut & ~(touched[1:] | touched[:-1])])
    joined = {k: torch.cat(v) for k, v in values.items()}
    scores = torch.cat([joined["at rest"], joined["cut"]])
    rest = torch.arange(len(scores)) < len(joined["at rest"])
    above = {str(t): {k: round(float((v > t).float().mean()), 3) for k, v in joined.items()} for t in THRESHOLDS}
    quantiles = {k: [round(float(q), 3) for q in v.quantile(torch.tensor(QUANTILES))] for k, v in joined.items()}
    return {"quantiles": quantiles, "share_above": above, "rest_against_cut_auc": round(rank_auc(scores, rest), 4)}


@torch.no_grad()
def leak(model, rng: np.random.Generator, frames: int = 2000) -> float:
    """R2 of a ridge probe that reads, from background cells alone, which looks are anywhere in the frame."""
    drawn = draw_frames(rng, frames)
    tokens = torch.cat([project(model, tower_states(model, part)[0]) for part in drawn.pixels.split(256)])
    x = F.layer_norm(tokens, tokens.shape[-1:])
    x = torch.cat([x, torch.ones(*x.shape[:2], 1)], -1).double()
    y = drawn.looks.amax(1)[:, None].expand(-1, CELLS, -1).double()
    empty = ~drawn.looks.any(-1)
    train = torch.arange(frames) < frames * 4 // 5
    a, b, c, d = x[train][empty[train]], y[train][empty[train]], x[~train][empty[~train]], y[~train][empty[~train]]
    ridge = 1e-4 * len(a) * torch.eye(a.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(a.T @ a + ridge, a.T @ b)
    return round(float(1 - ((c @ weights - d) ** 2).sum() / ((d - b.mean(0)) ** 2).sum()), 3)


def _entering(model, pixels: Tensor) -> Tensor:
    """The states that enter the last tower layer."""
    return model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
