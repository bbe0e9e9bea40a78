"""The world: every question has its one answer in the frames, and what is asked about cannot be missed."""

import numpy as np
import pytest

from holitom_repro.tiny import world
from holitom_repro.tiny.vocabulary import CHOICES, COLORS, NEEDLE, SHAPES, WORD_ID, WORDS
from holitom.video import sample_index


def clips(kind, frames, count=30):
    return [world.make_clip(world.development_rng(i), frames, kind) for i in range(count)]


@pytest.mark.parametrize("kind", world.KINDS)
@pytest.mark.parametrize("frames", [4, 9, 32, 128])
def test_questions_are_answerable_words(kind, frames):
    for clip in clips(kind, frames, 12):
        assert clip.frames.shape == (frames, 32, 32, 3) and clip.frames.min() >= 0 and clip.frames.max() <= 1
        assert clip.questions
        for q in clip.questions:
            assert q.answer in q.choices == CHOICES[q.type]
            assert all(w in WORD_ID for w in (*q.text.split(), q.answer))


def test_the_same_stream_draws_the_same_clip():
    first, again = (world.make_clip(world.benchmark_rng("x", 7), 16, "general") for _ in range(2))
    assert np.array_equal(first.frames, again.frames) and first.questions == again.questions


def test_streams_never_meet():
    drawn = {
        "benchmark": world.benchmark_rng("tiny_long", 0).random(4),
        "training": world.training_rng(2026, 1, 0).random(4),
        "development": world.development_rng(2026).random(4),
        "other video": world.benchmark_rng("tiny_long", 1).random(4),
        "other stage": world.training_rng(2026, 2, 0).random(4),
    }
    assert len({tuple(v) for v in drawn.values()}) == len(drawn)


@pytest.mark.parametrize(("kind", "frames"), [("long", 128), ("general", 64), ("ego", 64), ("actions", 64)])
def test_32_samples_miss_nothing_that_is_asked(kind, frames):
    index = sample_index(frames, 32)
    for clip in clips(kind, frames, 40):
        seen = set(np.unique(clip.labels[index]))
        for q in clip.questions:
            if q.type == "needle":
                assert 1 + 6 * len(SHAPES) + COLORS.index(q.answer) in seen
            if q.type == "change":
                shape = SHAPES.index(q.text.split()[4])
                assert 1 + 6 * shape + COLORS.index(q.answer) in seen
            if q.type == "scenes":
                assert len(set(clip.scenes[index])) == WORDS[WORD_ID["one"] :].index(q.answer) + 1


def test_motion_goes_where_the_answer_says():
    checked = 0
    for clip in clips("actions", 32, 40):
        for q in clip.questions:
            if q.type != "motion":
                continue
            shape = SHAPES.index(q.text.split()[4])
            mine = (clip.labels > 6 * shape) & (clip.labels <= 6 * shape + 6)
            whole = [t for t in range(32) if mine[t].sum() >= 20]
            if len(whole) < 2:
                continue
            (y0, x0), (y1, x1) = (np.argwhere(mine[t]).mean(0) for t in (whole[0], whole[-1]))
            moved = {"left": x0 - x1, "right": x1 - x0, "up": y0 - y1, "down": y1 - y0}
            assert max(moved, key=moved.get) == q.answer
            checked += 1
    assert checked > 20


def test_the_needle_is_no_shape():
    assert NEEDLE not in SHAPES
    for clip in clips("long", 32, 10):
        count = next(q for q in clip.questions if q.type == "count")
        shapes = {(v - 1) // 6 for v in np.unique(clip.labels) if v} - {len(SHAPES)}
        assert ("one", "two", "three", "four").index(count.answer) + 1 >= len(shapes)


def test_a_gliding_camera_shows_one_scene():
    for clip in clips("ego", 32, 10):
        assert not clip.meta["cuts"] and {q.type for q in clip.questions} <= {
            *("color", "shape", "change", "order", "count", "needle")
        }
