"""SigLIP's pooling head: read from a checkpoint of random weights, and a field of its own beside saliency."""

from shutil import copyfile

import pytest
import torch
from hosts import onevision, pixels, randomise
from safetensors.torch import load_file, save_file
from transformers import SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel
from videos import same

from holitom.errors import CannotRun
from holitom.methods import HoliTom, SaliencyTopK, VisionZip
from holitom.models import adapter_for
from holitom.models.llava_onevision import LlavaOnevision
from holitom.models.saliency import load_pooling_head

EVERY = frozenset({"saliency", "keys", "frame_embed", "head_saliency"})
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2, "image_size": 12,
    "patch_size": 3,
}  # fmt: skip
TEXT = {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 500}


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """A model of text and pictures, and the folder that it is saved in."""
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(vision_config=VISION, text_config=TEXT)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # fresh norms and biases are ones and zeros, which hide mistakes
    folder = tmp_path_factory.mktemp("siglip")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A model and, where its adapter looks for it, a checkpoint with the head of its tower."""
    model = onevision()
    settings = model.config.vision_config.to_dict() | {"vision_use_head": True}
    randomise(SiglipVisionModel(SiglipVisionConfig(**settings))).save_pretrained(tmp_path)
    monkeypatch.setattr(LlavaOnevision, "head_source", tmp_path)
    return model


@torch.no_grad()
def test_it_is_the_models_own_head_and_its_query_attends_patch_by_patch(siglip):
    """The weights written out for one attention head after the other."""
    own, folder = siglip[0].vision_model, siglip[1]
    given = torch.randn(5, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    states = own(given, output_hidden_states=True).hidden_states[-1]  # before the tower's last norm
    x, attention = own.post_layernorm(states), own.head.attention
    expected = own.head(x)
    (wq, wk, _), (bq, bk, _) = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q, k = own.head.probe[0, 0] @ wq.T + bq, x @ wk.T + bk
    maps = [(k[..., 8 * h : 8 * h + 8] @ q[8 * h : 8 * h + 8] / 8**0.5).softmax(-1) for h in range(4)]
    embed, received = load_pooling_head(folder)(states)
    torch.testing.assert_close(embed, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(received, torch.stack(maps).mean(0), atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert load_pooling_head(folder)(states.bfloat16())[0].dtype == torch.float32


def test_what_has_no_fitting_head_is_refused_and_the_fix_is_named(siglip, tmp_path):
    _, folder = siglip
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "head" not in k}, tmp_path / "model.safetensors")
    copyfile(folder / "config.json", tmp_path / "config.json")
    for source in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CannotRun, match="cannot be read") as caught:
            load_pooling_head(source)
        assert "FastVID(head='substitute')" in caught.value.fix


@torch.no_grad()
def test_saliency_has_one_meaning_whatever_else_is_asked_for(host):
    """The head's attention and vectors are fields of their own; what HoliTom, VisionZip and top-k keep does not depend
    on which other methods are measured with them."""
    adapter, clip = adapter_for(host), pixels()["pixels"]
    whole = adapter.encode(clip, EVERY)
    assert adapter_for(onevision()).pooling_head() is adapter.pooling_head()  # read once for all models
    for requires in (frozenset({"saliency", "keys"}), frozenset({"frame_embed"}), frozenset({"head_saliency"})):
        for video, every in zip(adapter.encode(clip, requires), whole, strict=True):
            for name in EVERY:
                assert (getattr(video, name) is not None) == (name in requires)
                if name in requires:
                    assert torch.equal(getattr(video, name), getattr(every, name))
    alone = adapter.encode(clip, frozenset({"saliency", "keys"}))
    for method in (HoliTom(tau=0.8), VisionZip(), SaliencyTopK()):
        assert all(same(method(video, 0.25), method(every, 0.25)) for video, every in zip(alone, whole, strict=True))
    head = load_pooling_head(LlavaOnevision.head_source)
    embed, received = head(adapter.patches(clip[0]))
    torch.testing.assert_close(whole[0].frame_embed, embed, atol=1e-6, rtol=0)
    pooled = adapter.pool(received[..., None]).squeeze(-1)
    torch.testing.assert_close(whole[0].head_saliency, pooled, atol=1e-6, rtol=0)
    top = [set(field.flatten().topk(16).indices.tolist()) for field in (whole[0].saliency, whole[0].head_saliency)]
    assert len(top[0] & top[1]) < 16  # or the test could not fail
