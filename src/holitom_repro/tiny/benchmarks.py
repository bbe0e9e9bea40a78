"""The four benchmarks of the tiny tier: recipes, questions, and the video files they are asked about.

Each stands for one benchmark of the papers and stresses what that one stresses. A video is drawn from a random stream
of its own (``world.benchmark_rng``; training draws from other streams by construction), so it depends on its number
alone. Files live in ``runs/cache/tiny/<hash of the recipe and of the code that draws it>/<benchmark>/`` and are written
once, each complete or not at all.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from holitom.errors import BadUsage, CannotRun
from holitom.video import Frames, sample_index, write_video
from holitom_repro import paths
from holitom_repro.records import meaning, write_atomic
from holitom_repro.tiny import vocabulary, world

VIDEOS = 100
QUESTIONS_PER_VIDEO = 3
SCALE = 4  # the mp4 is this many times larger than the world: a box filter back to its size undoes most coding error
FPS = 8
CRF = 8  # with 4:4:4 colour: a mean error of 0.6 of 255 levels after the box filter
_TRIES = 200


@dataclass(frozen=True)
class Benchmark:
    """One recipe. types: the question types it asks, each equally often; paper: the benchmark that it stands for."""

    name: str
    kind: world.Kind
    frames: int
    types: tuple[str, ...]
    paper: str
    stresses: str


_RECIPES = (
    Benchmark(
        name="tiny_actions",
        kind="actions",
        frames=64,
        types=("motion", "change", "order", "where", "shape"),
        paper="mvbench",
        stresses="what happens, and in which order",
    ),
    Benchmark(
        name="tiny_ego",
        kind="ego",
        frames=64,
        types=("color", "change", "count", "order", "shape", "needle"),
        paper="egoschema",
        stresses="one shot by a gliding camera",
    ),
    Benchmark(
        name="tiny_long",
        kind="long",
        frames=128,
        types=("needle", "needle_scene", "scene_of", "scenes", "order"),
        paper="longvideobench_val_v",
        stresses="an instant in a long video",
    ),
    Benchmark(
        name="tiny_general",
        kind="general",
        frames=64,
        types=vocabulary.QUESTION_TYPES,
        paper="videomme",
        stresses="every question type",
    ),
)
BENCHMARKS: dict[str, Benchmark] = {recipe.name: recipe for recipe in _RECIPES}


def benchmark(name: str) -> Benchmark:
    """The recipe called ``name``; BadUsage names the four."""
    if name not in BENCHMARKS:
        raise BadUsage(f"there is no tiny benchmark {name!r}", fix=f"choose one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def asked_types(name: str, video: int) -> tuple[str, ...]:
    """The distinct question types of one video: the benchmark's types in rotation, so that all come equally often."""
    types = benchmark(name).types
    return tuple(types[(QUESTIONS_PER_VIDEO * video + k) % len(types)] for k in range(QUESTIONS_PER_VIDEO))


def draw(name: str, video: int) -> tuple[world.Clip, list[world.Question]]:
    """One video and its questions: clips are drawn until one admits every type that is this video's turn."""
    recipe = benchmark(name)
    rng = world.benchmark_rng(name, video)
    wanted = asked_types(name, video)
    for _ in range(_TRIES):
        clip = world.make_clip(rng, recipe.frames, recipe.kind)
        by_type = {t: [q for q in clip.questions if q.type == t] for t in wanted}
        if all(by_type.values()):
            return clip, [group[int(rng.integers(len(group)))] for group in by_type.values()]
    raise RuntimeError(f"{name}, video {video}: no clip in {_TRIES} admits questions of the types {', '.join(wanted)}")


def pixels(clip: world.Clip) -> np.ndarray:
    """The frames of a clip as they are written: uint8 [T, 4 * 32, 4 * 32, 3], each pixel of the world a block."""
    levels = np.round(clip.frames * 255).astype(np.uint8)
    return levels.repeat(SCALE, axis=1).repeat(SCALE, axis=2)


@cache
def recipe_hash() -> str:
    """Changes when anything changes that a question or a pixel depends on; comments and docstrings do not count."""
    parts = [json.dumps([dataclasses.asdict(b) for b in BENCHMARKS.values()])]
    parts += [meaning(inspect.getsource(part)) for part in (world, vocabulary, sys.modules[__name__], write_video)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def folder(name: str, root: Path | None = None) -> Path:
    """Where the files of one benchmark live; ``root`` replaces runs/cache/tiny."""
    return (root or paths.runs("cache", "tiny")) / recipe_hash() / benchmark(name).name


def questions(name: str, root: Path | None = None) -> list[dict[str, Any]]:
    """All questions, in the order of the videos: doc_id, video (file name), type, question, answer, choices."""
    path = folder(name, root) / "questions.jsonl"
    if not path.exists():
        lines = []
        for video in range(VIDEOS):
            for k, q in enumerate(draw(name, video)[1]):
                doc = {"doc_id": QUESTIONS_PER_VIDEO * video + k, "video": f"{video:03d}.mp4", "type": q.type}
                doc |= {"question": q.text, "answer": q.answer, "choices": list(q.choices)}
                lines.append(json.dumps(doc))
        write_atomic(path, "\n".join(lines) + "\n")
    return [json.loads(line) for line in path.read_text().splitlines()]


def video_path(name: str, file: str, root: Path | None = None) -> Path:
    """The mp4 of one video, written now if it is not there yet."""
    path = folder(name, root) / file
    if not path.exists():
        with _disk_errors(path):
            write_video(path, pixels(draw(name, int(path.stem))[0]), fps=FPS, crf=CRF)
    return path


def rendered_frames(path: str | Path, frames: int) -> Frames:
    """What ``load_frames`` would give for one of these files if coding were lossless; the file need not be there."""
    name, video = Path(path).parts[-2], int(Path(path).stem)
    drawn = pixels(draw(name, video)[0])
    index = sample_index(len(drawn), frames)
    return Frames(drawn[index], index, index / FPS, len(drawn) / FPS, len(drawn), decoder="none (rendered)")


def prepare(
    limit: int | None = None,
    names: Iterable[str] = tuple(BENCHMARKS),
    *,
    root: Path | None = None,
    progress: bool = True,
) -> dict[str, Path]:
    """Write what is missing of the benchmarks: the questions, and the videos of the first ``limit`` questions of each.

    Returns the folder of each benchmark. May be interrupted at any time: a second call continues.
    Raises BadUsage (unknown benchmark, ``limit`` < 1) and CannotRun (full disk).
    """
    if limit is not None and limit < 1:
        raise BadUsage(f"limit={limit} is not a number of questions", fix="give 1 or more, or leave it out for all")
    names = [benchmark(name).name for name in names]
    videos = VIDEOS if limit is None else min(VIDEOS, -(-limit // QUESTIONS_PER_VIDEO))
    missing = [
        (n, f"{v:03d}.mp4") for n in names for v in range(videos) if not (folder(n, root) / f"{v:03d}.mp4").exists()
    ]
    for name, file in tqdm(
        missing, desc="writing the tiny benchmarks", unit="video", disable=not (progress and missing)
    ):
        video_path(name, file, root)
    for name in names:
        questions(name, root)
    return {name: folder(name, root) for name in names}


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into an error that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        fix = "free about 200 MB, then run the same command again: what is written is kept"
        raise CannotRun(f"{path} cannot be written ({os.strerror(error.errno)})", fix=fix) from error
