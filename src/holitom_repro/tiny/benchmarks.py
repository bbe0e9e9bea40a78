"""The four benchmarks of the tiny tier: recipes, questions, and the video files they are asked about.

Each stands for one benchmark of the papers and stresses what that one stresses. A video is drawn from a random stream
of its own (``world.benchmark_rng``; training draws from other streams by construction), so it depends on its number
alone. Files live in ``runs/cache/tiny/<hash of the recipe and of the code that draws it>/<benchmark>/`` and are written
once, each complete or not at all.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from tqdm import tqdm

from holitom.errors import BadUsage, CannotRun
from holitom.video import Frames, sample_index
from holitom_repro import paths
from holitom_repro.code import meaning
from holitom_repro.records import write_atomic
from holitom_repro.tiny import vocabulary, world

VIDEOS = 100
QUESTIONS_PER_VIDEO = 3
SCALE = 4  # the mp4 is this many times larger than the world: a box filter back to its size undoes most coding error
FPS = 8
CRF = 8  # with 4:4:4 colour: a mean error of 0.6 of 255 levels after the box filter
_TRIES = 200


class Recipe(NamedTuple):
    """types: the question types that are asked, each equally often; paper: the benchmark that it stands for."""

    kind: world.Kind
    frames: int
    types: tuple[str, ...]
    paper: str


BENCHMARKS = {
    # what happens, and in which order
    "tiny_actions": Recipe("actions", 64, ("motion", "change", "order", "where", "shape"), "mvbench"),
    # one shot by a gliding camera
    "tiny_ego": Recipe("ego", 64, ("color", "change", "count", "order", "shape", "needle"), "egoschema"),
    # an instant in a long video
    "tiny_long": Recipe("long", 128, ("needle", "needle_scene", "scene_of", "scenes", "order"), "longvideobench_val_v"),
    # every question type
    "tiny_general": Recipe("general", 64, vocabulary.QUESTION_TYPES, "videomme"),
}


def recipe(name: str) -> Recipe:
    """The recipe called ``name``; BadUsage names the four."""
    if name not in BENCHMARKS:
        raise BadUsage(f"there is no tiny benchmark {name!r}", fix=f"choose one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def draw(name: str, video: int) -> tuple[world.Clip, list[world.Question]]:
    """One video and its questions. The benchmark's types take turns, so that all come equally often; clips are drawn
    until one admits every type that is this video's turn."""
    kind, frames, types, _ = recipe(name)
    rng = world.benchmark_rng(name, video)
    wanted = [types[(QUESTIONS_PER_VIDEO * video + k) % len(types)] for k in range(QUESTIONS_PER_VIDEO)]
    for _ in range(_TRIES):
        clip = world.make_clip(rng, frames, kind)
        by_type = [[question for question in clip.questions if question.type == type_] for type_ in wanted]
        if all(by_type):
            return clip, [group[int(rng.integers(len(group)))] for group in by_type]
    raise RuntimeError(f"{name}, video {video}: no clip in {_TRIES} admits questions of the types {', '.join(wanted)}")


def pixels(clip: world.Clip) -> np.ndarray:
    """The frames of a clip as they are written: uint8 [T, 4 * 32, 4 * 32, 3], each pixel of the world a block."""
    return np.round(clip.frames * 255).astype(np.uint8).repeat(SCALE, axis=1).repeat(SCALE, axis=2)


def write_video(path: Path, frames: np.ndarray) -> Path:
    """Write RGB frames [T, H, W, 3] as an H.264 mp4 that keeps the colour of every pixel; the file appears under its
    name only when it is complete. Raises OSError when it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with av.open(f"file:{partial}", "w", format="mp4") as container:
            # one thread: the bytes then do not depend on the machine's number of cores
            options = {"crf": str(CRF), "preset": "ultrafast", "threads": "1"}
            stream = container.add_stream("libx264", rate=FPS, options=options)
            (stream.height, stream.width), stream.pix_fmt = frames.shape[1:3], "yuv444p"
            for picture in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


@cache
def recipe_hash() -> str:
    """Changes when anything changes that a question or a pixel depends on; comments and docstrings do not count."""
    parts = (world, vocabulary, sys.modules[__name__])
    return hashlib.sha256("\n".join(meaning(inspect.getsource(part)) for part in parts).encode()).hexdigest()[:12]


def folder(name: str, root: Path | None = None) -> Path:
    """Where the files of one benchmark live; ``root`` replaces runs/cache/tiny."""
    recipe(name)
    return (root or paths.runs("cache", "tiny")) / recipe_hash() / name


def questions(name: str, root: Path | None = None) -> list[dict[str, Any]]:
    """All questions, in the order of the videos: doc_id, video (file name), type, question, answer, choices."""
    path = folder(name, root) / "questions.jsonl"
    if not path.exists():
        lines = []
        for video in range(VIDEOS):
            for q in draw(name, video)[1]:
                doc = {"doc_id": len(lines), "video": f"{video:03d}.mp4", "type": q.type}
                lines.append(json.dumps(doc | {"question": q.text, "answer": q.answer, "choices": list(q.choices)}))
        write_atomic(path, "\n".join(lines) + "\n")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def video_path(name: str, file: str, root: Path | None = None) -> Path:
    """The mp4 of one video, written now if it is not there yet. CannotRun on a full or read-only disk."""
    path = folder(name, root) / file
    if not path.exists():
        try:
            write_video(path, pixels(draw(name, int(path.stem))[0]))
        except OSError as error:
            fix = "free about 200 MB, then run the same command again: what is written is kept"
            raise CannotRun(f"{path} cannot be written ({error.strerror})", fix=fix) from error
    return path


def rendered_frames(path: str | Path, frames: int) -> Frames:
    """What ``load_frames`` would give for one of these files if coding were lossless; the file need not be there."""
    name, video = Path(path).parts[-2], int(Path(path).stem)
    drawn = pixels(draw(name, video)[0])
    index = sample_index(len(drawn), frames)
    return Frames(drawn[index], index, index / FPS, len(drawn) / FPS, len(drawn), decoder="none (rendered)")


def prepare(
    limit: int | None = None, names: Iterable[str] = BENCHMARKS, *, root: Path | None = None, progress: bool = True
) -> dict[str, Path]:
    """Write what is missing of the benchmarks: the questions, and the videos of the first ``limit`` questions of each.
    Returns the folder of each. Safe to interrupt; calling it again resumes. BadUsage: unknown benchmark, ``limit`` < 1;
    CannotRun: full disk."""
    if limit is not None and limit < 1:
        raise BadUsage(f"limit={limit} is not a number of questions", fix="give 1 or more, or leave it out for all")
    folders = {name: folder(name, root) for name in names}
    videos = VIDEOS if limit is None else min(VIDEOS, -(-limit // QUESTIONS_PER_VIDEO))
    files = [(name, f"{video:03d}.mp4") for name in folders for video in range(videos)]
    missing = [(name, file) for name, file in files if not (folders[name] / file).exists()]
    silent = not (progress and missing)
    for name, file in tqdm(missing, desc="writing the tiny benchmarks", unit="video", disable=silent):
        video_path(name, file, root)
    for name in folders:
        questions(name, root)
    return folders
