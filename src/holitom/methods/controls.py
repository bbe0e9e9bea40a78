"""Controls: reductions that know nothing about the video, or only its saliency. What a method must beat at its budget.

All of them keep round(budget * T * N) tokens (at least one), in raster order, and refuse a NaN.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from holitom.methods.inputs import budget_tokens, every_token, need_field, on, refuse_non_finite
from holitom.ops.selection import mask_ids, spread, top_per_row
from holitom.ops.similarity import row_norms
from holitom.types import Fidelity, Positions, TokenSet, VideoFeatures


@dataclass(frozen=True)
class RandomDrop:
    """Keep a uniformly random subset, another one for every video and seed; average over seeds for an expectation.

    The draw depends on ``seed``, T, N and two numbers that the video gives: in which token the first component is
    largest, and in which the middle one is. These are places, not values, so a copy on another device, a changed scale
    or the last digits of another precision leave them alone; only where the two largest values are nearly equal can a
    lower precision swap them, and with them the subset. The global random state plays no part.
    """

    seed: int = 0
    requires: ClassVar[frozenset[str]] = frozenset()
    positions: ClassVar[Positions] = "contiguous"
    fidelity: ClassVar[Fidelity] = "control"

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        wanted, total = budget_tokens(video, budget), video.frames * video.cells
        dim = video.tokens.shape[-1]
        flat = video.tokens.reshape(total, dim)
        places = torch.stack([flat[:, 0], flat[:, dim // 2]], dim=1).argmax(0)  # a list as index would wait for CUDA
        mark = _finite(video, rider=places).tolist()
        name = hashlib.blake2b(repr((self.seed, *mark)).encode(), digest_size=8).digest()
        draw = torch.Generator().manual_seed(int.from_bytes(name, "big") >> 1)
        return _gather(video, torch.randperm(total, generator=draw)[:wanted].sort().values)


@dataclass(frozen=True)
class UniformStride:
    """Keep every (1 / budget)-th token in raster order over the whole video. Where 1 / budget divides the grid's width
    the same columns are kept in every row."""

    requires: ClassVar[frozenset[str]] = frozenset()
    positions: ClassVar[Positions] = "contiguous"
    fidelity: ClassVar[Fidelity] = "control"

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        total, wanted = video.frames * video.cells, budget_tokens(video, budget)
        _finite(video)
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
        saliency = need_field(self, video, "saliency")
        wanted = budget_tokens(video, budget)
        _finite(video, saliency=saliency)
        counts = on(spread(wanted, video.frames), saliency)
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
        wanted = budget_tokens(video, budget)
        _finite(video)
        if wanted == video.frames * video.cells:
            return every_token(video)
        shapes = _grids(video.grid)
        per_frame = wanted / video.frames
        low = max(n for n in shapes if n <= per_frame)
        high = min((n for n in shapes if n > per_frame), default=low)
        finer = round((wanted - low * video.frames) / max(1, high - low))
        is_fine = spread(finer, video.frames).astype(bool)
        parts = ((np.flatnonzero(~is_fine), shapes[low]), (np.flatnonzero(is_fine), shapes[high]))
        places = [_places(video, frames, shape) for frames, shape in parts]
        frame, cell, size = (torch.cat(part) for part in zip(*places, strict=True))
        order = torch.argsort(frame * video.cells + cell, stable=True)
        slot = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        tokens = video.tokens.new_empty(len(order), video.tokens.shape[-1])
        begin = 0
        for frames, shape in parts:
            for rows in _pooled(video, frames, shape):
                tokens[slot[begin : begin + len(rows)]] = rows.to(tokens.dtype)
                begin += len(rows)
        return TokenSet(tokens, frame[order], cell[order], size[order])


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


def _places(video: VideoFeatures, frames: np.ndarray, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Frame, middle cell and number of cells of every bin, frame by frame."""
    middles, sizes = zip(*(_bins(n, parts) for n, parts in zip(video.grid, shape, strict=True)), strict=True)
    cell = (middles[0][:, None] * video.grid[1] + middles[1]).flatten()
    size = (sizes[0][:, None] * sizes[1]).flatten().float()
    owner = torch.from_numpy(frames).repeat_interleave(len(cell))
    device = video.tokens.device
    return owner.to(device), cell.repeat(len(frames)).to(device), size.repeat(len(frames)).to(device)


def _pooled(video: VideoFeatures, frames: np.ndarray, shape: tuple[int, int]) -> Iterator[Tensor]:
    """The bins' means, [bins, D] for some frames at a time, so that float32 copies stay below the size of the video."""
    if 0 in shape:
        return
    for some in torch.from_numpy(frames).to(video.tokens.device).split(-(-video.frames // 8)):
        picture = video.tokens[some].unflatten(1, video.grid).permute(0, 3, 1, 2).float()
        yield adaptive_avg_pool2d(picture, shape).flatten(2).transpose(1, 2).flatten(0, 1)


def _bins(n: int, parts: int) -> tuple[Tensor, Tensor]:
    """Middle cell and length of each of adaptive pooling's bins along one axis."""
    index = torch.arange(parts)
    start, stop = index * n // parts, -(-(index + 1) * n // parts)
    return (start + stop - 1) // 2, stop - start


def _finite(video: VideoFeatures, rider: Tensor | None = None, **fields: Tensor) -> np.ndarray:
    return refuse_non_finite({"tokens": row_norms(video.tokens), **fields}, rider)


def _gather(video: VideoFeatures, ids: Tensor) -> TokenSet:
    if ids.shape[0] == video.frames * video.cells:
        return every_token(video)
    ids = ids.to(video.tokens.device)
    tokens = video.tokens.reshape(-1, video.tokens.shape[-1])[ids]
    return TokenSet(tokens, ids // video.cells, ids % video.cells, torch.ones(len(ids), device=ids.device))
