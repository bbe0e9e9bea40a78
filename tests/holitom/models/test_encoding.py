"""Features, saliency and keys of every host, from one pass of a tower that runs SDPA, against its eager attention."""

import pytest
import torch
from hosts import FRAMES, GRIDS, HOSTS, IMAGE, VIDEO, next_video, onevision, pixels, qwen

from holitom.errors import BadUsage, CannotRun, UnsupportedModel
from holitom.models import ADAPTERS, Adapter, adapter_for
from holitom.models.saliency import received_attention

BOTH = frozenset({"saliency", "keys"})


def stacked(videos, name):
    return torch.cat([getattr(video, name) for video in videos])


@pytest.mark.parametrize("host", HOSTS)
@torch.no_grad()
def test_only_what_is_required_is_filled_and_nothing_else_changes(host):
    model = HOSTS[host]()
    adapter, given = adapter_for(model), pixels(host)
    assert isinstance(adapter, Adapter)
    adapter.encode(**given)  # transformers leaves hooks of its own
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    every = adapter.encode(**given, requires=BOTH)
    for requires in (frozenset(), frozenset({"saliency"}), frozenset({"keys"})):
        for video, whole in zip(adapter.encode(**given, requires=requires), every, strict=True):
            assert torch.equal(video.tokens, whole.tokens) and video.grid == whole.grid
            for name in ("saliency", "keys", "frame_embed", "head_saliency"):
                assert (getattr(video, name) is not None) == (name in requires)
                if name in requires:
                    assert torch.equal(getattr(video, name), getattr(whole, name))
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks


@pytest.mark.parametrize("layer", [-1, -2])
@torch.no_grad()
def test_saliency_and_keys_are_those_of_eager_attention(layer):
    """Column means of the map, and keys averaged over heads, of the tower's last layer, also where the features come
    from the one before."""
    model, eager = onevision(vision_feature_layer=layer), onevision("eager", vision_feature_layer=layer)
    clip, tower, pool, seen = pixels()["pixels"], eager.model.vision_tower, model.model.apply_pooling, []
    tower.encoder.layers[-1].self_attn.k_proj.register_forward_hook(lambda _, args, out: seen.append(out))
    columns = tower(clip.flatten(0, 1), output_attentions=True).attentions[-1].mean((1, 2))
    torch.testing.assert_close(columns.sum(-1), torch.ones(2 * FRAMES), atol=1e-5, rtol=0)
    videos = adapter_for(model).encode(clip, BOTH)
    torch.testing.assert_close(stacked(videos, "saliency"), pool(columns[..., None]).squeeze(-1), atol=1e-7, rtol=0)
    keys = pool(seen[0].unflatten(-1, (4, 8)).mean(2))
    torch.testing.assert_close(stacked(videos, "keys"), keys, atol=1e-6, rtol=0)


@torch.no_grad()
def test_next_video_saliency_is_the_class_tokens_attention():
    """Without its own share, of the layer whose output the features are, pooled by averaging."""
    model, eager, clip = next_video(), next_video("eager"), pixels("llava_next_video")["pixels"]
    out = eager.model.vision_tower(clip.flatten(0, 1), output_attentions=True, output_hidden_states=True)
    assert adapter_for(model).vision_attention() is model.model.vision_tower.encoder.layers[2].self_attn
    received = out.attentions[2].mean(1)[:, 0, 1:].unflatten(1, (4, 2, 4, 2)).mean((2, 4)).flatten(1)
    videos = adapter_for(model).encode(clip, BOTH)
    torch.testing.assert_close(stacked(videos, "saliency"), received, atol=1e-6, rtol=0)
    assert videos[0].grid == (4, 4) and videos[0].keys.shape == (FRAMES, 16, 8)


@torch.no_grad()
def test_qwen_saliency_is_that_of_whole_frames_in_reading_order():
    """The attention of the last block that sees whole frames, written out over the patches of each frame; the tower
    works in windows of 2 x 2 tokens."""
    model, given, seen = qwen(), pixels("qwen2_5_vl"), {}
    block = model.model.visual.blocks[2].attn
    assert adapter_for(model).vision_attention() is block  # block 3 sees windows
    keep = lambda _, args, kwargs: seen.update(kwargs, hidden=[*args, *kwargs.values()][0])  # noqa: E731
    handle = block.register_forward_pre_hook(keep, with_kwargs=True)
    stock = model.model.get_video_features(given["pixels"], given["video_grid_thw"]).pooler_output
    handle.remove()
    query, key, _ = block.qkv(seen["hidden"]).unflatten(-1, (3, 4, 8)).unbind(1)
    cos, sin = (part[:, None] for part in seen["position_embeddings"])

    def turned(x):
        a, b = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-b, a], dim=-1) * sin

    query, turned_key, first = turned(query), turned(key), 0
    videos = adapter_for(model).encode(**given, requires=BOTH)
    for video, features, (t, h, w) in zip(videos, stock, GRIDS, strict=True):
        frames = [slice(first + i * h * w, first + (i + 1) * h * w) for i in range(t)]
        maps = [torch.einsum("qhd,khd->hqk", query[f], turned_key[f]) / 8**0.5 for f in frames]
        received = torch.stack([m.softmax(-1).mean((0, 1)) for m in maps]).unflatten(1, (-1, 4)).mean(-1)
        keys = torch.stack([key[f].mean(1) for f in frames]).unflatten(1, (-1, 4)).mean(2)
        starts = [(r, c) for r in range(0, h // 2, 2) for c in range(0, w // 2, 2)]
        order = torch.tensor([(r + i) * (w // 2) + c + j for r, c in starts for i in (0, 1) for j in (0, 1)])
        torch.testing.assert_close(video.saliency[:, order], received, atol=1e-6, rtol=0)
        torch.testing.assert_close(video.keys[:, order], keys, atol=1e-5, rtol=0)
        torch.testing.assert_close(video.tokens.flatten(0, 1), features, atol=1e-5, rtol=0)
        assert video.grid == (h // 2, w // 2) and video.frames == t
        first += t * h * w


@pytest.mark.parametrize("host", HOSTS)
@torch.no_grad()
def test_half_precision_saliency_is_float32_and_autocast_does_not_round_it(host):
    model, given = HOSTS[host](dtype=torch.bfloat16), pixels(host)
    given["pixels"] = given["pixels"].bfloat16()
    videos = adapter_for(model).encode(**given, requires=BOTH)
    with torch.autocast("cpu", torch.bfloat16):
        again = adapter_for(model).encode(**given, requires=BOTH)
    assert videos[0].tokens.dtype == torch.bfloat16 and videos[0].saliency.dtype == torch.float32
    torch.testing.assert_close(again[0].saliency, videos[0].saliency, atol=1e-4, rtol=0)
    attention = torch.randn(2, 7, 4, 8), torch.randn(2, 9, 4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = received_attention(*attention, 1.0)
    assert torch.equal(rounded, received_attention(*attention, 1.0))


@torch.no_grad()
def test_blocks_of_the_attention_map_do_not_change_it(monkeypatch):
    query, key = torch.randn(7, 5, 4, 8), torch.randn(7, 6, 4, 8)
    expected = torch.einsum("fqhd,fphd->fhqp", query, key).mul(0.3).softmax(-1).mean((1, 2))
    for numbers in (1, 4 * 6 * 2, 4 * 5 * 6 * 3, 2**20):  # one query, two, three frames, all
        monkeypatch.setattr("holitom.models.saliency.BLOCK", numbers)
        torch.testing.assert_close(received_attention(query, key, 0.3), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("host", HOSTS)
@torch.no_grad()
def test_prompts_are_embedded_with_their_images(host):
    """As the stock model does it; what stands at the video's place means nothing."""
    model = HOSTS[host]()
    adapter, words = adapter_for(model), torch.tensor([[5, VIDEO, VIDEO, 6, 7], [8, VIDEO, 9, 10, 11]])
    plain = adapter.embed(words, {})
    here = words != VIDEO
    assert torch.equal(plain[here], model.get_input_embeddings()(words[here]))
    if host == "qwen2_5_vl":
        given = {"pixel_values": torch.randn(16, 3 * 2 * 14 * 14), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    else:
        size = model.config.vision_config.image_size
        given = {"pixel_values": torch.randn(1, 2, 3, size, size), "image_sizes": torch.tensor([[size, size]])}
    rows = torch.cat(tuple(model.model.get_image_features(**given).pooler_output))
    ids = torch.cat([torch.tensor([3]), torch.full((len(rows),), IMAGE), torch.tensor([4, VIDEO])])[None]
    embeds = adapter.embed(ids, given)
    torch.testing.assert_close(embeds[0, 1 : 1 + len(rows)], rows, atol=1e-6, rtol=0)
    assert torch.equal(embeds[0, :1], model.get_input_embeddings()(ids[0, :1]))
    with pytest.raises(BadUsage, match=f"{len(rows) - 1} placeholders for images of {len(rows)} tokens"):
        adapter.embed(ids[:, :-3], given)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("how", ["quantised", "compiled"])
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_other_towers_give_their_own_saliency(host, how):
    """Compiled code calls no hooks: it runs uncompiled while they are needed."""
    model, given = HOSTS[host](), pixels(host)
    expected, name = adapter_for(model).encode(**given, requires=BOTH), "vision_tower"
    name = "visual" if host == "qwen2_5_vl" else name
    if how == "quantised":
        torch.ao.quantization.quantize_dynamic(getattr(model.model, name), {torch.nn.Linear}, inplace=True)
    else:
        setattr(model.model, name, torch.compile(getattr(model.model, name), backend="eager"))
    if host == "llava_onevision":
        adapter_for(model).encode(**given)  # compiles
    for video, other in zip(adapter_for(model).encode(**given, requires=BOTH), expected, strict=True):
        torch.testing.assert_close(video.saliency, other.saliency, atol=1e-6 if how == "compiled" else 1e-3, rtol=0)
        assert how == "compiled" or not torch.equal(video.saliency, other.saliency)


def test_what_is_refused():
    model = onevision()
    for layer in model.model.vision_tower.encoder.layers:
        layer.self_attn = torch.nn.Identity()
    with pytest.raises(UnsupportedModel, match="SiglipVisionModel has no SiglipAttention"):
        adapter_for(model).encode(**pixels(), requires=BOTH)
    with pytest.raises(BadUsage, match="needs video_grid_thw"):
        adapter_for(qwen()).encode(torch.randn(8, 1176))
    with pytest.raises(BadUsage, match=r"Give \[videos, frames, 3, height, width\]"):
        adapter_for(onevision()).encode(pixels()["pixels"][0])
    for name in ("mm_newline_position", "mm_spatial_pool_mode"):
        with pytest.raises(UnsupportedModel, match=f"{name} 'other' is not known"):
            adapter_for(onevision(**{name: "other"}))
    for host in ("llava_onevision", "llava_next_video", "qwen2_5_vl"):  # an error and no silent substitute
        for field in ("frame_embed", "head_saliency"):
            with pytest.raises((CannotRun, UnsupportedModel), match=r"no pooling head|tower gives 32") as caught:
                adapter_for(HOSTS[host]()).encode(**pixels(host), requires=frozenset({field}))
            assert "FastVID(head='substitute')" in caught.value.fix


def test_families_by_class_name():
    """Found inside a wrapper too; a class that derives from a known one is known; the inner model is enough."""
    model, wrapped = qwen(), torch.nn.Module()
    wrapped.base, wrapped.config = model, model.config
    assert adapter_for(wrapped).core is adapter_for(model.model).core is model.model
    other = object.__new__(type("MyQwen", (type(model),), {}))
    other.__dict__ = model.__dict__
    assert type(adapter_for(other)).__name__ == "Qwen25VL"
    with pytest.raises(UnsupportedModel, match="a Linear cannot be reduced") as caught:
        adapter_for(torch.nn.Linear(1, 1))
    assert all(name in caught.value.fix for name in ADAPTERS if not name.endswith("Model"))
    with pytest.raises(UnsupportedModel, match=r"is wrapped or lacks .*config"):
        adapter_for(torch.nn.Sequential(model))


@pytest.mark.gpu
@pytest.mark.parametrize("host", HOSTS)
@torch.no_grad()
def test_cuda_equals_cpu(host):
    given = pixels(host)
    expected = adapter_for(HOSTS[host]()).encode(**given, requires=BOTH)
    found = adapter_for(HOSTS[host]().cuda()).encode(**{k: v.cuda() for k, v in given.items()}, requires=BOTH)
    for video, other in zip(found, expected, strict=True):
        torch.testing.assert_close(video.saliency.cpu(), other.saliency, atol=1e-4, rtol=0)
        torch.testing.assert_close(video.keys.cpu(), other.keys, atol=1e-2, rtol=0)
