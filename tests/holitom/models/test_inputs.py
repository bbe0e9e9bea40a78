"""Frames and questions into inputs, and models from folders: the tiny layout and that of the published checkpoints."""

import json
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from hosts import PORTS, QWEN2, onevision, save_tokenizer
from transformers import Qwen2Config

from holitom.errors import BadUsage, CannotRun, UnsupportedModel
from holitom.models import adapter_for, require_transformers
from holitom.models.inputs import VideoProcessor, load_model

TINY = Path(__file__).parents[3] / "data" / "tiny" / "onevision"
IMAGES = {"image_grid_pinpoints": [[384, 384]], "do_pad": True, "image_mean": [0.4] * 3, "image_std": [0.5] * 3}
RELEASE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<video>\nWhat happens?\nA. 1\nB. 2<|im_end|>\n<|im_start|>assistant\n"
)
PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def frames(count=4, height=60, width=90, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """As llava-hf/llava-onevision-*-hf: byte-level tokenizer, settings of an image processor with pinpoints."""
    folder = tmp_path_factory.mktemp("published")
    words, config = save_tokenizer(folder, "<|im_start|>", "<image>", "<video>"), onevision().config
    config.video_token_id = words.convert_tokens_to_ids("<video>")
    config.vision_config.image_size, config.vision_config.patch_size = 384, 14
    config.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGES))
    return folder


@pytest.fixture
def copied(tmp_path):
    return copytree(TINY, tmp_path, dirs_exist_ok=True)


@pytest.mark.parametrize("template", [None, PORTS, QWEN2, "{{ raise_exception('no') }}"])
def test_the_prompt_is_the_releases_whatever_the_tokenizers_template(published, tmp_path, template):
    copytree(published, tmp_path, dirs_exist_ok=True)
    if template is not None:
        (tmp_path / "chat_template.jinja").write_text(template)
    processor = VideoProcessor.from_pretrained(tmp_path)
    assert (processor.tokenizer.chat_template is None) == (template is None)
    question = "What happens?\nA. 1\nB. 2"
    assert processor.text(question) == RELEASE
    assert "{video} {0} {question}<|im_end|>" in processor.text("{video} {0} {question}")  # braces are text
    inputs = processor(frames(2), question)
    assert inputs["pixel_values_videos"].shape == (1, 2, 3, 384, 384)
    assert int((inputs["input_ids"] == processor.config.video_token_id).sum()) == 2 * 196 + 1
    assert processor.tokenizer.decode(inputs["input_ids"][0]).replace("<video>" * 393, "<video>") == RELEASE
    torch.testing.assert_close(processor.pixels(np.full((1, 9, 9, 3), 255, np.uint8)).amax(), torch.tensor(1.2))
    (tmp_path / "preprocessor_config.json").rename(tmp_path / "processor_config.json")  # as transformers 5 writes it
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": IMAGES}))
    assert torch.equal(processor.pixels(frames()), VideoProcessor.from_pretrained(tmp_path).pixels(frames()))


def test_tiny_folder():
    """A toy's tokenizer lacks the release's words: its own template says how it is asked."""
    processor, model = VideoProcessor.from_pretrained(TINY), load_model(TINY, "float32", "cpu")
    inputs = processor(frames(), "what color is the circle ?")
    words = processor.tokenizer.decode(inputs["input_ids"][0])
    assert words.replace("<video> " * (4 * 16 + 1), "V ") == (
        "<|im_start|> user V what color is the circle ? <|im_end|> <|im_start|> assistant"
    )
    assert inputs["pixel_values_videos"].shape == (1, 4, 3, 32, 32)
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 1
    assert model.dtype == torch.float32 and not model.training
    assert load_model(TINY, device="cpu").dtype == load_model(TINY, None, "cpu").dtype == torch.bfloat16
    assert load_model(TINY, device="cpu", attention="eager").config.text_config._attn_implementation == "eager"


@pytest.mark.parametrize("template", [None, PLAIN])
def test_a_tokenizer_with_neither_words_nor_template_is_refused_by_name(copied, template):
    (copied / "chat_template.jinja").unlink()
    if template is not None:
        (copied / "chat_template.jinja").write_text(template)
    with pytest.raises(UnsupportedModel, match=r"can neither spell the conversation qwen_1_5|chat_template is not set"):
        VideoProcessor.from_pretrained(copied)


def test_pixels_are_normalised():
    processor = VideoProcessor.from_pretrained(TINY)
    torch.testing.assert_close(processor.pixels(np.full((2, 32, 32, 3), 255, np.uint8)), torch.ones(2, 3, 32, 32))
    ramp = np.tile(np.arange(32, dtype=np.uint8)[None, None, :, None], (1, 32, 1, 3))
    torch.testing.assert_close(processor.pixels(ramp)[0, 0, 0], (torch.arange(32) / 255 - 0.5) / 0.5)
    large = ramp.repeat(4, axis=1).repeat(4, axis=2)  # its own box filter, and not what it ships for torchvision
    assert torch.equal(processor.pixels(large), processor.pixels(ramp))


def test_batches_are_padded_on_the_left():
    processor = VideoProcessor.from_pretrained(TINY)
    items = [(frames(), "what color is the circle ?"), (frames(seed=1), "how many shapes ?")]
    inputs = processor.batch(items)
    longer, shorter = (processor(*item) for item in items)
    assert inputs["attention_mask"].sum(1).tolist() == [longer["input_ids"].shape[1], shorter["input_ids"].shape[1]]
    assert inputs["input_ids"][1, :2].tolist() == [0, 0] and inputs["attention_mask"][1, :3].tolist() == [0, 0, 1]
    assert torch.equal(inputs["input_ids"][1, 2:], shorter["input_ids"][0])
    assert inputs["pixel_values_videos"].shape == (2, 4, 3, 32, 32)
    ragged = processor.batch([(frames(2), "how many shapes ?"), (frames(3), "how many shapes ?")])
    assert [len(video) for video in ragged["pixel_values_videos"]] == [2, 3]
    assert processor.prompts([question for _, question in items])["input_ids"].shape[1] == 12
    processor.config.mm_newline_position, processor.config.mm_spatial_pool_mode = "grid", "average"
    ids = processor.prompts(["how many shapes ?"], [4])["input_ids"]
    assert int((ids == processor.config.video_token_id).sum()) == 4 * 4 * 5


def test_bad_frames_and_questions():
    processor = VideoProcessor.from_pretrained(TINY)
    for given, question, words in (
        (frames(0), "how many shapes ?", "at least one"),
        (frames().astype(np.float32), "how many shapes ?", "uint8"),
        (frames(), "what is <video> ?", "contains <video>"),
    ):
        with pytest.raises(BadUsage, match=words):
            processor(given, question)


def test_what_does_not_load(copied, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UnsupportedModel, match=r"does not load .*config\.json"):
        load_model(empty)
    Qwen2Config().save_pretrained(empty)
    with pytest.raises(UnsupportedModel, match=r"'qwen2' model.*llava_onevision"):
        load_model(empty)
    (copied / "model.safetensors").write_bytes((copied / "model.safetensors").read_bytes()[:2000])
    with pytest.raises(UnsupportedModel, match="does not load"):
        load_model(copied, device="cpu")
    for file in copied.glob("*processor_config.json"):
        file.unlink()
    with pytest.raises(UnsupportedModel, match=r"does not load .*image processor"):
        VideoProcessor.from_pretrained(copied)
    (copied / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedModel, match=r"does not load .*tokenizer"):
        VideoProcessor.from_pretrained(copied)
    with pytest.raises(UnsupportedModel, match=r"does not load .*dtype"):
        load_model(TINY, "int8", "cpu")
    with pytest.raises(CannotRun, match=r"does not load with what is installed .*FlashAttention3"):
        load_model(TINY, device="cpu", attention="flash_attention_3")


@pytest.mark.parametrize(
    "parts",
    [
        "auto",
        {"": "disk"},
        {"model.vision_tower.embeddings": "cpu", "model.vision_tower.encoder.layers.0": "cpu",
         "model.vision_tower.encoder.layers.1": "disk", "model.vision_tower.encoder.layers.2": "disk",
         "model.vision_tower.post_layernorm": "cpu", "model.multi_modal_projector": "cpu",
         "model.image_newline": "cpu", "model.language_model": "cpu", "lm_head": "cpu"},
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:The following device_map keys")
@torch.no_grad()
def test_device_maps(parts):
    whole, clip = load_model(TINY, "float32", "cpu"), torch.randn(1, 3, 3, 32, 32)
    (expected,) = adapter_for(whole).encode(clip, frozenset({"saliency", "keys"}))
    model = load_model(TINY, "float32", device_map=parts)
    assert not model.training and model.dtype == torch.float32
    (video,) = adapter_for(model).encode(clip, frozenset({"saliency", "keys"}))
    for name in ("tokens", "saliency", "keys"):
        torch.testing.assert_close(getattr(video, name), getattr(expected, name), atol=1e-6, rtol=0)
    assert torch.equal(adapter_for(model).newline, adapter_for(whole).newline)


@pytest.mark.filterwarnings("ignore:The following device_map keys")
def test_a_newline_that_nothing_brings_back_is_refused():
    """The stock model cannot run either."""
    names = ("model.vision_tower", "model.multi_modal_projector", "model.language_model", "lm_head")
    model = load_model(TINY, device_map=dict.fromkeys(names, "cpu") | {"model.image_newline": "disk"})
    with pytest.raises(UnsupportedModel, match="image_newline is on no device"):
        _ = adapter_for(model).newline


def test_without_a_hub(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CannotRun, match="cannot be fetched from the model hub") as caught:
        load_model("nobody/such-a-model")
    assert not isinstance(caught.value, UnsupportedModel) and "copy the checkpoint" in caught.value.fix


def test_versions_of_transformers():
    for fits in (None, "5.17.0", "6.0.0.dev0"):
        require_transformers(fits)
    with pytest.raises(CannotRun, match=r"transformers 5\.16\.1 is installed, and this needs 5\.17 or newer") as caught:
        require_transformers("5.16.1")
    assert "docs/llava.md" in caught.value.fix
