"""The tiny benchmarks: the same for everybody, balanced, disjoint from training, and unharmed by the mp4."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from holitom.errors import BadUsage, CannotRun
from holitom_repro.tiny import benchmarks, world
from holitom_repro.tiny.benchmarks import BENCHMARKS, QUESTIONS_PER_VIDEO, VIDEOS
from holitom.video import load_frames

NAMES = tuple(BENCHMARKS)


@pytest.mark.parametrize("name", NAMES)
def test_questions_are_complete_balanced_and_not_answered_by_guessing(name: str) -> None:
    docs = benchmarks.questions(name)
    assert [d["doc_id"] for d in docs] == list(range(VIDEOS * QUESTIONS_PER_VIDEO))
    assert len({d["video"] for d in docs}) == VIDEOS
    for video in range(VIDEOS):
        mine = docs[QUESTIONS_PER_VIDEO * video :][:QUESTIONS_PER_VIDEO]
        assert len({d["type"] for d in mine}) == QUESTIONS_PER_VIDEO
        assert {d["video"] for d in mine} == {f"{video:03d}.mp4"}
    counts = Counter(d["type"] for d in docs)
    assert set(counts) == set(BENCHMARKS[name].types) and max(counts.values()) - min(counts.values()) <= 1
    assert all(d["answer"] in d["choices"] for d in docs)
    # the best that a model can do without looking: always the commonest answer to these very words
    commonest = Counter((d["question"], d["answer"]) for d in docs)
    best = {question: max(n for (q, _), n in commonest.items() if q == question) for question, _ in commonest}
    assert sum(best.values()) / len(docs) < 0.5


def test_a_video_is_the_same_in_another_process_and_whatever_was_drawn_before() -> None:
    code = "from holitom_repro.tiny import benchmarks as b; c, q = b.draw('tiny_general', 7); print(float(c.frames.sum()), q)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    benchmarks.draw("tiny_general", 3)
    clip, questions = benchmarks.draw("tiny_general", 7)
    assert other.strip() == f"{float(clip.frames.sum())} {questions}"


def test_no_benchmark_video_is_a_training_clip_or_another_benchmark_video() -> None:
    drawn = {name: [benchmarks.draw(name, v)[0].frames[0].tobytes() for v in range(5)] for name in NAMES}
    everything = [frame for frames in drawn.values() for frame in frames]
    assert len(set(everything)) == len(everything)
    # the streams differ in the first word of their seed, whatever the other words are
    same_words = world.training_rng(2026, 0, 0).random(4).tolist()
    assert same_words != world.benchmark_rng("tiny_general", 0).random(4).tolist()
    assert world._TRAINING != world._BENCHMARK != world._DEVELOPMENT


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_survives_the_mp4(name: str, tmp_path: Path) -> None:
    clip, _ = benchmarks.draw(name, 0)
    path = benchmarks.video_path(name, "000.mp4", tmp_path)
    frames = load_frames(path, 32)
    assert frames.total == BENCHMARKS[name].frames and frames.notes == ()
    size, scale = world.SIZE, benchmarks.SCALE
    back = frames.pixels.reshape(len(frames), size, scale, size, scale, 3).mean((2, 4))
    error = np.abs(back - 255 * clip.frames[frames.index])
    assert error.mean() < 0.8 and error.max() < 6  # of 255; the noise of the world itself has a deviation of 5
    rendered = benchmarks.rendered_frames(path, 32)
    assert np.array_equal(rendered.index, frames.index) and np.allclose(rendered.seconds, frames.seconds)
    assert rendered.total == frames.total and rendered.duration == frames.duration
    assert np.array_equal(rendered.pixels, benchmarks.pixels(clip)[frames.index])


def test_prepare_writes_only_what_is_missing_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    folders = benchmarks.prepare(limit=4, names=["tiny_ego"], root=tmp_path, progress=False)
    folder = folders["tiny_ego"]
    assert sorted(p.name for p in folder.iterdir()) == ["000.mp4", "001.mp4", "questions.jsonl"]
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    (folder / "001.mp4").unlink()
    benchmarks.prepare(limit=4, names=["tiny_ego"], root=tmp_path, progress=False)
    after = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert {p.name for p in after if after[p] != before[p]} == {"001.mp4"}


def test_an_interrupted_video_leaves_no_file_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(source: Path, target: Path) -> None:
        assert source.stat().st_size > 0
        raise KeyboardInterrupt

    monkeypatch.setattr("holitom.video.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        benchmarks.video_path("tiny_ego", "000.mp4", tmp_path)
    assert list(benchmarks.folder("tiny_ego", tmp_path).iterdir()) == []


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(benchmarks, "write_video", full)
    with pytest.raises(CannotRun, match="No space left") as raised:
        benchmarks.video_path("tiny_ego", "000.mp4", tmp_path)
    assert "free" in raised.value.fix


def test_an_unknown_benchmark_names_the_four() -> None:
    with pytest.raises(BadUsage, match="tiny_actions, tiny_ego, tiny_long, tiny_general"):
        benchmarks.prepare(names=["tiny_sports"])
    with pytest.raises(BadUsage):
        benchmarks.prepare(limit=0)


def test_the_recipe_hash_names_the_folder_and_ignores_comments(tmp_path: Path) -> None:
    from holitom_repro.provenance import meaning

    folder = benchmarks.folder("tiny_long", tmp_path)
    assert folder == tmp_path / benchmarks.recipe_hash() / "tiny_long" and len(benchmarks.recipe_hash()) == 12
    assert meaning("x = 1  # one") == meaning('"""Doc."""\nx = 1') != meaning("x = 2")


def test_the_questions_file_is_plain_json_lines() -> None:
    benchmarks.questions("tiny_actions")
    line = (benchmarks.folder("tiny_actions") / "questions.jsonl").read_text().splitlines()[4]
    assert list(json.loads(line)) == ["doc_id", "video", "type", "question", "answer", "choices"]
