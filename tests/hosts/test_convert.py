"""A tiny checkpoint written in the original repository's names: converted, it is the same model."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from holitom.attach import reduce_tokens
from holitom_repro.convert import convert, main
from holitom.errors import BadUsage, CannotRun, UnsupportedModel
from holitom_repro.forwarded import run
from holitom.models.processing import VideoProcessor, load_model

WIDTH, PATCHES, WORDS = 16, 27, 260
TOWER = "model.vision_tower.vision_tower.vision_model."


def weights():
    """The names and shapes of LlavaQwenForCausalLM's state dict, at tiny sizes (32 for the decoder)."""
    shapes = {
        f"{TOWER}embeddings.patch_embedding.weight": (WIDTH, 3, 14, 14),
        f"{TOWER}embeddings.patch_embedding.bias": (WIDTH,),
        f"{TOWER}embeddings.position_embedding.weight": (PATCHES**2, WIDTH),
        f"{TOWER}post_layernorm.weight": (WIDTH,),
        f"{TOWER}post_layernorm.bias": (WIDTH,),
        "model.mm_projector.0.weight": (32, WIDTH), "model.mm_projector.0.bias": (32,),
        "model.mm_projector.2.weight": (32, 32), "model.mm_projector.2.bias": (32,),
        "model.image_newline": (32,), "model.embed_tokens.weight": (WORDS, 32), "model.norm.weight": (32,),
        "lm_head.weight": (WORDS, 32),
    }  # fmt: skip
    for i in range(2):
        layer = f"{TOWER}encoder.layers.{i}."
        for part, shape in {"layer_norm1": (WIDTH,), "layer_norm2": (WIDTH,)}.items():
            shapes |= {f"{layer}{part}.weight": shape, f"{layer}{part}.bias": shape}
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{layer}self_attn.{part}.weight": (WIDTH, WIDTH), f"{layer}self_attn.{part}.bias": (WIDTH,)}
        shapes |= {f"{layer}mlp.fc1.weight": (24, WIDTH), f"{layer}mlp.fc1.bias": (24,)}
        shapes |= {f"{layer}mlp.fc2.weight": (WIDTH, 24), f"{layer}mlp.fc2.bias": (WIDTH,)}
    for i in range(3):
        layer = f"model.layers.{i}."
        for part, rows in {"q_proj": 32, "k_proj": 16, "v_proj": 16}.items():
            shapes |= {f"{layer}self_attn.{part}.weight": (rows, 32), f"{layer}self_attn.{part}.bias": (rows,)}
        shapes |= {f"{layer}self_attn.o_proj.weight": (32, 32), f"{layer}mlp.down_proj.weight": (32, 48)}
        shapes |= {f"{layer}mlp.{part}.weight": (48, 32) for part in ("gate_proj", "up_proj")}
        shapes |= {f"{layer}{part}.weight": (32,) for part in ("input_layernorm", "post_attention_layernorm")}
    generator = torch.Generator().manual_seed(0)
    return {name: (torch.randn(shape, generator=generator) * 0.15).bfloat16() for name, shape in shapes.items()}


CONFIG = {
    "architectures": ["LlavaQwenForCausalLM"], "model_type": "llava", "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": WORDS,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_scaling": None,
    "hidden_act": "silu", "eos_token_id": 2, "use_sliding_window": False, "tie_word_embeddings": False,
    "mm_vision_tower": "google/siglip-so400m-patch14-384", "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": WIDTH,
    "mm_patch_merge_type": "spatial_unpad", "mm_spatial_pool_mode": "bilinear", "mm_spatial_pool_stride": 2,
    "mm_newline_position": "grid", "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
    "add_faster_video": False, "image_aspect_ratio": "anyres_max_9", "image_grid_pinpoints": [[384, 384], [768, 768]],
}  # fmt: skip


def tokenizer(folder):
    """Byte-level words; no room for two more tokens in a vocabulary of 260 rows."""
    alphabet = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    names = ["<|im_start|>", "<fill>"]
    words = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|endoftext|>", eos_token="<|im_end|>", extra_special_tokens=names
    )
    assert len(words) == WORDS
    words.save_pretrained(folder)


def write(folder, tensors=None, shards=2, **changes):
    tensors = weights() if tensors is None else tensors
    folder.mkdir(exist_ok=True)
    tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    names = sorted(tensors)
    where = {}
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[i::shards]
        save_file({n: tensors[n] for n in mine}, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(mine, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write(tmp_path_factory.mktemp("original"))


def test_load_model_points_to_convert(original):
    for load in (load_model, VideoProcessor.from_pretrained):
        with pytest.raises(UnsupportedModel, match=r"original LLaVA-NeXT.*LlavaQwenForCausalLM") as caught:
            load(original)
        assert f"python -m holitom_repro convert --from {original}" in caught.value.fix


@torch.no_grad()
def test_the_converted_model_is_the_same(original, tmp_path, capsys):
    target = tmp_path / "converted"
    assert run("convert", ["--from", str(original), "--to", str(target), "--pool", "average"]) == 0
    assert "pooling average, newlines: one after every row" in capsys.readouterr().out
    assert not target.with_name("converted.partial").exists()
    model, processor = load_model(target, device="cpu"), VideoProcessor.from_pretrained(target)
    assert model.dtype == torch.bfloat16
    old, new = weights(), model.state_dict()
    projector = torch.nn.functional.linear
    assert torch.equal(new["model.image_newline"], old["model.image_newline"])
    # by role, not by the converter's own table: every old value is found once, and nothing else is there
    known = sorted(
        float(v.float().sum()) for n, v in old.items() if n not in ("model.embed_tokens.weight", "lm_head.weight")
    )
    found = sorted(
        float(v.float().sum()) for n, v in new.items() if not n.endswith(("embed_tokens.weight", "lm_head.weight"))
    )
    assert known == found
    for name, part in {
        "lm_head.weight": "lm_head.weight",
        "model.embed_tokens.weight": "model.language_model.embed_tokens.weight",
    }.items():
        assert torch.equal(new[part][:WORDS], old[name])
        torch.testing.assert_close(new[part][WORDS:], old[name].float().mean(0).bfloat16().expand(60, -1))
    config = model.config
    assert config.text_config.rope_parameters["rope_theta"] == 1e6 and config.vision_config.num_attention_heads == 16
    assert (config.vision_config.image_size, config.vision_config.num_hidden_layers) == (384, 2)
    assert (config.image_token_id, config.video_token_id) == (WORDS, WORDS + 1)
    model = model.float()
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    inputs = processor(frames, "What happens?")
    assert int((inputs["input_ids"] == WORDS + 1).sum()) == 2 * 13 * 14
    with reduce_tokens(model) as block:
        (video,) = block.encode(inputs["pixel_values_videos"])
        logits = model(**inputs).logits
    patches = model.model.vision_tower(inputs["pixel_values_videos"][0], output_hidden_states=True).hidden_states[-1]
    hidden = projector(patches, old["model.mm_projector.0.weight"].float(), old["model.mm_projector.0.bias"].float())
    hidden = torch.nn.functional.gelu(hidden)
    hidden = projector(hidden, old["model.mm_projector.2.weight"].float(), old["model.mm_projector.2.bias"].float())
    means = hidden.unflatten(1, (27, 27))[:, :26, :26].unflatten(2, (13, 2)).unflatten(1, (13, 2)).mean((2, 4))
    torch.testing.assert_close(video.tokens, means.flatten(1, 2), atol=1e-5, rtol=0)
    assert torch.isfinite(logits).all()


def test_a_tied_head_and_a_whole_tower(tmp_path):
    """No lm_head in the file: tied. With the tower's pooling head there is a layer too many, which is left out."""
    tensors = weights()
    tensors.pop("lm_head.weight")
    tensors[f"{TOWER}head.probe"] = torch.zeros(1, 1, WIDTH)
    told = convert(write(tmp_path / "a", tensors, shards=1), tmp_path / "b")
    assert told["pooling"] == "bilinear" and told["placeholders"] == {"image": WORDS, "video": WORDS + 1}
    model = load_model(tmp_path / "b", device="cpu")
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert model.config.vision_config.num_hidden_layers == 1
    stored = load_file(tmp_path / "b" / "model-00001-of-00001.safetensors")
    assert not any("head" in name or (".layers.1." in name and "vision" in name) for name in stored)


def changed(**values):
    return lambda folder: write(folder, **values)


def without(name):
    return lambda folder: write(folder, {n: w for n, w in weights().items() if n != name})


def extra(folder):
    return write(folder, weights() | {"model.vision_resampler.x": torch.zeros(1)})


def truncated(folder):
    write(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    return folder


def damaged(change):
    def make(folder):
        shard = write(folder) / "model-00002-of-00002.safetensors"
        shard.write_bytes(change(shard.read_bytes()))
        return folder

    return make


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (changed(architectures=["LlavaLlamaForCausalLM"]), UnsupportedModel, "class LlavaLlamaForCausalLM"),
        (changed(mm_projector_type="linear"), UnsupportedModel, "mm_projector_type is 'linear'"),
        (changed(add_faster_video=True), UnsupportedModel, "add_faster_video"),
        (changed(mm_spatial_pool_mode="max"), UnsupportedModel, "mm_spatial_pool_mode 'max'"),
        (changed(mm_vision_tower="someone/tower"), UnsupportedModel, "attention heads of the vision tower"),
        (without("model.image_newline"), UnsupportedModel, r"1 missing \(model.image_newline"),
        (extra, UnsupportedModel, "vision_resampler.x has no place"),
        (truncated, CannotRun, "lacks model-00002-of-00002.safetensors"),
        (without("model.embed_tokens.weight"), UnsupportedModel, r"lacks model\.embed_tokens\.weight"),
        (without(f"{TOWER}embeddings.position_embedding.weight"), UnsupportedModel, r"lacks .*position_embedding"),
        (damaged(lambda whole: whole[:-10]), CannotRun, r"model-00002-of-00002\.safetensors holds no whole .*lfs pull"),
        (damaged(lambda whole: b"version https://git-lfs.github.com/spec/v1\n"), CannotRun, "00002.*git lfs pull"),
        (damaged(lambda whole: b""), CannotRun, r"00002.*holds no whole"),
    ],
)
def test_what_cannot_be_converted(tmp_path, make, error, match):
    with pytest.raises(error, match=match):
        convert(make(tmp_path / "a"), tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_folders_that_are_something_else(original, tmp_path):
    with pytest.raises(BadUsage, match="exists"):
        convert(original, tmp_path)
    with pytest.raises(BadUsage, match=r"no config\.json"):
        convert(tmp_path, tmp_path / "b")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(BadUsage, match="'qwen2' model, not a checkpoint of the original"):
        convert(tmp_path, tmp_path / "b")


@pytest.mark.parametrize(("text", "match"), [("{", "is not JSON"), ("[]", "holds no JSON object")])
def test_a_damaged_config_is_named(tmp_path, text, match):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CannotRun, match=rf"config\.json {match}"):
        convert(tmp_path, tmp_path / "b")


@pytest.mark.parametrize("text", ["{}", '{"weight_map": [1]}'])
def test_a_damaged_index_is_named(original, tmp_path, text):
    copy = tmp_path / "a"
    shutil.copytree(original, copy)
    (copy / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CannotRun, match="has no weight_map"):
        convert(copy, tmp_path / "b")


def test_what_is_missing_on_the_command_line_is_named():
    with pytest.raises(BadUsage, match="--from, --to"):
        main([])
