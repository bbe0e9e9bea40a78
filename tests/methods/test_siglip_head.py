"""SigLIP's pooling head, read from a checkpoint of random weights in the original's format."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SiglipConfig, SiglipModel

from holitom.errors import CannotRun, UnsupportedModel
from holitom.models import siglip_head
from holitom.models.siglip_head import HUB, HUB_WIDTH, HeadRecord, find_pooling_head, load_pooling_head

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "image_size": 12,
    "patch_size": 3,
}
TEXT = {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 500}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(vision_config=VISION, text_config=TEXT)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # fresh norms and biases are ones and zeros, which hide mistakes
    return model


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("siglip")
    model.save_pretrained(path)
    return path


def states_of(model):
    """The tower's states before its last norm, and what its own head makes of them."""
    pixels = torch.randn(5, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = model.vision_model(pixels, output_hidden_states=True)
    return out.hidden_states[-1], out.pooler_output


def test_it_is_the_models_own_head(model, folder):
    states, expected = states_of(model)
    embed, received = load_pooling_head(folder, width=32)(states)
    torch.testing.assert_close(embed, expected, atol=1e-5, rtol=1e-5)
    assert received.shape == (5, 16)
    torch.testing.assert_close(received.sum(1), torch.ones(5))
    assert not embed.requires_grad
    half, _ = load_pooling_head(folder)(states.bfloat16())
    assert half.dtype == torch.float32


def test_the_query_attends_patch_by_patch(model, folder):
    """The weights belong to the patches in their order: written out for one head after the other."""
    states, _ = states_of(model)
    head = load_pooling_head(folder)
    x = head.post_layernorm(states)
    wq, wk, _ = head.attention.in_proj_weight.detach().chunk(3)
    bq, bk, _ = head.attention.in_proj_bias.detach().chunk(3)
    q, k = head.probe.detach()[0, 0] @ wq.T + bq, x.detach() @ wk.T + bk
    maps = [(k[..., 8 * h : 8 * h + 8] @ q[8 * h : 8 * h + 8] / 8**0.5).softmax(-1) for h in range(4)]
    torch.testing.assert_close(head(states)[1], torch.stack(maps).mean(0), atol=1e-5, rtol=1e-4)


def test_only_the_heads_bytes_are_read(folder, monkeypatch):
    read = []

    class Counting:
        def __init__(self, file):
            self.file = file

        def read(self, size):
            read.append(size)
            return self.file.read(size)

        def seek(self, place):
            self.file.seek(place)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    monkeypatch.setattr(siglip_head, "_open", lambda source, name: Counting((source / name).open("rb")))
    head = load_pooling_head(folder)
    numbers = sum(p.numel() for p in head.parameters())
    header = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    assert sum(read) == 8 + header + 4 * numbers
    assert sum(read) - header < (folder / "model.safetensors").stat().st_size / 3


def test_half_precision_in_several_files(model, folder, tmp_path):
    states, expected = states_of(model)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for file, some in parts.items():
        save_file({name: tensors[name].bfloat16() for name in some}, tmp_path / file)
    index = {"weight_map": {name: file for file, some in parts.items() for name in some}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.testing.assert_close(load_pooling_head(tmp_path)(states)[0], expected, atol=0.1, rtol=0.1)


def test_offline_a_substitute_stands_in_and_says_so(monkeypatch):
    def unreachable(*_):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(siglip_head, "hf_hub_download", unreachable)
    head, record = find_pooling_head(HUB_WIDTH)
    assert head is None and (record.used, record.source) == ("substitute", HUB)
    assert "no route to the hub" in record.reason and "head='substitute'" in record.reason
    with pytest.raises(CannotRun, match="no route to the hub"):
        load_pooling_head()


def test_the_hub_is_not_asked_for_a_tower_of_another_width(monkeypatch):
    monkeypatch.setattr(siglip_head, "hf_hub_download", lambda *_: pytest.fail("the hub was asked"))
    head, record = find_pooling_head(64)
    assert head is None and record.used == "substitute" and "not 64" in record.reason


def test_what_has_no_fitting_head_is_refused(folder, tmp_path):
    head, record = find_pooling_head(32, folder)
    assert head is not None and record == HeadRecord("siglip", str(folder))
    with pytest.raises(UnsupportedModel, match="pools 32 numbers a patch, not 64"):
        load_pooling_head(folder, width=64)
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "head" not in k}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UnsupportedModel, match="has no pooling head"):
        load_pooling_head(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense" * 4)
    with pytest.raises(CannotRun, match="cannot be read"):
        load_pooling_head(tmp_path)
