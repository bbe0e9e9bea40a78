"""Features, saliency and keys of every host, from one pass of a tower that runs SDPA, against its eager attention."""

import pytest
import torch
from hosts import FRAMES, GRIDS, HOSTS, IMAGE, VIDEO, next_video, onevision, pixels, qwen
from torch.nn import functional as F

from holitom.errors import BadUsage, UnsupportedModel
from holitom.models import ADAPTERS, Adapter, adapter_for
from holitom.models.llava_onevision import full_length
from holitom.models.saliency import probing, received_attention

BOTH = frozenset({"saliency", "keys"})
LLAVA = [name for name in HOSTS if name != "qwen2_5_vl"]


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


@pytest.mark.parametrize("host", ["llava_onevision", "llava_next_video"])
@torch.no_grad()
def test_tokens_are_those_of_the_stock_model(host):
    model, given = HOSTS[host](), pixels(host)
    stock = model.model.get_video_features(given["pixels"]).pooler_output
    rows = [row.flatten(0, -2)[: FRAMES * 16] for row in stock]  # without OneVision's newline
    videos = adapter_for(model).encode(**given, requires=BOTH)
    torch.testing.assert_close(stacked(videos, "tokens").flatten(0, 1), torch.cat(rows), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer", [-1, -2])
@torch.no_grad()
def test_saliency_is_the_column_mean_of_eager_attention(layer):
    """Of the tower's last layer, also where the features come from the one before."""
    model, eager = onevision(vision_feature_layer=layer), onevision("eager", vision_feature_layer=layer)
    clip = pixels()["pixels"]
    out = eager.model.vision_tower(clip.flatten(0, 1), output_attentions=True, output_hidden_states=True)
    columns = out.attentions[-1].mean((1, 2))
    torch.testing.assert_close(columns.sum(-1), torch.ones(2 * FRAMES), atol=1e-5, rtol=0)
    videos = adapter_for(model).encode(clip, frozenset({"saliency"}))
    pooled = model.model.apply_pooling(columns[..., None]).squeeze(-1)
    torch.testing.assert_close(stacked(videos, "saliency"), pooled, atol=1e-7, rtol=0)


@torch.no_grad()
def test_keys_are_the_mean_over_heads():
    model = onevision()
    adapter, clip, seen = adapter_for(model), pixels()["pixels"], []
    handle = model.model.vision_tower.encoder.layers[-1].self_attn.k_proj.register_forward_hook(
        lambda module, args, out: seen.append(out)
    )
    keys = stacked(adapter.encode(clip, frozenset({"keys"})), "keys")
    handle.remove()
    expected = model.model.apply_pooling(seen[0].unflatten(-1, (4, 8)).mean(2))
    torch.testing.assert_close(keys, expected, atol=1e-6, rtol=0)


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


@torch.no_grad()
def test_qwen_reading_order():
    """Without attention between patches a token depends on its own pixels only: changing one square of one pair of
    frames changes the features of that token, and of no other."""
    model, given = qwen(), pixels("qwen2_5_vl")
    for block in model.model.visual.blocks:
        block.attn.proj.weight.zero_()
    changed = given["pixels"].clone()
    changed[4 * 31 : 4 * 32] += 1.0  # the processor gives the four patches of a token in a row
    before, after = (
        adapter_for(model).encode(**given | {"pixels": p})[0].tokens.flatten(0, 1) for p in (given["pixels"], changed)
    )
    assert ((before - after).abs().amax(1) > 1e-6).nonzero().flatten().tolist() == [31]


@pytest.mark.parametrize(("mode", "grid"), [("bilinear", (4, 4)), ("average", (3, 3))])
@torch.no_grad()
def test_odd_grids(mode, grid):
    """7 x 7 patches: interpolated to 4 x 4, or averaged to 3 x 3 without the last row and column (27 -> 14 or 13)."""
    model, clip = onevision(size=98, mm_spatial_pool_mode=mode, mm_newline_position="grid"), torch.randn(3, 3, 98, 98)
    adapter = adapter_for(model)
    (video,) = adapter.encode([clip], frozenset({"saliency"}))
    patches = model.model.vision_tower(clip, output_hidden_states=True).hidden_states[model.config.vision_feature_layer]
    maps = model.model.multi_modal_projector(patches).transpose(1, 2).unflatten(2, (7, 7))
    if mode == "bilinear":
        expected = F.interpolate(maps, size=(4, 4), mode="bilinear")
    else:
        expected = maps[..., :6, :6].unflatten(-1, (3, 2)).unflatten(-3, (3, 2)).mean((-1, -3))
    torch.testing.assert_close(video.tokens, expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=0)
    assert video.grid == grid and adapter.newline_order == "row"
    assert full_length(model.config, 3) == 3 * grid[0] * (grid[1] + 1)


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


def test_the_probe_leaves_no_hook():
    attention = adapter_for(onevision()).vision_attention()
    with pytest.raises(ZeroDivisionError), probing(attention, "q_proj"):
        raise ZeroDivisionError
    assert not attention._forward_pre_hooks and not attention.q_proj._forward_hooks


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


def test_qwen_positions_are_the_models_own():
    model, given = qwen(), pixels("qwen2_5_vl")
    ids = torch.cat([torch.tensor([5, 296]), torch.full((72,), VIDEO), torch.tensor([297, 6, 7])])[None]
    call = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "video_grid_thw": given["video_grid_thw"][:1],
        "mm_token_type_ids": (ids == VIDEO).int() * 2, "second_per_grid_ts": torch.tensor([1.0]),
    }  # fmt: skip
    adapter = adapter_for(model)
    found = adapter.grid_positions(call)
    axes = torch.meshgrid(torch.arange(3) * 2, torch.arange(4), torch.arange(6), indexing="ij")
    assert torch.equal(found[:, 0, 2:74], torch.stack(axes).flatten(1) + 2)
    assert torch.equal(found[:, 0, :2], torch.arange(2).expand(3, -1))
    assert torch.equal(found[:, 0, 74:], (torch.arange(3) + 8).expand(3, -1))
    assert torch.equal(adapter.grid_positions(call | {"position_ids": found}), found)
    with pytest.raises(BadUsage, match="mm_token_type_ids"):
        adapter.grid_positions(call | {"mm_token_type_ids": None})
    assert adapter_for(onevision()).grid_positions(call) is None


@pytest.mark.parametrize("host", LLAVA)
def test_videos_of_different_length_in_a_list(host):
    adapter, clip = adapter_for(HOSTS[host]()), pixels(host)["pixels"]
    videos = adapter.encode([clip[0], clip[1, :2]], BOTH)
    assert [video.frames for video in videos] == [FRAMES, 2]
    alone = adapter.encode([clip[1, :2]], BOTH)[0]
    torch.testing.assert_close(videos[1].saliency, alone.saliency, atol=1e-6, rtol=0)
    with pytest.raises(BadUsage, match="pixel_values_videos of shapes"):
        adapter.encode(clip[0], BOTH)


def test_what_is_refused():
    with pytest.raises(BadUsage, match=r"needs pixel_values_videos .* and video_grid_thw"):
        adapter_for(qwen()).encode(torch.randn(8, 1176))
    for name, value in {"vision_feature_select_strategy": "full", "vision_feature_layer": [-1, -2]}.items():
        model = next_video()
        setattr(model.config, name, value)
        with pytest.raises(UnsupportedModel):
            adapter_for(model)
    for name in ("mm_newline_position", "mm_spatial_pool_mode"):
        with pytest.raises(UnsupportedModel, match=f"{name} 'other' is not known"):
            adapter_for(onevision(**{name: "other"}))
    for host in ("llava_next_video", "qwen2_5_vl"):
        for field in ("frame_embed", "head_saliency"):
            with pytest.raises(UnsupportedModel, match="no pooling head") as caught:
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
    hiding = torch.nn.Sequential(model)
    with pytest.raises(UnsupportedModel, match="hides its config"):
        adapter_for(hiding)


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
