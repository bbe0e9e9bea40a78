"""Videos and prompts with the structure that the methods look for, made from a seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from holitom.methods import HieraVid
from holitom.types import VideoFeatures


def synthetic_video(
    frames: int,
    grid: tuple[int, int],
    dim: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    scene: int = 12,
) -> VideoFeatures:
    """A video with the structure that HoliTom looks for: scenes of about ``scene`` frames, in which half of the cells
    stay nearly constant, a quarter are textured (neighbours at a cosine around 0.8), and a quarter are new every frame.
    """
    draw = torch.Generator().manual_seed(seed)
    cells = grid[0] * grid[1]
    tokens = torch.empty(frames, cells, dim, dtype=dtype, device=device)
    start = 0
    while start < frames:
        length = min(frames - start, int(torch.randint(max(1, scene // 2), scene + scene // 2 + 1, (), generator=draw)))
        base = torch.randn(cells, dim, generator=draw)
        kind = torch.rand(cells, generator=draw)
        noise = torch.where(kind < 0.5, 0.1, torch.where(kind < 0.75, 0.5, 20.0))[:, None]
        for frame in range(start, start + length):
            moved = base + noise * torch.randn(cells, dim, generator=draw)
            tokens[frame] = (moved / (1 + noise**2).sqrt()).to(tokens)
        start += length
    saliency = torch.rand(frames, cells, generator=draw).softmax(-1).to(device)
    return VideoFeatures(tokens, grid, saliency)


def with_every_field(video: VideoFeatures, key_dim: int = 1152, seed: int = 1) -> VideoFeatures:
    """The video with keys [T, N, key_dim] and frame_embed [T, key_dim] as well, of a SigLIP tower's width."""
    draw = torch.Generator().manual_seed(seed)
    keys = torch.randn(video.frames, video.cells, key_dim, generator=draw).to(video.tokens)
    embed = torch.randn(video.frames, key_dim, generator=draw).to(video.tokens.device)
    return replace(video, keys=keys, frame_embed=embed)


@dataclass(frozen=True)
class Prompt:
    """What enters a decoder layer: 14 text tokens, V visual ones, 20 of a question. score: [S] one row of attention;
    text_score: [heads, 20, S] the question's rows; group, gain: [V] the segments of HieraVid's first stage."""

    hidden: Tensor
    score: Tensor
    text_score: Tensor
    visual: Tensor
    group: Tensor
    gain: Tensor


def prompt_of(video: VideoFeatures, share: float = 1.0, heads: int = 28, seed: int = 2) -> Prompt:
    """The prompt in which round(share * T * N) of the video's tokens stand, those that HieraVid's first stage leaves.
    Attention is uneven, as in a model: few tokens receive most of it."""
    kept = HieraVid()(video, share)
    draw = torch.Generator().manual_seed(seed)
    text = torch.randn(34, video.tokens.shape[-1], generator=draw).to(video.tokens)
    hidden = torch.cat([text[:14], kept.tokens, text[14:]])
    attention = (2 * torch.randn(heads, 20, len(hidden), generator=draw)).softmax(-1).to(hidden.device)
    visual = torch.arange(14, 14 + len(kept), device=hidden.device)
    return Prompt(hidden, attention[:, -1].mean(0), attention, visual, kept.group, kept.gain)
