"""The four benchmarks of the tiny tier: recipes, questions, and the video files they are asked about. Importing this
makes them known to ``evaluation``.

Each stands for one benchmark of the papers and stresses what that one stresses. A video is drawn from a random stream
of its own (``world.benchmark_rng``; training draws from other streams by construction), so it depends on its number
alone. Files live in ``runs/cache/tiny/<hash of the recipe and of the code that draws it>/<benchmark>/`` and are written
once, each complete or not at all.
"""

import hashlib
import inspect
import json
import os
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from tqdm import tqdm

from holitom.errors import BadUsage, CannotRun
from holitom.video import Frames, sample_index
from holitom_repro import paths
from holitom_repro.code import meaning
from holitom_repro.evaluation.cells import Benchmark, register
from holitom_repro.records import write_atomic
from holitom_repro.tiny import vocabulary, world

VIDEOS = 100
QUESTIONS_PER_VIDEO = 3
SCALE = 4  # the mp4 is this many times larger than the world: a box filter back to its size undoes most coding error
FPS = 8
CRF = 8  # with 4:4:4 colour: a mean error of 0.6 of 255 levels after the box filter
_TRIES = 200


class Recipe(NamedTuple):
    """types: the question types that are asked, each equally often."""

    kind: world.Kind
    frames: int
    types: tuple[str, ...]


BENCHMARKS = {
    # what happens, and in which order
    "tiny_actions": Recipe("actions", 64, ("motion", "change", "order", "where", "shape")),
    # one shot by a gliding camera
    "tiny_ego": Recipe("ego", 64, ("color", "change", "count", "order", "shape", "needle")),
    # an instant in a long video
    "tiny_long": Recipe("long", 128, ("needle", "needle_scene", "scene_of", "scenes", "order")),
    # every question type
    "tiny_general": Recipe("general", 64, vocabulary.QUESTION_TYPES),
}
"""Which benchmark of the papers each stands for: ``papers.TINY_TASKS``."""


def draw(name: str, video: int) -> tuple[world.Clip, list[world.Question]]:
    """One video and its questions. The benchmark's types take turns, so that all come equally often; clips are drawn
    until one admits every type that is this video's turn. BadUsage for an unknown benchmark."""
    if name not in BENCHMARKS:
        raise BadUsage(f"there is no tiny benchmark {name!r}", fix=f"choose one of {', '.join(BENCHMARKS)}")
    kind, frames, types = BENCHMARKS[name]
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
    partial_file = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with av.open(f"file:{partial_file}", "w", format="mp4") as container:
            # one thread: the bytes then do not depend on the machine's number of cores
            options = {"crf": str(CRF), "preset": "ultrafast", "threads": "1"}
            stream = container.add_stream("libx264", rate=FPS, options=options)
            (stream.height, stream.width), stream.pix_fmt = frames.shape[1:3], "yuv444p"
            for picture in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        os.replace(partial_file, path)
    finally:
        partial_file.unlink(missing_ok=True)
    return path


@cache
def recipe_hash() -> str:
    """Changes when anything changes that a question or a pixel depends on; comments and docstrings do not count."""
    parts = (world, vocabulary, sys.modules[__name__])
    return hashlib.sha256("\n".join(meaning(inspect.getsource(part)) for part in parts).encode()).hexdigest()[:12]


def folder(name: str) -> Path:
    """Where the files of one benchmark live."""
    return paths.runs("cache", "tiny", recipe_hash(), name)


def questions(name: str) -> list[dict[str, Any]]:
    """All questions, in the order of the videos: doc_id, video (file name), type, question, answer, choices."""
    path = folder(name) / "questions.jsonl"
    if not path.exists():
        lines = []
        for video in range(VIDEOS):
            for q in draw(name, video)[1]:
                doc = {"doc_id": len(lines), "video": f"{video:03d}.mp4", "type": q.type}
                lines.append(json.dumps(doc | {"question": q.text, "answer": q.answer, "choices": list(q.choices)}))
        write_atomic(path, "\n".join(lines) + "\n")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def video_path(name: str, file: str) -> Path:
    """The mp4 of one video, written now if it is not there yet. CannotRun on a full or read-only disk."""
    path = folder(name) / file
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


def prepare(name: str, limit: int | None = None, progress: bool = True) -> None:
    """Write what is missing of a benchmark: the questions, and the videos of the first ``limit`` of them. Safe to
    interrupt; calling it again resumes. CannotRun: full disk."""
    count = VIDEOS if limit is None else min(VIDEOS, -(-limit // QUESTIONS_PER_VIDEO))
    missing = [file for file in (f"{k:03d}.mp4" for k in range(count)) if not (folder(name) / file).exists()]
    silent = not (progress and missing)
    for file in tqdm(missing, desc=f"writing {name}", unit="video", disable=silent):
        video_path(name, file)
    questions(name)


for _name in BENCHMARKS:
    register(
        Benchmark(
            name=_name,
            tier="tiny",
            questions=VIDEOS * QUESTIONS_PER_VIDEO,
            version=recipe_hash(),
            folder=str(Path(__file__).parent / "tasks"),
            prepare=partial(prepare, _name),
        )
    )
