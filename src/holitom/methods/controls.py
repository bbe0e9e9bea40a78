"""Controls: reductions that know nothing about the video, or only its saliency. What a method must beat at its budget.

All of them keep round(budget * T * N) tokens (at least one), in raster order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from holitom.methods.checks import every_token, need_saliency
from holitom.ops.selection import mask_ids, spread, top_per_row
from holitom.types import Fidelity, Positions, TokenSet, VideoFeatures, check_budget


def budget_tokens(video: VideoFeatures, budget: float) -> int:
    """round(budget * T * N), at least one token."""
    return max(1, round(check_budget(budget) * video.frames * video.cells))


@dataclass(frozen=True)
class RandomDrop:
    """Keep a uniformly random subset. It depends on ``seed``, T and N alone, neither on the global random state nor on
    pixels: one seed gives every video of one shape the same subset, so average over seeds for an expectation."""

    seed: int = 0
    requires: ClassVar[frozenset[str]] = frozenset()
    positions: ClassVar[Positions] = "contiguous"
    fidelity: ClassVar[Fidelity] = "control"

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        total = video.frames * video.cells
        draw = torch.randperm(total, generator=torch.Generator().manual_seed(self.seed))
        return _gather(video, draw[: budget_tokens(video, budget)].sort().values)


@dataclass(frozen=True)
class UniformStride:
    """Keep every (1 / budget)-th token in raster order over the whole video. Where 1 / budget divides the grid's width
    the same columns are kept in every row."""

    requires: ClassVar[frozenset[str]] = frozenset()
    positions: ClassVar[Positions] = "contiguous"
    fidelity: ClassVar[Fidelity] = "control"

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        total, wanted = video.frames * video.cells, budget_tokens(video, budget)
        return _gather(video, (2 * torch.arange(wanted) + 1) * total // (2 * wanted))


@dataclass(frozen=True)
class SaliencyTopK:
    """Keep each frame's most salient tokens, the same number in every frame up to one; ``lowest`` keeps the least
    salient instead, which shows whether saliency means anything to the model at hand."""

    lowest: bool = False
    requires: ClassVar[frozenset[str]] = frozenset({"saliency"})
    positions: ClassVar[Positions] = "contiguous"
    fidelity: ClassVar[Fidelity] = "control"

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        saliency = need_saliency(self, video)
        wanted = budget_tokens(video, budget)
        counts = torch.from_numpy(spread(wanted, video.frames)).to(saliency.device)
        mask = top_per_row(-saliency if self.lowest else saliency, counts)
        return _gather(video, mask_ids(mask.flatten(), wanted))


@dataclass(frozen=True)
class AveragePool:
    """Average-pool every frame to a coarser grid.

    Two grids next to the wanted size are mixed evenly over the frames, so that the total comes as near to
    budget * T * N as two grids allow; below one token per frame some frames get none. A grid has the number of rows and
    columns that keeps cells closest to square; each token sits in the middle cell of its bin, and ``size`` is the bin's
    number of cells (bins overlap where the grid does not divide, as in adaptive pooling).
    """

    requires: ClassVar[frozenset[str]] = frozenset()
    positions: ClassVar[Positions] = "contiguous"
    fidelity: ClassVar[Fidelity] = "control"

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        if check_budget(budget) == 1.0:
            return every_token(video)
        wanted = budget_tokens(video, budget)
        shapes = _grids(video.grid)
        per_frame = wanted / video.frames
        low = max(n for n in shapes if n <= per_frame)
        high = min((n for n in shapes if n > per_frame), default=low)
        finer = round((wanted - low * video.frames) / max(1, high - low))
        is_fine = spread(finer, video.frames).astype(bool)
        parts = [
            _pool(video, np.flatnonzero(~is_fine), shapes[low]),
            _pool(video, np.flatnonzero(is_fine), shapes[high]),
        ]
        frame, cell, size = (torch.cat([p[i] for p in parts]) for i in (1, 2, 3))
        order = torch.argsort(frame * video.cells + cell, stable=True)
        tokens = torch.cat([p[0] for p in parts])
        return TokenSet(tokens[order], frame[order], cell[order], size[order])


def _grids(grid: tuple[int, int]) -> dict[int, tuple[int, int]]:
    """Number of tokens -> (rows, columns) with the squarest bins, for every product that fits; 0 tokens is no grid."""
    height, width = grid
    best: dict[int, tuple[int, int]] = {0: (0, 0)}
    for rows in range(1, height + 1):
        for columns in range(1, width + 1):
            known = best.get(rows * columns)
            if known is None or _skew(grid, (rows, columns)) < _skew(grid, known):
                best[rows * columns] = (rows, columns)
    # Strips (1 x 7 where 2 x 4 is near) are worse pictures than a size one off: only near-square bins are offered.
    return {n: s for n, s in best.items() if n <= 1 or _skew(grid, s) <= 2 or n == height * width}


def _skew(grid: tuple[int, int], shape: tuple[int, int]) -> float:
    ratio = (grid[0] / shape[0]) / (grid[1] / shape[1])
    return max(ratio, 1 / ratio)


def _pool(video: VideoFeatures, frames: np.ndarray, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    device, dim = video.tokens.device, video.tokens.shape[-1]
    if not len(frames) or 0 in shape:
        none = torch.empty(0, dtype=torch.long, device=device)
        return video.tokens.new_empty(0, dim), none, none, none.float()
    chosen = video.tokens[torch.from_numpy(frames).to(device)]
    picture = chosen.unflatten(1, video.grid).permute(0, 3, 1, 2).float()
    tokens = adaptive_avg_pool2d(picture, shape).flatten(2).transpose(1, 2).reshape(-1, dim).to(chosen.dtype)
    middles, sizes = zip(*(_bins(n, parts) for n, parts in zip(video.grid, shape, strict=True)), strict=True)
    cell = (middles[0][:, None] * video.grid[1] + middles[1]).flatten().to(device)
    size = (sizes[0][:, None] * sizes[1]).flatten().float().to(device)
    owner = torch.from_numpy(frames).to(device).repeat_interleave(len(cell), output_size=len(frames) * len(cell))
    return tokens, owner, cell.repeat(len(frames)), size.repeat(len(frames))


def _bins(n: int, parts: int) -> tuple[Tensor, Tensor]:
    """Middle cell and length of each of adaptive pooling's bins along one axis."""
    index = torch.arange(parts)
    start, stop = index * n // parts, -(-(index + 1) * n // parts)
    return (start + stop - 1) // 2, stop - start


def _gather(video: VideoFeatures, ids: Tensor) -> TokenSet:
    if ids.shape[0] == video.frames * video.cells:
        return every_token(video)
    ids = ids.to(video.tokens.device)
    tokens = video.tokens.reshape(-1, video.tokens.shape[-1])[ids]
    return TokenSet(tokens, ids // video.cells, ids % video.cells, torch.ones(len(ids), device=ids.device))
