"""The tiny world, its benchmarks, the training of its models, and the shipped models and their card."""

import hashlib
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from holitom.errors import CannotRun
from holitom.video import load_frames, sample_index
from holitom_repro import paths
from holitom_repro.evaluation.cells import BENCHMARKS as REGISTERED
from holitom_repro.tiny import benchmarks, card, learning, train, world
from holitom_repro.tiny.model import CELLS, GRID, build, export, project, tower_states
from holitom_repro.tiny.vocabulary import CHOICES, COLORS, NUMBERS, PROMPT_HEAD, SHAPES, VIDEO, WORD_ID, tokenizer

NAMES = tuple(benchmarks.BENCHMARKS)
FOLDERS = sorted(path.parent.name for path in paths.data("tiny").glob("*/training.json"))
MODELS = [name for name in FOLDERS if train.RECIPES[name].lessons]


def clips(kind, frames, count):
    return [world.make_clip(world.development_rng(i), frames, kind) for i in range(count)]


# The world
def test_streams_are_repeatable_and_never_meet():
    streams = [(world.benchmark_rng, *words) for words in (("tiny_long", 0), ("tiny_long", 1), ("x", 0))]
    streams += [(world.training_rng, 2026, 1, 0), (world.training_rng, 2026, 2, 0), (world.development_rng, 2026)]
    drawn = [tuple(stream(*words).random(4)) for stream, *words in streams]
    assert drawn == [tuple(stream(*words).random(4)) for stream, *words in streams]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize(("kind", "frames"), [("long", 128), ("general", 64), ("ego", 64), ("actions", 64)])
def test_32_samples_miss_nothing_that_is_asked(kind, frames):
    index = sample_index(frames, 32)
    for clip in clips(kind, frames, 25):
        seen = set(np.unique(clip.labels[index]))
        shown = {(value - 1) // 6 for value in np.unique(clip.labels) if value} - {len(SHAPES)}
        for q in clip.questions:
            if q.type == "needle":
                assert 1 + 6 * len(SHAPES) + COLORS.index(q.answer) in seen
            if q.type == "change":
                assert 1 + 6 * SHAPES.index(q.text.split()[4]) + COLORS.index(q.answer) in seen
            if q.type == "scenes":
                assert len(set(clip.scenes[index])) == NUMBERS.index(q.answer) + 1
            if q.type == "count":  # the needle is no shape; a shape may lie under another one
                assert NUMBERS.index(q.answer) + 1 >= len(shown)


# The benchmarks
@pytest.mark.parametrize("name", NAMES)
def test_questions_are_complete_balanced_and_not_answered_by_guessing(name):
    docs = benchmarks.questions(name)
    assert [doc["doc_id"] for doc in docs] == list(range(300)) and REGISTERED[name].questions == 300
    assert [doc["video"] for doc in docs] == [f"{k // 3:03d}.mp4" for k in range(300)]
    counts = Counter(doc["type"] for doc in docs)
    assert set(counts) == set(benchmarks.BENCHMARKS[name].types) and max(counts.values()) - min(counts.values()) <= 1
    assert all(doc["answer"] in doc["choices"] for doc in docs)
    # the best that a model can do without looking: always the commonest answer to these very words
    commonest = Counter((doc["question"], doc["answer"]) for doc in docs)
    best = {question: max(n for (q, _), n in commonest.items() if q == question) for question, _ in commonest}
    assert sum(best.values()) / len(docs) < 0.5


RECORDED = {
    "tiny_actions": (165948320, "835c5d434344f1e9"),
    "tiny_ego": (132678496, "b65c173a4a72fb51"),
    "tiny_long": (361793136, "c25667c480ce63bb"),
    "tiny_general": (121129936, "a736e87b81f6b65c"),
}


def test_videos_and_questions_are_those_of_the_recorded_cells():
    """A sum of the pixels of one video, as in the first edition, and a hash of all questions and answers."""
    for name, recorded in RECORDED.items():
        asked = "".join(f"{json.dumps(doc)}\n" for doc in benchmarks.questions(name))
        pixels = benchmarks.pixels(benchmarks.draw(name, 7)[0])
        assert (int(pixels.sum()), hashlib.sha256(asked.encode()).hexdigest()[:16]) == recorded


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_survives_the_mp4(name):
    clip, _ = benchmarks.draw(name, 0)
    path = benchmarks.video_path(name, "000.mp4")
    frames, rendered = load_frames(path, 32), benchmarks.rendered_frames(path, 32)
    assert frames.total == benchmarks.BENCHMARKS[name].frames and frames.notes == ()
    back = frames.pixels.reshape(len(frames), 32, benchmarks.SCALE, 32, benchmarks.SCALE, 3).mean((2, 4))
    error = np.abs(back - 255 * clip.frames[frames.index])
    assert error.mean() < 0.8 and error.max() < 6  # of 255; the noise of the world itself has a deviation of 5
    assert np.array_equal(rendered.index, frames.index) and np.allclose(rendered.seconds, frames.seconds)
    assert rendered.total == frames.total and rendered.duration == frames.duration
    assert np.array_equal(rendered.pixels, benchmarks.pixels(clip)[frames.index])


def test_prepare_writes_only_what_is_missing_and_leaves_nothing_half_written(runs, monkeypatch):
    monkeypatch.setattr(paths, "runs", runs.joinpath)

    def ask():
        benchmarks.prepare("tiny_ego", limit=4, progress=False)

    ask()
    folder = runs / "cache" / "tiny" / benchmarks.recipe_hash() / "tiny_ego"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert sorted(before) == ["000.mp4", "001.mp4", "questions.jsonl"]
    (folder / "001.mp4").unlink()
    with monkeypatch.context() as patch, pytest.raises(CannotRun, match=r"001.mp4.*No space left.*Free"):
        patch.setattr("holitom.video.os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
        ask()
    assert sorted(path.name for path in folder.iterdir()) == ["000.mp4", "questions.jsonl"]
    ask()
    assert {path.name for path in folder.iterdir() if path.stat().st_mtime_ns != before[path.name]} == {"001.mp4"}


# Training
@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    return build().eval()


@torch.no_grad()
def test_packed_questions_equal_the_plain_forward(model):
    batch = learning.draw_clips(world.training_rng(9, 2, 0), 2, 6, 4)
    tokens = project(model, tower_states(model, batch.pixels.flatten(0, 1))[0]).reshape(2, 6 * CELLS, -1)
    video = learning.video_rows(tokens, None, model.model.image_newline, rows=False)
    packed = model.lm_head(learning.at(learning.question_states(model, video, batch.words), batch.answer_at))
    for clip in range(2):
        for question in range(4):
            words = batch.words[clip, question, : batch.answer_at[clip, question] + 1].tolist()
            ids = [WORD_ID[w] for w in PROMPT_HEAD] + [WORD_ID[VIDEO]] * (6 * CELLS + 1) + words
            plain = model(input_ids=torch.tensor([ids]), pixel_values_videos=batch.pixels[clip][None]).logits[0, -1]
            torch.testing.assert_close(packed[clip, question], plain, atol=1e-5, rtol=0)


def test_a_newline_follows_every_row_that_is_not_empty():
    tokens, newline = torch.randn(1, 5 * CELLS, 8), torch.randn(8)
    kept = learning.random_kept(np.random.default_rng(0), 1, 5 * CELLS, 23, shared=True)
    expected = []
    for row in range(5 * GRID):
        mine = [tokens[0, k] for k in kept[0].tolist() if k // GRID == row]
        expected += [*mine, newline] if mine else []
    assert torch.equal(learning.video_rows(tokens, kept, newline, rows=True)[0], torch.stack(expected))


def test_the_chat_template_is_the_prompt_of_training():
    content = [{"type": "video"}, {"type": "text", "text": "how many shapes ?"}]
    ids = tokenizer().apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    asked = ["how", "many", "shapes", "?", "<|im_end|>", "<|im_start|>", "assistant"]
    assert ids["input_ids"] == [WORD_ID[w] for w in (*PROMPT_HEAD, VIDEO, *asked)]


def test_a_stopped_run_continues_bit_for_bit(tmp_path, monkeypatch):
    """A run of four steps against one that is stopped after two and meets a full disk."""
    monkeypatch.setattr(train, "FRAMES_PER_STEP", 8)
    monkeypatch.setattr(train, "SAVE_SECONDS", 0.0)
    monkeypatch.setitem(train.RECIPES, "control_tower", replace(train.RECIPES["control_tower"], vision_steps=4))
    draw = learning.draw_frames

    def run(folder, until=9):
        drawn = iter(range(until))
        monkeypatch.setattr(learning, "draw_frames", lambda *a: draw(*a) if next(drawn, None) is not None else stop())
        train.train("control_tower", tmp_path / folder / "out", tmp_path / folder, "cpu")
        return (tmp_path / folder / "out/control_tower/model.safetensors").read_bytes()

    def stop():
        raise KeyboardInterrupt

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("stopped", until=2)
    saved = tmp_path / "stopped/control_tower/vision-4.pt"
    if Path("/dev/full").exists():
        saved.with_suffix(".part").symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space left"):
            run("stopped")
        saved.with_suffix(".part").unlink()
    assert torch.load(saved, weights_only=False)["step"] == 2
    assert run("stopped") == whole


@pytest.mark.parametrize("state", [{"step": 100}, None])
def test_a_model_continues_no_unfinished_one(tmp_path, state):
    (tmp_path / "onevision-seed1").mkdir()
    if state:
        torch.save(state, tmp_path / "onevision-seed1" / "shapes-250.pt")
    with pytest.raises(CannotRun, match=r"not trained to step 250 yet.*[Tt]rain onevision-seed1"):
        train.train("video", tmp_path / "out", tmp_path, "cpu")


def test_every_model_is_trained_and_then_measured(tmp_path, monkeypatch):
    went = []
    monkeypatch.setattr(train, "train", lambda name, out, *_: went.append(out / name))
    monkeypatch.setattr(card, "measure", went.append)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    assert train.main(["--out", str(tmp_path)]) == 0
    assert went == [tmp_path / name for name in train.RECIPES] * 2


def test_export_reads_back(model, tmp_path):
    from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

    export(model, tmp_path)
    back = LlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    for name, weight in back.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name].to(torch.bfloat16).float()), name
    words = ("what", "color", "is", "the", "star", "?")
    assert AutoTokenizer.from_pretrained(tmp_path)(" ".join(words)).input_ids == [WORD_ID[w] for w in words]
    for name in ("preprocessor_config.json", "processor_config.json"):
        assert (tmp_path / name).read_bytes() == paths.data("tiny", "onevision", name).read_bytes()


# What is shipped
def evaluation(name):
    return json.loads(paths.data("tiny", "evaluation", f"{name}.json").read_text(encoding="utf-8"))


def test_the_models_of_the_tables_are_there_in_twelve_megabytes():
    assert {"onevision", "video", "control_tower"} <= set(FOLDERS) <= set(train.RECIPES)
    assert sum(file.stat().st_size for file in paths.data("tiny").rglob("*") if file.is_file()) <= 12e6


@pytest.mark.parametrize("name", FOLDERS)
def test_the_whole_recipe_was_run(name):
    log = json.loads(paths.data("tiny", name, "training.json").read_text(encoding="utf-8"))
    recipe = train.RECIPES[name]
    stages = {"vision": recipe.vision_steps} | {lessons.name: lessons.steps for lessons in recipe.lessons}
    assert log["recipe"]["seed"] == recipe.seed
    done = {stage: curve[-1]["step"] for stage, curve in log["curves"].items()}
    assert done == {stage: steps for stage, steps in stages.items() if steps}


@pytest.mark.parametrize("name", MODELS)
def test_the_card_holds_what_is_required(name):
    accuracy = evaluation(name)["accuracy"]
    assert accuracy["all"] >= 0.95
    assert min(accuracy[kind] for kind in CHOICES) >= 0.85, accuracy


def test_the_card_says_what_was_measured():
    lines = paths.data("tiny", "README.md").read_text(encoding="utf-8").splitlines()
    rows = {row[0]: row[1:] for row in ([part.strip() for part in line.strip("|").split("|")] for line in lines)}
    order = [name.strip("`") for name in rows["question"][1:]]
    assert sorted(order) == MODELS
    for kind in (*CHOICES, "all"):
        assert rows[kind][1:] == [f"{100 * evaluation(name)['accuracy'][kind]:.1f}" for name in order]
    for keep in card.KEPT:
        found = [f"{100 * evaluation(name)['random_kept'][str(keep)]:.1f}" for name in order]
        assert rows[f"all, random {keep:.0%} of the tokens"][1:] == found
    for name in FOLDERS:
        assert rows[f"`{name}`"] == [f"{value:.2f}" for value in evaluation(name)["attention"].values()]


def test_the_weights_are_those_of_the_card():
    again = learning.accuracy(card.load(paths.data("tiny", "onevision")), world.development_rng(77), 8, 32, rows=False)
    assert again["all"] >= evaluation("onevision")["accuracy"]["all"] - 0.04


@pytest.mark.parametrize(("name", "low", "high"), [("onevision", 0.85, 1), ("control_tower", 0, 0.15)])
def test_the_control_tower_looks_at_the_background(name, low, high):
    assert low < evaluation(name)["attention"]["auc"] < high
    assert low < card.attention(card.load(paths.data("tiny", name)), frames=100)["auc"] < high
