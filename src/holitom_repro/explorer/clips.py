"""The videos of the explorer with their features: the shipped clip, clips of the tiny world, and files of one's own."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from holitom_repro import paths
from holitom_repro.colour import colour_features
from holitom.errors import BadUsage
from holitom_repro.explorer.answers import TINY_FRAMES, TinyModel, tiny_model
from holitom.types import VideoFeatures
from holitom.video import Frames, load_frames

COLOURS = "colour statistics of the frames, no model"
TOWER = "features of the tiny model"
TINY_VIDEOS = 3  # of each benchmark: enough to see what it is like
_TINY = {
    "tiny_actions": "objects that move and change",
    "tiny_ego": "a gliding camera",
    "tiny_long": "a long video with cuts",
    "tiny_general": "scenes of every kind",
}


@dataclass(frozen=True)
class Asked:
    """A question about a clip of the tiny world: its text and the right answer."""

    text: str
    answer: str


@dataclass(frozen=True, eq=False)
class Clip:
    """A video that is ready to be reduced. note: what its features are; questions: empty for all but the tiny world's
    clips, which alone the tiny model knows how to answer."""

    name: str
    title: str
    frames: Frames
    video: VideoFeatures
    note: str
    questions: tuple[Asked, ...] = ()

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a frame in pixels."""
        return self.frames.pixels.shape[2], self.frames.pixels.shape[1]

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader should know about this file."""
        alone = ("One frame: there is no neighbour to compare with, so nothing merges over time.",)
        return self.frames.notes + (alone if len(self) == 1 else ())


def shipped() -> dict[str, str]:
    """Name -> what the page calls it, of every clip that comes with the kit."""
    found = {"three_shots": "three_shots.mp4: three shots of a film"}
    for name, what in _TINY.items():
        found |= {f"{name}/{video:03d}": f"tiny world: {what}, no. {video}" for video in range(TINY_VIDEOS)}
    return found


def open_clip(name: str, frames: int = 32) -> Clip:
    """A shipped clip by its name, else the video file at that path. What was opened last is kept.

    Raises BadVideo (missing, broken, sound only, smaller than the grid), BadUsage (no name at all, frames < 1) and
    CannotRun (the tiny model is not there).
    """
    if not name.strip():
        raise BadUsage("no video has been chosen", fix="give the path of a file, or upload one")
    if name in shipped():
        return _open(name, frames, 0)
    path = Path(name).expanduser()
    return _open(str(path), frames, os.stat(path).st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=12)
def _open(name: str, frames: int, changed: int) -> Clip:
    """``changed``: a file that was written again is another one."""
    if name.startswith(tuple(f"{benchmark}/" for benchmark in _TINY)):
        return _tiny_clip(name, frames)
    path = paths.data("videos", "three_shots.mp4") if name == "three_shots" else Path(name)
    sampled = load_frames(path, frames)
    video = colour_features(torch.from_numpy(sampled.pixels))
    # Stand-ins, as the tokens are: what a method reads beside them is made of the same colours.
    video = replace(video, keys=video.tokens, frame_embed=video.tokens.mean(dim=1))
    return Clip(name, path.name, sampled, video, COLOURS)


def _tiny_clip(name: str, frames: int) -> Clip:
    from holitom_repro.tiny import benchmarks

    benchmark, number = name.split("/")
    model: TinyModel = tiny_model()
    sampled = benchmarks.rendered_frames(Path(benchmark) / f"{number}.mp4", frames)
    asked = benchmarks.draw(benchmark, int(number))[1] if frames == TINY_FRAMES else []
    questions = tuple(Asked(question.text, question.answer) for question in asked)
    return Clip(name, f"{benchmark} no. {int(number)}", sampled, model.encode(sampled.pixels), TOWER, questions)


@lru_cache(maxsize=256)
def thumbnails(clip: Clip, width: int, height: int) -> UInt8[np.ndarray, "frames height width 3"]:
    """Every frame at this size."""
    return np.stack([_resized(picture, width, height) for picture in clip.frames.pixels])


@lru_cache(maxsize=256)
def enlarged(clip: Clip, frame: int, width: int, height: int) -> UInt8[np.ndarray, "height width 3"]:
    """One frame at this size."""
    return _resized(clip.frames.pixels[frame], width, height)


def _resized(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    way = Image.Resampling.NEAREST if width >= 2 * picture.shape[1] else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(picture).resize((width, height), way, reducing_gap=2.0))
