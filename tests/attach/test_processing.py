"""Frames and questions into inputs, and models from folders: the tiny layout and that of the published checkpoints."""

import json

import numpy as np
import pytest
import torch
from seam import KeepEvery, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage, BadVideo, CannotRun, UnsupportedModel
from holitom.models.processing import QWEN_PROMPT, VideoProcessor, load_model
from holitom_repro.tiny.vocabulary import IMAGE, VIDEO, VOCABULARY_SIZE, WORD_ID, tokenizer

SIGLIP = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255, "resample": 3}


def frames(count=4, height=60, width=90, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """As data/tiny: word tokenizer with a chat template, preprocessor_config.json."""
    folder = tmp_path_factory.mktemp("tiny")
    text = Qwen2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=VOCABULARY_SIZE, pad_token_id=0,
    )  # fmt: skip
    model = tiny_model(text=text)
    model.config.image_token_id, model.config.video_token_id = WORD_ID[IMAGE], WORD_ID[VIDEO]
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    settings = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 112, "width": 112}, **SIGLIP}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """As llava-hf/llava-onevision-*-hf: byte-level tokenizer, image settings with pinpoints, a video's own settings."""
    folder = tmp_path_factory.mktemp("published")
    alphabet = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|endoftext|>", eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>", "<image>", "<video>"],
    )  # fmt: skip
    words.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    words.save_pretrained(folder)
    text = Qwen2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=300,
    )  # fmt: skip
    model = tiny_model(text=text)
    model.config.video_token_id = words.convert_tokens_to_ids("<video>")
    model.config.vision_config.image_size, model.config.vision_config.patch_size = 384, 14
    model.config.save_pretrained(folder)
    image = {"image_grid_pinpoints": [[384, 384]], "size": {"height": 384, "width": 384}, "image_mean": [0.4] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    (folder / "video_preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 384, "width": 384}, **SIGLIP})
    )
    return folder


def test_tiny_folder(tiny):
    processor, model = VideoProcessor.from_pretrained(tiny), load_model(tiny, "float32", "cpu")
    inputs = processor(frames(), "what color is the circle ?")
    words = processor.tokenizer.decode(inputs["input_ids"][0])
    assert words.replace("<video> " * 65, "V ") == (
        "<|im_start|> user V what color is the circle ? <|im_end|> <|im_start|> assistant"
    )
    assert inputs["pixel_values_videos"].shape == (1, 4, 3, 112, 112)
    stock = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    with reduce_tokens(model):
        assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), stock)
    assert model.dtype == torch.float32 and not model.training
    assert load_model(tiny, device="cpu").dtype == torch.bfloat16


def test_pixels_are_normalised(tiny):
    processor = VideoProcessor.from_pretrained(tiny)
    pixels = processor.pixels(np.full((2, 112, 112, 3), 255, np.uint8))
    torch.testing.assert_close(pixels, torch.ones(2, 3, 112, 112))
    ramp = np.tile(np.arange(112, dtype=np.uint8)[None, None, :, None], (1, 112, 1, 3))
    torch.testing.assert_close(processor.pixels(ramp)[0, 0, 0], (torch.arange(112) / 255 - 0.5) / 0.5)


def test_batches(tiny):
    processor, model = VideoProcessor.from_pretrained(tiny), load_model(tiny, torch.float32, "cpu")
    items = [(frames(), "what color is the circle ?"), (frames(seed=1), "how many shapes ?")]
    inputs = processor.batch(items)
    assert inputs["attention_mask"].sum(1).tolist() == [76, 74]
    assert inputs["input_ids"][1, :2].tolist() == [0, 0]
    assert inputs["pixel_values_videos"].shape == (2, 4, 3, 112, 112)
    ragged = processor.batch([(frames(2), "how many shapes ?"), (frames(3), "how many shapes ?")])
    assert [len(video) for video in ragged["pixel_values_videos"]] == [2, 3]
    short = processor.prompts([question for _, question in items])
    assert short["input_ids"].shape[1] == 12
    with reduce_tokens(model, KeepEvery(), 0.3) as run:
        full = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        run.provide(run.encode(inputs["pixel_values_videos"]))
        same = model.generate(**short, max_new_tokens=3, do_sample=False)
        assert model.generate(**ragged, max_new_tokens=3, do_sample=False).shape[0] == 2
    assert torch.equal(full[:, -3:], same[:, -3:])


def test_published_layout(published):
    """A text-only chat template is recognised as such; the video's preprocessing goes before the image's."""
    processor = VideoProcessor.from_pretrained(published)
    text = processor.text("What happens?")
    assert text == QWEN_PROMPT.format(video="<video>", question="What happens?")
    inputs = processor(frames(2), "What happens?")
    assert inputs["pixel_values_videos"].shape == (1, 2, 3, 384, 384)
    assert int((inputs["input_ids"] == processor.config.video_token_id).sum()) == 2 * 196 + 1
    assert list(processor.image_processor.image_mean) == [0.5] * 3
    decoded = processor.tokenizer.decode(inputs["input_ids"][0])
    assert decoded.replace("<video>" * 393, "<video>") == text
    processor.tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }} {% for c in m.content %}{% if c.type == 'video' %}<video>\n"
        "{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>{% endfor %}<|im_start|>assistant{{ '\n' }}"
    )
    assert processor.text("Why?") == "<|im_start|>user <video>\nWhy?<|im_end|><|im_start|>assistant\n"


def test_row_newlines_are_counted(tiny, tmp_path):
    processor = VideoProcessor.from_pretrained(tiny)
    processor.config.mm_newline_position, processor.config.mm_spatial_pool_mode = "grid", "average"
    ids = processor.prompts(["how many shapes ?"], [4])["input_ids"]
    assert int((ids == WORD_ID[VIDEO]).sum()) == 4 * 4 * 5


def test_bad_frames_and_questions(tiny):
    processor = VideoProcessor.from_pretrained(tiny)
    with pytest.raises(BadVideo, match="no frames"):
        processor(frames(0), "how many shapes ?")
    with pytest.raises(BadUsage, match="uint8"):
        processor(frames().astype(np.float32), "how many shapes ?")
    with pytest.raises(BadUsage, match="leave the video token out"):
        try:
            processor(frames(), "what is <video> ?")
        except BadUsage as error:
            raise BadUsage(error.fix) from error


def test_what_is_no_model(tiny, tmp_path, monkeypatch):
    with pytest.raises(UnsupportedModel, match=r"no config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("not json")
    with pytest.raises(UnsupportedModel, match="does not load"):
        load_model(tmp_path)
    Qwen2Config().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=r"'qwen2' model.*llava_onevision"):
        load_model(tmp_path)
    for name in tiny.iterdir():
        if name.name != "preprocessor_config.json":
            (tmp_path / name.name).write_bytes(name.read_bytes())
    with pytest.raises(UnsupportedModel, match="image preprocessing"):
        VideoProcessor.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CannotRun, match="no tokenizer"):
        VideoProcessor.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes()[:2000])
    with pytest.raises(UnsupportedModel, match="does not load"):
        load_model(tmp_path, device="cpu")
    with pytest.raises(BadUsage, match="dtype 'int8'"):
        load_model(tiny, "int8", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CannotRun, match="no CUDA device"):
        load_model(tiny, device="cuda")


def test_without_a_hub(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CannotRun, match="cannot be fetched from the model hub") as caught:
        load_model("nobody/such-a-model")
    assert not isinstance(caught.value, UnsupportedModel) and "copy the checkpoint" in caught.value.fix
