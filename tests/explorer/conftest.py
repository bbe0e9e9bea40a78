"""A short clip that needs no model, and a video whose fate is known by construction."""

import dataclasses

import numpy as np
import pytest
import torch

from holitom_repro import paths
from holitom_repro.colour import colour_features
from holitom_repro.explorer.clips import Clip, open_clip
from holitom.types import VideoFeatures
from holitom.video import Frames


@pytest.fixture(scope="session")
def clip() -> Clip:
    return open_clip("three_shots", 16)


@pytest.fixture(scope="session")
def drawn() -> Clip:
    """Eight frames of noise with one cut, 4 x 6 cells: the first four frames are equal, and so are the others."""
    draw = np.random.default_rng(0)
    shots = draw.integers(0, 255, (2, 48, 72, 3), dtype=np.uint8)
    pixels = shots.repeat(4, axis=0)
    seconds = np.arange(8) / 2
    video = colour_features(torch.from_numpy(pixels), grid=(4, 6))
    video = dataclasses.replace(video, keys=video.tokens, frame_embed=video.tokens.mean(1))
    return Clip("drawn", "drawn", Frames(pixels, np.arange(8), seconds, 4.0, 8), video, "noise")


@pytest.fixture(scope="session")
def noise() -> VideoFeatures:
    """Random features with every optional field, wide enough for every method."""
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randn(12, 36, 16, generator=draw)
    tokens[1:6] = tokens[0] + 0.05 * torch.randn(5, 36, 16, generator=draw)
    return VideoFeatures(
        tokens,
        (6, 6),
        saliency=torch.rand(12, 36, generator=draw),
        keys=torch.randn(12, 36, 8, generator=draw),
        frame_embed=torch.randn(12, 8, generator=draw),
    )


@pytest.fixture
def tiny_folder():
    folder = paths.data("tiny", "onevision")
    if not (folder / "config.json").is_file():
        pytest.skip("data/tiny/onevision is missing: ./reproduce.sh train-tiny")
    return folder
