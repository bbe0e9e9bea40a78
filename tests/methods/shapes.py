"""Videos of every shape the methods must take: lengths, grids, widths, and contents that break ties."""

import torch

from holitom.types import VideoFeatures

SHAPES = [
    (1, (1, 1), 4),
    (1, (14, 14), 8),
    (2, (1, 7), 16),
    (3, (5, 3), 64),
    (6, (2, 2), 5),
    (7, (4, 4), 32),
    (16, (7, 7), 16),
    (33, (2, 9), 8),
    (64, (3, 4), 24),
]
BUDGETS = [0.01, 0.1, 0.25, 0.5, 0.9, 1.0]


def scenes(frames, grid, dim, seed=0, dtype=torch.float32):
    """Scenes of 1 to 9 frames; two thirds of the cells change little inside a scene."""
    draw = torch.Generator().manual_seed(seed)
    cells = grid[0] * grid[1]
    parts, left = [], frames
    while left:
        length = min(left, int(torch.randint(1, 10, (), generator=draw)))
        noise = torch.where(torch.rand(cells, 1, generator=draw) < 0.67, 0.1, 2.0)
        base = torch.randn(cells, dim, generator=draw)
        parts.append(base + noise * torch.randn(length, cells, dim, generator=draw))
        left -= length
    saliency = torch.rand(frames, cells, generator=draw).softmax(-1)
    return VideoFeatures(torch.cat(parts).to(dtype), grid, saliency)


def equal(frames, grid, dim, value=1.0, dtype=torch.float32):
    return VideoFeatures(torch.full((frames, grid[0] * grid[1], dim), value, dtype=dtype), grid)


def check(kept, video):
    """What every token set must be, whatever the method."""
    assert kept.tokens.dtype == video.tokens.dtype
    assert kept.tokens.isfinite().all()
    assert len(kept) == len(kept.frame) == len(kept.cell) == len(kept.size) >= 1
    assert int(kept.frame.min()) >= 0 and int(kept.frame.max()) < video.frames
    assert int(kept.cell.min()) >= 0 and int(kept.cell.max()) < video.cells
    places = kept.frame * video.cells + kept.cell
    assert len(places.unique()) == len(places)
    assert (kept.size >= 1).all()


def same(a, b):
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("tokens", "frame", "cell", "size"))
