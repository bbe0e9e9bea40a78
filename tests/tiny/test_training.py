"""Training: packed questions give the plain forward's logits, and a stopped run continues as if it had not stopped."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from holitom_repro import paths
from holitom.errors import CannotRun
from holitom.layout import arrange
from holitom_repro.tiny import card, card_text, instruct, pretrain, train
from holitom_repro.tiny.export import export
from holitom_repro.tiny.inspection import rank_auc
from holitom_repro.tiny.model import CELLS, GRID, build, project, tower_states
from holitom_repro.tiny.packing import use_block_attention
from holitom_repro.tiny.recipes import RECIPES
from holitom_repro.tiny.vocabulary import PROMPT_HEAD, VIDEO, WORD_ID, tokenizer
from holitom_repro.tiny.world import training_rng
from holitom.types import TokenSet


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    return build().eval()


@torch.no_grad()
def test_packed_questions_equal_the_plain_forward(model):
    batch = instruct.draw_lessons(training_rng(9, 2, 0), 2, 6, 4)
    tokens = project(model, tower_states(model, batch.pixels.flatten(0, 1))[0]).reshape(2, 6 * CELLS, -1)
    use_block_attention(model.model.language_model)
    video = instruct.video_rows(tokens, None, model.model.image_newline, rows=False)
    packed = model.lm_head(instruct.at_position(instruct.answer_states(model, video, batch.words), batch.answer_at))
    model.model.language_model.set_attn_implementation("sdpa")
    for clip in range(2):
        for question in range(4):
            words = batch.words[clip, question, : batch.answer_at[clip, question] + 1].tolist()
            ids = [WORD_ID[w] for w in PROMPT_HEAD] + [WORD_ID[VIDEO]] * (6 * CELLS + 1) + words
            plain = model(input_ids=torch.tensor([ids]), pixel_values_videos=batch.pixels[clip][None]).logits[0, -1]
            torch.testing.assert_close(packed[clip, question], plain, atol=1e-5, rtol=0)


def test_row_newlines_are_the_layout_of_the_package():
    tokens, newline = torch.randn(1, 5 * CELLS, 8), torch.randn(8)
    kept = instruct.random_kept(np.random.default_rng(0), 1, 5 * CELLS, 23, shared=True)
    rows = instruct.video_rows(tokens, kept, newline, rows=True)[0]
    chosen = TokenSet(tokens[0, kept[0]], kept[0] // CELLS, kept[0] % CELLS)
    assert torch.equal(rows, arrange(chosen, (GRID, GRID), newline, "row").rows)


def test_the_chat_template_is_the_prompt_of_training():
    words = tokenizer()
    content = [{"type": "video"}, {"type": "text", "text": "how many shapes ?"}]
    ids = words.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)["input_ids"]
    asked = ["how", "many", "shapes", "?", "<|im_end|>", "<|im_start|>", "assistant"]
    assert ids == [WORD_ID[w] for w in (*PROMPT_HEAD, VIDEO, *asked)]


def test_dense_labels_find_the_objects():
    frames = pretrain.draw_frames(np.random.default_rng(1), 64)
    named = (frames.captions[..., 0] > 0).sum(1)
    shown = frames.looks.any(1).sum(-1)
    assert (shown <= named).all() and shown.sum() > 0.8 * named.sum()


def test_a_stopped_run_continues_bit_for_bit(tmp_path, monkeypatch):
    """One run of four steps against two of two, with a full disk between: same weights, same curve of steps."""
    monkeypatch.setattr(train, "FRAMES_PER_STEP", 8)

    def run(steps, folder, length=4):
        torch.manual_seed(0)
        model, heads = build(), pretrain.VisionTraining("mean")
        stage = train.vision_stage(RECIPES["onevision"], length, model, heads)
        stop = stage.loss

        def loss(batch, step):
            if step >= steps:
                raise KeyboardInterrupt
            return stop(batch, step)

        stage.loss = loss
        parts = torch.nn.ModuleList([model.model.vision_tower, model.model.multi_modal_projector, heads])
        optimiser = torch.optim.AdamW(parts.parameters())
        folder.mkdir(exist_ok=True)
        train.run_stage(stage, model, heads, optimiser, folder, "cpu", 0)
        return model.state_dict()

    monkeypatch.setattr("holitom_repro.tiny.loop.SAVE_SECONDS", 0.0)
    whole = run(4, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(2, tmp_path / "stopped")
    if Path("/dev/full").exists():
        part = tmp_path / "stopped" / "vision.part"
        part.symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space left"):
            run(4, tmp_path / "stopped")
        part.unlink()
    assert torch.load(tmp_path / "stopped" / "vision.pt", weights_only=False)["step"] == 2
    with pytest.raises(CannotRun, match=r"of a training of 4 steps, not of 8.*another --work"):
        run(8, tmp_path / "stopped", length=8)  # its rates and clips were those of another training
    continued = run(4, tmp_path / "stopped")
    assert all(torch.equal(whole[k], continued[k]) for k in whole)


@pytest.mark.parametrize(
    ("words", "out", "work"),
    [
        ([], "data/tiny", "runs/train"),
        (["--steps", "0.01"], "runs/train/steps-0.01/models", "runs/train/steps-0.01"),
        (["--steps", "0.01", "--work", "mine"], "mine/models", "mine"),
    ],
)
def test_a_trial_touches_no_shipped_model(tmp_path, monkeypatch, words, out, work):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "data", lambda *parts: Path("data", *parts))
    monkeypatch.setattr(paths, "runs", lambda *parts: Path("runs", *parts))
    for name, value in train.MALLOC.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    went = []
    monkeypatch.setattr(train, "train", lambda name, out, work, *_: went.append((str(out), str(work))))
    monkeypatch.setattr(card, "measure", lambda folder: went.append(str(folder)))
    monkeypatch.setattr(card_text, "write_card", lambda folder: went.append(str(folder)))
    assert train.main(["--only", "onevision", "--device", "cpu", *words]) == 0
    assert went == [(out, work), f"{out}/onevision", out]


@pytest.mark.parametrize("state", [{"step": 100, "steps": 250}, {"step": 2, "steps": 2}, {"step": 2}, None])
def test_a_model_continues_no_unfinished_one(tmp_path, state):
    (tmp_path / "onevision-seed1").mkdir()
    if state:
        torch.save(state, tmp_path / "onevision-seed1" / "shapes.pt")
    with pytest.raises(CannotRun, match=r"not trained to step 250 yet.*[Tt]rain onevision-seed1"):
        train.train("video", tmp_path / "out", tmp_path, "cpu", 0, 1.0)


def test_export_reads_back(model, tmp_path):
    from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

    export(model, tmp_path)
    back = LlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    for name, weight in back.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name].to(torch.bfloat16).float()), name
    assert AutoTokenizer.from_pretrained(tmp_path)("what color is the star ?").input_ids == [
        WORD_ID[w] for w in ("what", "color", "is", "the", "star", "?")
    ]
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"] == {"height": 32, "width": 32}


def test_rank_auc():
    score = torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert rank_auc(score, torch.tensor([False, False, True, True])) == 1
    assert rank_auc(score, torch.tensor([True, True, False, False])) == 0
    assert rank_auc(score, torch.tensor([True, False, False, True])) == 0.5
