"""A tiny checkpoint written in the original repository's names: converted, it is the same model."""

import json
import shutil
from functools import cache
from unittest.mock import patch

import numpy as np
import pytest
import torch
import transformers as hf
from hosts import save_tokenizer
from safetensors.torch import load_file, save_file

from holitom.errors import BadUsage, CannotRun, UnsupportedModel
from holitom.models import adapter_for
from holitom.models.inputs import VideoProcessor, load_model
from holitom_repro import convert as converting

WIDTH, WORDS = 16, 260
TOWER = "model.vision_tower.vision_tower.vision_model."
SMALL = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2}
"""Of the tower, in place of SigLIP's."""


NAMES = {
    "model.vision_tower.": TOWER, "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "model.multi_modal_projector.linear_2.": "model.mm_projector.2.", "model.language_model.": "model.",
}  # fmt: skip
"""Transformers' beginnings of names -> those of LlavaQwenForCausalLM's state dict; all others are the same."""


@cache
def reference():
    """The model that is to come out."""
    torch.manual_seed(0)
    vision = hf.SiglipVisionConfig(
        **SMALL, num_attention_heads=16, image_size=384, patch_size=14, vision_use_head=False
    )
    text = hf.Qwen2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=WORDS + 60, rope_theta=1e6, max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip
    config = hf.LlavaOnevisionConfig(
        vision_config=vision, text_config=text, image_token_index=WORDS, video_token_index=WORDS + 1,
        vision_feature_layer=-1, vision_feature_select_strategy="full", tie_word_embeddings=False,
    )  # fmt: skip
    config.mm_newline_position, config.mm_spatial_pool_mode = "grid", "average"
    model = hf.LlavaOnevisionForConditionalGeneration(config).eval()
    for weight in model.parameters():
        weight.data = (torch.randn(weight.shape) * 0.15).bfloat16().float()
    return model


@cache
def weights():
    """The reference as the original repository would have saved it."""
    found = {}
    for name, weight in reference().state_dict().items():
        start = next((old for old in NAMES if name.startswith(old)), "")
        found[NAMES.get(start, "") + name.removeprefix(start).removeprefix("vision_model.")] = weight.bfloat16()
    return found


CONFIG = {
    "architectures": ["LlavaQwenForCausalLM"], "model_type": "llava", "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": WORDS + 60,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_scaling": None,
    "hidden_act": "silu", "eos_token_id": 2, "use_sliding_window": False, "tie_word_embeddings": False,
    "mm_vision_tower": "google/siglip-so400m-patch14-384", "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": WIDTH,
    "mm_patch_merge_type": "spatial_unpad", "mm_spatial_pool_mode": "bilinear", "mm_spatial_pool_stride": 2,
    "mm_newline_position": "grid", "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
    "add_faster_video": False, "image_aspect_ratio": "anyres_max_9", "image_grid_pinpoints": [[384, 384], [768, 768]],
}  # fmt: skip


def tokenizer(folder):
    """In a vocabulary with some free rows, as Qwen2's."""
    assert len(save_tokenizer(folder, "<|im_start|>", "<fill>")) == WORDS


def write(folder, tensors=None, shards=2, **changes):
    tensors = weights() if tensors is None else tensors
    folder.mkdir(exist_ok=True)
    tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes), encoding="utf-8")
    names = sorted(tensors)
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({n: tensors[n] for n in names[i::shards]}, folder / name, metadata={"format": "pt"})
    return folder


def convert(source, target, *more):
    """The command, for a small tower."""
    with patch.dict(converting.SIGLIP, SMALL):
        return converting.main(["--from", str(source), "--to", str(target), *more])


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write(tmp_path_factory.mktemp("original"))


def test_load_model_points_to_convert(original):
    with pytest.raises(UnsupportedModel, match=f"original LLaVA-NeXT.*reproduce.sh convert --from {original}"):
        load_model(original)


@torch.no_grad()
def test_the_converted_model_is_the_same(original, tmp_path, capsys):
    target = tmp_path / "converted"
    assert convert(original, target, "--pool", "average") == 0
    assert "pooling average, newlines: one after every row" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["converted"]
    model, processor = load_model(target, device="cpu"), VideoProcessor.from_pretrained(target)
    assert model.dtype == torch.bfloat16
    expected = reference()
    assert model.state_dict().keys() == expected.state_dict().keys()
    for name, weight in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name].float(), weight), name
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    inputs = processor(frames, "What happens?")
    assert int((inputs["input_ids"] == WORDS + 1).sum()) == 2 * 13 * 14
    video, other = (adapter_for(m.float()).encode(inputs["pixel_values_videos"])[0] for m in (model, expected))
    assert video.grid == (13, 13) and torch.equal(video.tokens, other.tokens)
    ids = torch.arange(20)[None]
    torch.testing.assert_close(model(input_ids=ids).logits, expected(input_ids=ids).logits)


def test_a_tied_head_and_a_whole_tower(tmp_path, capsys):
    """No lm_head in the file: tied. A whole tower has a pooling head and a layer more, which are left out."""
    tensors = dict(weights())
    tensors.pop("lm_head.weight")
    tensors[f"{TOWER}head.probe"] = torch.zeros(1, 1, WIDTH)
    last = [name for name in tensors if "vision_model.encoder.layers.1." in name]
    tensors |= {name.replace("layers.1.", "layers.2."): tensors[name].clone() for name in last}
    assert convert(write(tmp_path / "a", tensors, shards=1), tmp_path / "b") == 0
    assert "pooling bilinear" in capsys.readouterr().out
    model = load_model(tmp_path / "b", device="cpu")
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert (model.config.image_token_id, model.config.video_token_id) == (WORDS, WORDS + 1)
    stored = load_file(tmp_path / "b" / "model.safetensors")
    assert not any("head" in name or (".layers.2." in name and "vision" in name) for name in stored)


CONFIGS = [
    ({"architectures": ["LlavaLlamaForCausalLM"]}, "class LlavaLlamaForCausalLM"),
    ({"mm_projector_type": "linear"}, "mm_projector_type is 'linear'"),
    ({"add_faster_video": True}, "add_faster_video"),
    ({"mm_spatial_pool_mode": "max"}, "mm_spatial_pool_mode 'max'"),
    ({"vocab_size": WORDS}, "no free rows"),
    ({"mm_vision_tower": "someone/tower"}, "mm_vision_tower is 'tower'.*Only 'siglip-so400m"),
]


@pytest.mark.parametrize(("changes", "match"), CONFIGS)
def test_another_kind_of_model_is_not_converted(tmp_path, changes, match):
    with pytest.raises(UnsupportedModel, match=match):
        convert(write(tmp_path / "a", **changes), tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_weights_that_do_not_fill_the_class_are_not_converted(tmp_path):
    whole, words, position = weights(), "model.embed_tokens.weight", f"{TOWER}embeddings.position_embedding.weight"
    others = [(whole | {"model.vision_resampler.x": torch.zeros(1)}, r"1 weights .*\(model.vision_resampler.x\)")]
    others.append((whole | {words: torch.zeros(8, 32)}, r"1 weights .*another shape .*embed_tokens"))
    for absent in ("model.image_newline", words, position):
        others.append(({name: one for name, one in whole.items() if name != absent}, absent.rpartition("model.")[2]))
    for tensors, match in others:
        with pytest.raises(UnsupportedModel, match=match):
            convert(write(tmp_path / "a", tensors), tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


SHARD = "model-00002-of-00002.safetensors"
DAMAGE = [
    ("config.json", lambda whole: b"{", r"config\.json is not JSON"),
    (SHARD, lambda whole: whole[:-10], f"{SHARD} holds no whole .*lfs pull"),
    (SHARD, lambda whole: b"version https://git-lfs.github.com/spec/v1\n", f"{SHARD}.*git lfs pull"),
    (SHARD, None, "weights are missing.*whole checkpoint"),
]


@pytest.mark.parametrize(("name", "damage", "match"), DAMAGE)
def test_a_damaged_or_missing_file_is_told(original, tmp_path, name, damage, match):
    file = shutil.copytree(original, tmp_path / "a") / name
    whole = file.read_bytes()
    file.unlink()
    if damage:
        file.write_bytes(damage(whole))
    with pytest.raises(CannotRun, match=match):
        convert(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_is_told(original, tmp_path, monkeypatch):
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(converting, "save_torch_state_dict", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(CannotRun, match=r"b was not made.*No space left.*Free"):
        convert(original, tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_folders_that_are_something_else(original, tmp_path):
    with pytest.raises(BadUsage, match="exists"):
        convert(original, tmp_path)
    with pytest.raises(BadUsage, match=r"no config\.json"):
        convert(tmp_path, tmp_path / "b")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}), encoding="utf-8")
    with pytest.raises(BadUsage, match="'qwen2' model, not a checkpoint of the original"):
        convert(tmp_path, tmp_path / "b")
