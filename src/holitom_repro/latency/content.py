"""What the video shows, for models whose features mean nothing: token features with stated similarities.

A random tower maps every frame to nearly the same point, so methods that merge what stays the same would merge
everything, and the time of their later stages would be that of an empty video. Here features are drawn so that the
cosines between a cell and itself one frame later follow those measured on a real clip (data/measured/
clip_similarity.json), by a model that is stated in ``drawn_video``; or a share of unchanged cells is forced. The tower
still runs and is timed; its output is replaced before anything looks at it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from holitom_repro import paths
from holitom.errors import BadUsage, CannotRun
from holitom.types import VideoFeatures

QUANTILES = tuple(i / 20 for i in range(21))
MODEL = (
    "every cell is a random walk of unit normals from frame to frame with these cosines; the tower runs, is timed, and "
    "this replaces its output before any method sees it (holitom_repro.latency.content.drawn_video)"
)
"""How the realised budget is set by construction, for a record."""
SPAN = 0.999  # cosines at the ends of the range would give a random walk without noise or without memory


@dataclass(frozen=True)
class Similarity:
    """Cosines between neighbouring frames, cell by cell: their quantiles at 0, 5, ..., 100 %, and which share of the
    variance of their normal scores belongs to the cell (background against movement) and to the moment (cuts)."""

    quantiles: tuple[float, ...]
    cell_share: float
    frame_share: float
    how: str

    def describe(self) -> dict[str, Any]:
        return {
            "how": self.how,
            "cosine_quantiles": list(self.quantiles),
            "variance_of_cells": self.cell_share,
            "variance_of_moments": self.frame_share,
        }


def measure_similarity(cosine: Float[Tensor, "pairs cells"], how: str) -> Similarity:
    """The statistics of ``Similarity`` from measured cosines [T - 1, N].

    Normal scores by rank; the two shares are the variances of their means over time and over cells, less what chance
    alone gives to such means, at least 0 and together at most 0.98.
    """
    flat = cosine.flatten().double()
    quantiles = torch.quantile(flat, torch.tensor(QUANTILES, dtype=torch.double))
    rank = flat.argsort().argsort().double().view_as(cosine)
    scores = torch.special.ndtri((rank + 0.5) / flat.numel())
    pairs, cells = scores.shape
    of_cell, of_frame = scores.mean(0).var(correction=0), scores.mean(1).var(correction=0)
    rest = (scores - scores.mean(0) - scores.mean(1, keepdim=True) + scores.mean()).var(correction=0)
    shares = torch.stack([of_cell - rest / pairs, of_frame - rest / cells]).clamp_min(0.0) / scores.var(correction=0)
    shares = shares / max(1.0, float(shares.sum()) / 0.98)
    return Similarity(tuple(round(float(q), 5) for q in quantiles), *(round(float(s), 4) for s in shares), how)


@cache
def recorded_similarity(measure: str = "patches") -> Similarity:
    """What ``python -m holitom_repro.latency.clip`` measured on the shipped clip. measure "patches": centred pixels on the
    model's own grid, the harder video of the two; "tower": features of the shipped tiny model, which change less.
    CannotRun when the file is missing."""
    path = paths.data("measured", "clip_similarity.json")
    if not path.is_file():
        raise CannotRun(
            f"{path} is missing", fix="restore it: git checkout -- data/measured, or use --content static:0.5"
        )
    stored = json.loads(path.read_text(encoding="utf-8"))[measure]
    return Similarity(
        tuple(stored["cosine_quantiles"]), stored["variance_of_cells"], stored["variance_of_moments"], stored["how"]
    )


def forced(share: float, tau: float = 0.8) -> Similarity:
    """Exactly ``share`` of the pairs stay above ``tau``, always the same cells: a cosine of 0.95 for those, 0.3 for the
    others. BadUsage outside [0, 1]."""
    if not 0 <= share <= 1:
        raise BadUsage(f"static:{share}", fix="give the share of unchanged cells, 0 to 1")
    quantiles = tuple(0.95 if share and q >= 1 - share - 1e-9 else 0.3 for q in QUANTILES)
    return Similarity(quantiles, 0.98, 0.0, f"forced: {share:.0%} of the cells at a cosine of 0.95, the rest at 0.3")


def similarity_of(text: str) -> Similarity | None:
    """--content: "clip" (measured on the shipped clip: its pixels), "clip-tower" (its features in the tiny model),
    "static:SHARE", or "own" (None: the features as they come)."""
    kind, _, value = text.partition(":")
    if kind == "own" and not value:
        return None
    if kind in ("clip", "clip-tower") and not value:
        return recorded_similarity("tower" if kind == "clip-tower" else "patches")
    if kind == "static":
        try:
            return forced(float(value))
        except ValueError as error:
            if isinstance(error, BadUsage):
                raise
    raise BadUsage(f"--content {text}", fix="use clip, clip-tower, static:SHARE (for instance static:0.6), or own")


def drawn_video(
    similarity: Similarity,
    frames: int,
    grid: tuple[int, int],
    dim: int,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    requires: Sequence[str] = (),
    key_dim: int = 72,
) -> VideoFeatures:
    """Features [T, N, D] whose neighbouring frames have the given cosines, drawn on ``device``.

    Model: the normal score of a pair is a * z_cell + b * z_moment + c * z_pair with a^2, b^2 the measured shares and
    a^2 + b^2 + c^2 = 1; its rank among all pairs, through the measured quantiles, is the cosine rho; each cell is the
    walk x' = rho * x + sqrt(1 - rho^2) * e of unit normals, which has the cosine rho up to 1 / sqrt(D). Saliency is a
    softmax of normals over the cells of a frame; keys and frame_embed are the tokens' first channels and their mean.
    """
    draw = torch.Generator(device).manual_seed(seed)
    cells = grid[0] * grid[1]

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw, device=device)

    a, b = similarity.cell_share, similarity.frame_share
    noise = normal(max(frames - 1, 0), cells)
    score = a**0.5 * normal(1, cells) + b**0.5 * normal(max(frames - 1, 0), 1) + max(0.0, 1 - a - b) ** 0.5 * noise
    rank = (score.flatten().argsort().argsort().view_as(score) + 0.5) / max(score.numel(), 1)
    rho = _at_rank(similarity.quantiles, rank).clamp(-SPAN, SPAN)
    tokens = torch.empty(frames, cells, dim, dtype=dtype, device=device)
    state = normal(cells, dim)
    tokens[0] = state.to(dtype)
    for t in range(1, frames):
        state = rho[t - 1, :, None] * state + (1 - rho[t - 1, :, None] ** 2).sqrt() * normal(cells, dim)
        tokens[t] = state.to(dtype)
    optional = {
        "saliency": normal(frames, cells).softmax(-1),
        "keys": tokens[..., :key_dim].clone(),
        "frame_embed": tokens.mean(1),
    }
    return VideoFeatures(tokens, grid, **{name: optional[name] for name in requires if name in optional})


def _at_rank(quantiles: Sequence[float], rank: Tensor) -> Tensor:
    table = torch.tensor(quantiles, device=rank.device)
    place = rank.clamp(0, 1) * (len(quantiles) - 1)
    low = place.floor().long().clamp_max(len(quantiles) - 2)
    return table[low] + (table[low + 1] - table[low]) * (place - low)
