"""Stage 1: the vision tower and the projector learn from single frames with dense labels and captions.

No loss here mentions attention or similarity. Dense labels say which shape, colour, scene and place a cell shows; a
SigLIP-style sigmoid loss matches whole frames with captions through the mean of their tokens. A tower without that
loss is the adverse control: from dense labels alone, attention goes to the background.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from holitom_repro.tiny.model import CELLS, GRID, TEXT_DIM, VISION_DIM, normalise, project, tower_states
from holitom_repro.tiny.vocabulary import COLORS, PLACES, SCENES, SHAPES, VOCABULARY_SIZE, WORD_ID
from holitom_repro.tiny.world import RADIUS, SIZE, add_noise, background, stamp

LOOKS = 30  # five shapes (the needle is one of them) in six colours
Head = Literal["mean", "none"]


@dataclass(frozen=True)
class Frames:
    """pixels [n, 3, 32, 32]; looks [n, 16, 30] multi-hot; scene [n]; captions [n, 5, 3] word ids (0: no object)."""

    pixels: Tensor
    looks: Tensor
    scene: Tensor
    captions: Tensor


def cell_looks(labels: np.ndarray) -> np.ndarray:
    """Label maps [F, 32, 32] -> [F, 16, 30] bool: at least 6 pixels of that shape and colour in the cell."""
    frames, side = len(labels), SIZE // GRID
    cells = (
        labels.reshape(frames, GRID, side, GRID, side)
        .transpose(0, 1, 3, 2, 4)
        .reshape(frames * CELLS, -1)
        .astype(np.int64)
    )
    offset = np.arange(frames * CELLS)[:, None] * (LOOKS + 1)
    counts = np.bincount((cells + offset).ravel(), minlength=frames * CELLS * (LOOKS + 1))
    return counts.reshape(frames, CELLS, LOOKS + 1)[..., 1:] >= 6


def draw_frames(rng: np.random.Generator, count: int) -> Frames:
    """Single frames with 0 to 4 shapes, sometimes a needle, anywhere on any scene."""
    pixels = np.empty((count, SIZE, SIZE, 3), np.float32)
    labels = np.zeros((count, SIZE, SIZE), np.uint8)
    scene = rng.integers(0, len(SCENES), count)
    captions = np.zeros((count, 5, 3), np.int64)
    for i in range(count):
        pixels[i] = background(int(scene[i]), rng)
        shapes = list(rng.permutation(len(SHAPES))[: rng.choice(5, p=[0.1, 0.3, 0.3, 0.2, 0.1])])
        if rng.random() < 0.3:
            shapes.append(len(SHAPES))
        for j, shape in enumerate(shapes):
            color, x, y = int(rng.integers(len(COLORS))), *map(int, rng.integers(RADIUS, SIZE - RADIUS, 2))
            stamp(pixels[i], labels[i], int(shape), color, x, y)
            place = PLACES[(x >= SIZE // 2) + 2 * (y >= SIZE // 2)]
            captions[i, j] = WORD_ID[COLORS[color]], WORD_ID[(*SHAPES, "star")[shape]], WORD_ID[place]
    looks = torch.from_numpy(cell_looks(labels)).float()
    return Frames(normalise(add_noise(pixels, rng)), looks, torch.from_numpy(scene), torch.from_numpy(captions))


class DenseLabels(nn.Module):
    """Plain dense labels on the pooled, projected tokens: looks, scene, and the place of cells that show an object."""

    def __init__(self) -> None:
        super().__init__()
        self.looks, self.scene, self.place = (
            nn.Linear(TEXT_DIM, LOOKS),
            nn.Linear(TEXT_DIM, len(SCENES)),
            nn.Linear(TEXT_DIM, CELLS),
        )
        nn.init.constant_(self.looks.bias, -4.0)

    def forward(
        self,
        tokens: Float[Tensor, "frames cells dim"],
        looks: Float[Tensor, "frames cells looks"],
        scene: Int[Tensor, " frames"],
    ) -> Tensor:
        x = F.layer_norm(tokens.float(), tokens.shape[-1:])
        shown = looks.any(-1).flatten().float()
        look = F.binary_cross_entropy_with_logits(self.looks(x), looks, reduction="none").sum(-1).mean()
        where = torch.arange(CELLS, device=x.device).repeat(len(x))
        place = (
            F.cross_entropy(self.place(x).flatten(0, 1), where, reduction="none") * shown
        ).sum() / shown.sum().clamp(min=1)
        return look + 0.3 * F.cross_entropy(self.scene(x).flatten(0, 1), scene.repeat_interleave(CELLS)) + 0.3 * place


class CaptionMatch(nn.Module):
    """SigLIP's sigmoid loss between frames, each the mean of its tokens, and bags of phrases."""

    def __init__(self) -> None:
        super().__init__()
        d = VISION_DIM
        self.norm, self.image = nn.LayerNorm(d), nn.Linear(d, d, bias=False)
        self.words, self.scenes = nn.Embedding(VOCABULARY_SIZE, d), nn.Embedding(len(SCENES), d)
        self.phrase = nn.Sequential(nn.Linear(3 * d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.text = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, d))
        self.scale, self.bias = nn.Parameter(torch.tensor(math.log(10.0))), nn.Parameter(torch.tensor(-10.0))

    def forward(
        self, states: Tensor, captions: Int[Tensor, "frames phrases 3"], scene: Int[Tensor, " frames"]
    ) -> Tensor:
        x = self.norm(states)
        image = F.normalize(self.image(x.mean(1)).float(), dim=-1)
        said = (captions[..., 0] > 0).float()[..., None]
        text = (self.phrase(self.words(captions).flatten(-2)) * said).sum(1) + self.scenes(scene)
        text = F.normalize(self.text(text).float(), dim=-1)
        phrases = (
            (captions * torch.tensor([VOCABULARY_SIZE**2, VOCABULARY_SIZE, 1], device=captions.device))
            .sum(-1)
            .sort(1)
            .values
        )
        same = (phrases[:, None] == phrases[None]).all(-1) & (scene[:, None] == scene[None])
        sign = same.float() * 2 - 1
        return -F.logsigmoid(sign * (self.scale.exp() * image @ text.T + self.bias)).sum() / len(sign)


class VisionTraining(nn.Module):
    """Stage 1's loss over one batch of frames: dense labels + 0.3 caption matching (head "mean"), or dense labels alone
    ("none")."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.dense, self.match = DenseLabels(), CaptionMatch() if head == "mean" else None

    def forward(self, model, batch: Frames) -> tuple[Tensor, dict[str, float]]:
        features, last = tower_states(model, batch.pixels)
        dense = self.dense(project(model, features), batch.looks, batch.scene)
        if self.match is None:
            return dense, {"dense": dense.item()}
        match = self.match(last, batch.captions, batch.scene)
        return dense + 0.3 * match, {"dense": dense.item(), "match": match.item()}
