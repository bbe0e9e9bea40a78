"""Towers whose weights lie elsewhere, are quantised, wrapped or compiled: features as from the plain model."""

from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from hosts import HOSTS, VIDEO, onevision, pixels

from holitom.errors import BadUsage, CannotRun, UnsupportedModel
from holitom.models import adapter_for, inputs
from holitom.models.inputs import load_model

TINY = Path(__file__).parents[3] / "data" / "tiny" / "onevision"
BOTH = frozenset({"saliency", "keys"})
CPU = torch.device("cpu")


def tower_of(model):
    core = adapter_for(model).core
    return core.visual if hasattr(core, "visual") else core.vision_tower


def equal(videos, others):
    for video, other in zip(videos, others, strict=True):
        for name in ("tokens", "saliency", "keys"):
            torch.testing.assert_close(getattr(video, name), getattr(other, name), atol=1e-6, rtol=0)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("where", ["tower in memory", "tower on disk", "core in memory", "all in memory"])
@torch.no_grad()
def test_offloaded_weights(host, where, tmp_path):
    model, given = HOSTS[host](), pixels(host)
    expected, newline = adapter_for(model).encode(**given, requires=BOTH), adapter_for(model).newline
    words = adapter_for(model).embed(torch.tensor([[5, VIDEO, 7]]), {})
    newline = None if newline is None else newline.clone()
    if where == "tower on disk":
        disk_offload(tower_of(model), tmp_path, execution_device=CPU)
    else:
        parts = {"tower": tower_of(model), "core": adapter_for(model).core, "all": model}
        cpu_offload(parts[where.split()[0]], execution_device=CPU)
    assert next(tower_of(model).parameters()).device.type == "meta"
    adapter = adapter_for(model)
    equal(adapter.encode(**given, requires=BOTH), expected)
    assert torch.equal(adapter.embed(torch.tensor([[5, VIDEO, 7]]), {}), words)
    assert newline is None or torch.equal(adapter.newline, newline)
    assert next(tower_of(model).parameters()).device.type == "meta"  # and are put away again


@pytest.mark.parametrize(
    "parts",
    [
        "auto",
        {"": "cpu"},
        {"": "disk"},
        {"model.vision_tower": "disk", "model.multi_modal_projector": "disk", "model.image_newline": "cpu",
         "model.language_model": "cpu", "lm_head": "cpu"},
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
    expected = adapter_for(whole).encode(clip, BOTH)
    model = load_model(TINY, "float32", device_map=parts)
    assert not model.training and model.dtype == torch.float32
    equal(adapter_for(model).encode(clip, BOTH), expected)
    assert torch.equal(adapter_for(model).newline, adapter_for(whole).newline)


@pytest.mark.filterwarnings("ignore:The following device_map keys")
def test_what_a_device_map_cannot_be(monkeypatch):
    with pytest.raises(BadUsage, match="a device and a device_map"):
        load_model(TINY, device="cpu", device_map="auto")
    names = ("model.vision_tower", "model.multi_modal_projector", "model.language_model", "lm_head")
    model = load_model(TINY, device_map=dict.fromkeys(names, "cpu") | {"model.image_newline": "disk"})
    with pytest.raises(UnsupportedModel, match="image_newline is on no device"):  # the stock model cannot run either
        _ = adapter_for(model).newline
    monkeypatch.setattr(inputs, "find_spec", lambda name: None)
    with pytest.raises(CannotRun, match="needs accelerate") as caught:
        load_model(TINY, device_map="auto")
    assert "pip install accelerate" in caught.value.fix


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_a_quantised_tower_gives_its_own_saliency(host):
    model, given = HOSTS[host](), pixels(host)
    expected = adapter_for(model).encode(**given, requires=BOTH)
    torch.ao.quantization.quantize_dynamic(tower_of(model), {torch.nn.Linear}, inplace=True)
    for video, other in zip(adapter_for(model).encode(**given, requires=BOTH), expected, strict=True):
        torch.testing.assert_close(video.saliency, other.saliency, atol=1e-3, rtol=0)
        assert not torch.equal(video.saliency, other.saliency)
        torch.testing.assert_close(video.saliency.sum(1), other.saliency.sum(1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("host", HOSTS)
@torch.no_grad()
def test_a_compiled_tower(host):
    """Compiled code calls no hooks: it runs uncompiled while they are needed."""
    model, given = HOSTS[host](), pixels(host)
    expected, core = adapter_for(model).encode(**given, requires=BOTH), adapter_for(model).core
    name = "visual" if hasattr(core, "visual") else "vision_tower"
    setattr(core, name, torch.compile(getattr(core, name), backend="eager"))
    if host == "llava_onevision":
        adapter_for(model).encode(**given)  # compiles
    equal(adapter_for(model).encode(**given, requires=BOTH), expected)


def test_an_attention_that_nobody_knows_is_refused_by_name():
    model = onevision()
    for layer in model.model.vision_tower.encoder.layers:
        layer.self_attn = torch.nn.Identity()
    with pytest.raises(UnsupportedModel, match="SiglipVisionModel has no SiglipAttention"):
        adapter_for(model).encode(**pixels(), requires=BOTH)
