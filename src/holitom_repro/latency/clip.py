"""Measures how alike neighbouring frames of the shipped clip are: ``python -m holitom_repro.latency.clip`` writes
data/measured/clip_similarity.json, which ``holitom_repro.latency.content`` draws from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from holitom_repro import paths
from holitom_repro.latency.content import measure_similarity

CLIP = ("videos", "three_shots.mp4")
FRAMES, GRID, PATCH = 32, 14, 27


def measure_clip(frames: int = FRAMES) -> dict[str, Any]:
    """Both measures of the clip, as the JSON file holds them.

    "patches": the cosine of a cell's 27 x 27 pixels, less their mean, with those one frame later, on the 14 x 14 grid
    of LLaVA-OneVision. "tower": the cosine of the projected features of the shipped tiny model, 4 x 4 cells.
    """
    from holitom_repro.provenance import provenance
    from holitom.video import load_frames

    found = load_frames(paths.data(*CLIP), frames)
    step = found.duration / len(found)
    where = f"{CLIP[-1]}, {len(found)} frames {step:.2f} s apart, {found.decoder}"
    patches = _neighbours(patch_features(torch.from_numpy(found.pixels)))
    tower = _neighbours(_tower_features(found.pixels))
    return {
        "patches": measure_similarity(patches, f"centred 27 x 27 pixel patches of {where}").describe(),
        "tower": measure_similarity(tower, f"features of the shipped tiny model on {where}").describe(),
        "provenance": provenance(),
    }


def patch_features(pixels: Tensor) -> Float[Tensor, "frames cells dim"]:
    """Frames [T, H, W, 3] of bytes -> the pixels of each of 14 x 14 cells, less the cell's mean."""
    side = GRID * PATCH
    shown = F.interpolate(pixels.movedim(-1, 1).float() / 255, (side, side), mode="bilinear", antialias=True)
    cells = shown.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5)
    flat = cells.reshape(len(pixels), GRID * GRID, -1)
    return flat - flat.mean(-1, keepdim=True)


def _neighbours(features: Tensor) -> Tensor:
    return F.cosine_similarity(features[:-1], features[1:], dim=-1)


def _tower_features(pixels: Any) -> Tensor:
    from holitom.attach import reduce_tokens
    from holitom.models.processing import VideoProcessor, load_model

    folder = paths.data("tiny", "onevision")
    model = load_model(folder, torch.float32, "cpu")
    shown = VideoProcessor.from_pretrained(folder).pixels(pixels)
    with reduce_tokens(model) as run:
        return run.encode(shown[None])[0].tokens


def main() -> int:
    from holitom_repro.results import write_atomic

    path: Path = paths.data("measured", "clip_similarity.json")
    write_atomic(path, json.dumps(measure_clip(), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
