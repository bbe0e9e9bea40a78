"""Visual features without a model: the colour of every cell. Enough to show what temporal merging does to a video.

They are this kit's own stand-in for a vision tower in pictures and the demo; no score is ever computed from them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from holitom.errors import BadVideo
from holitom.types import VideoFeatures

POSITION_WEIGHT = (
    0.5  # keeps the cosine of two flat grey cells defined; below the scale of one standardised colour value
)


def colour_features(pixels: UInt8[Tensor, "frames height width 3"], grid: tuple[int, int] = (14, 14)) -> VideoFeatures:
    """[T, H, W, 3] uint8 -> tokens [T, cells, 8] float32: mean and deviation of R, G, B per cell, standardised over the
    video, and the place of the cell in [-1, 1] with half weight. Saliency: see ``contrast``.

    A frame is cut into grid[0] x grid[1] equal cells; up to grid - 1 pixels at the lower and right edge are left out.
    Raises BadVideo for a picture smaller than the grid.
    """
    rows, columns = grid
    frames, height, width, _ = pixels.shape
    high, wide = height // rows, width // columns
    if not high or not wide:
        raise BadVideo(
            f"frames of {width}x{height} pixels are smaller than the grid of {columns}x{rows} cells",
            fix="use a larger video",
        )
    mean = torch.empty(frames, rows * columns, 3)
    deviation = torch.empty_like(mean)
    for t in range(frames):  # one frame at a time: a long video in float32 would not fit
        blocks = pixels[t, : high * rows, : wide * columns].reshape(rows, high, columns, wide, 3).permute(0, 2, 1, 3, 4)
        blocks = blocks.reshape(rows * columns, high * wide, 3).float() / 255
        mean[t], deviation[t] = blocks.mean(1), blocks.std(1, unbiased=False)
    values = torch.cat([mean, deviation], dim=-1)
    flat = values.reshape(-1, 6)
    standard = (values - flat.mean(0)) / (flat.std(0, unbiased=False) + 1e-4)
    y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
    place = POSITION_WEIGHT * torch.stack([y, x], dim=-1).reshape(1, rows * columns, 2).expand(frames, -1, -1)
    return VideoFeatures(torch.cat([standard, place], dim=-1), grid, saliency=contrast(mean, deviation))


def contrast(
    mean: Float[Tensor, "frames cells 3"], deviation: Float[Tensor, "frames cells 3"]
) -> Float[Tensor, "frames cells"]:
    """A stand-in for received attention: how far a cell's colour is from its frame's mean colour, plus its own texture.

    Normalised to sum 1 per frame, as attention is; a frame without any contrast gets equal shares.
    """
    score = (mean - mean.mean(dim=1, keepdim=True)).norm(dim=-1) + deviation.norm(dim=-1) + 1e-6
    return score / score.sum(dim=1, keepdim=True)
