"""The videos of the explorer with their features: the shipped clip, clips of the tiny world, files of one's own; and
what the tiny model answers about those of its world."""

from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage, CannotRun
from holitom.models import adapter_for
from holitom.models.inputs import VideoProcessor, load_model
from holitom.ops.tensors import neighbour_cosine
from holitom.types import Reduction, VideoFeatures
from holitom.video import Frames, load_frames
from holitom_repro import paths
from holitom_repro.method_page import NO_MODEL, colour_features
from holitom_repro.tiny import benchmarks

FRAMES = 32  # that the tiny model was trained on
_TINY = {
    "tiny_actions": "objects that move and change",
    "tiny_ego": "a gliding camera",
    "tiny_long": "a long video with cuts",
    "tiny_general": "scenes of every kind",
}


@dataclass(frozen=True, eq=False)
class Clip:
    """A video that is ready to be reduced. note: what its features are; questions: text and right answer of each, for
    the tiny world's clips, which alone the tiny model knows how to answer."""

    title: str
    frames: Frames
    video: VideoFeatures
    note: str
    questions: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.frames)

    @cached_property
    def similarity(self) -> np.ndarray:
        """[T - 1, N] cosine of every cell with the same cell of the next frame."""
        return neighbour_cosine(self.video.tokens).numpy()


def shipped() -> dict[str, str]:
    """What the page calls every clip that comes with the kit -> its name."""
    tiny = {f"tiny world: {what}, no. {k}": f"{name}/{k:03d}" for name, what in _TINY.items() for k in range(3)}
    return {"three_shots.mp4: three shots of a film": "three_shots"} | tiny


def open_clip(name: str, frames: int = FRAMES) -> Clip:
    """A shipped clip by its name, else the video file at that path; kept until the file is written again.

    Raises BadVideo (missing, broken, smaller than the grid), BadUsage (no name, frames < 1) and CannotRun (no model).
    """
    if not name.strip():
        raise BadUsage("no video has been chosen", fix="give the path of a file")
    if name in shipped().values():
        return _open(name, frames)
    path = Path(name).expanduser()
    return _open(str(path), frames, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=12)
def _open(name: str, frames: int, changed: int = 0) -> Clip:
    benchmark, _, number = name.partition("/")
    if benchmark in _TINY:
        model, processor = tiny_model()
        sampled = benchmarks.rendered_frames(Path(benchmark) / f"{number}.mp4", frames)
        with torch.no_grad():
            encoded = adapter_for(model).encode([processor.pixels(sampled.pixels)], frozenset({"saliency", "keys"}))
        asked = benchmarks.draw(benchmark, int(number))[1] if frames == FRAMES else []
        questions = tuple((question.text, question.answer) for question in asked)
        note = "tiny tier: features of the tiny model"
        return Clip(f"{benchmark} no. {int(number)}", sampled, encoded[0], note, questions)
    path = paths.data("videos", "three_shots.mp4") if name == "three_shots" else Path(name)
    sampled = load_frames(path, frames)
    return Clip(path.name, sampled, colour_features(sampled.pixels), NO_MODEL)


@cache
def tiny_model(folder: Path | None = None) -> tuple[Any, Any]:
    """The shipped model and its processor, loaded once. CannotRun when it is not there."""
    from transformers.utils import logging

    folder = folder or paths.data("tiny", "onevision")
    if not (folder / "config.json").is_file():
        fix = "restore it (git checkout -- data/tiny), train it (./reproduce.sh train-tiny), or choose another clip"
        raise CannotRun(f"the tiny model is missing from {folder}", fix=fix)
    logging.disable_progress_bar()  # shown even for a model that loads in a blink
    return load_model(folder, torch.float32, "cpu"), VideoProcessor.from_pretrained(folder)


@lru_cache(maxsize=512)
@torch.no_grad()
def answer(clip: Clip, question: int, reduction: Reduction) -> tuple[str, float]:
    """The word that the tiny model says first, and how sure it is (softmax over its whole vocabulary)."""
    model, processor = tiny_model()
    with reduce_tokens(model, reduction=reduction) as run:
        run.provide([clip.video])
        logits = model(**processor.prompts([clip.questions[question][0]])).logits[0, -1]
    chance, best = logits.float().softmax(-1).max(-1)
    return str(processor.tokenizer.decode([int(best)], skip_special_tokens=True)).strip(), float(chance)
