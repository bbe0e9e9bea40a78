"""Features, saliency and keys of the families beside LLaVA-OneVision, against their stock towers."""

import pytest
import torch
from next_video_host import tiny as tiny_next_video
from qwen_host import GRIDS
from qwen_host import tiny as tiny_qwen

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage, UnsupportedModel
from holitom.models import adapter_for

ALL = frozenset({"saliency", "keys", "frame_embed"})


def by_token(patches, grid):
    """Values of patches [t, h, w] -> of tokens [t, N], as means over squares of 2 x 2."""
    t, h, w = grid
    squares = patches.reshape(t, h // 2, 2, w // 2, 2, -1)
    return squares.mean((2, 4)).flatten(1, 2)


@torch.no_grad()
def test_qwen_saliency_is_that_of_whole_frames_in_reading_order(qwen):
    """The tower's attention is replaced by a plain one over the patches of a frame, found by their place in the frame:
    the last block that sees whole frames, in the processor's order of patches."""
    model, adapter = qwen.model, adapter_for(qwen.model)
    visual = model.model.visual
    assert adapter.vision_attention() is visual.blocks[2].attn  # block 3 sees windows
    pixels, grids = torch.cat([qwen.patches(0), qwen.patches(1)]), torch.tensor(GRIDS)
    videos = adapter.encode(pixels, ALL, grids).videos
    seen = {}
    handle = visual.blocks[2].attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(hidden=(args or [kwargs.get("hidden_states")])[0], **kwargs),
        with_kwargs=True,
    )
    stock = model.model.get_video_features(pixels, grids).pooler_output
    handle.remove()
    query, key, _ = visual.blocks[2].attn.qkv(seen["hidden"]).unflatten(-1, (3, 4, 8)).unbind(1)
    cos, sin = (part[:, None] for part in seen["position_embeddings"])

    def turned(x):
        a, b = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-b, a], dim=-1) * sin

    first = 0
    # where the tower put each token: its patch embedding tells, since no two tokens are alike
    for video, features, grid in zip(videos, stock, GRIDS, strict=True):
        t, h, w = grid
        count = t * h * w
        frames = [slice(first + i * h * w, first + (i + 1) * h * w) for i in range(t)]
        columns = [torch.einsum("qhd,khd->hqk", turned(query)[f], turned(key)[f]) / 8**0.5 for f in frames]
        received = torch.stack([c.softmax(-1).mean((0, 1)) for c in columns]).unflatten(1, (-1, 4)).mean(-1)
        windows = [(r, c) for r0 in range(0, h // 2, 2) for c0 in range(0, w // 2, 2)
                   for r in (r0, r0 + 1) for c in (c0, c0 + 1)]  # fmt: skip
        order = torch.tensor([r * (w // 2) + c for r, c in windows])
        expected, keys = torch.empty_like(received), torch.empty(t, h * w // 4, 8)
        expected[:, order] = received
        keys[:, order] = key[first : first + count].mean(1).unflatten(0, (t, -1, 4)).mean(2)
        torch.testing.assert_close(video.saliency, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(video.keys, keys, atol=1e-5, rtol=0)
        torch.testing.assert_close(video.tokens.flatten(0, 1), features, atol=1e-5, rtol=0)
        torch.testing.assert_close(video.frame_embed, video.tokens.mean(1))
        torch.testing.assert_close(video.saliency.sum(1), torch.full((t,), 0.25), atol=1e-5, rtol=0)
        assert video.grid == (h // 2, w // 2)
        first += count


@torch.no_grad()
def test_qwen_reading_order(qwen):
    """Without attention between patches a token depends on its own pixels only: changing one square of one pair of
    frames changes the features of that token, and of no other."""
    model = tiny_qwen("sdpa")
    for block in model.model.visual.blocks:
        block.attn.proj.weight.zero_()
    adapter, grids = adapter_for(model), torch.tensor([GRIDS[0]])
    pixels = qwen.patches(0)
    changed = pixels.clone()
    changed[4 * 31 : 4 * 32] += 1.0  # the processor gives the four patches of a token in a row
    before, after = (adapter.encode(p, frozenset(), grids).videos[0].tokens.flatten(0, 1) for p in (pixels, changed))
    moved = (before - after).abs().amax(1) > 1e-6
    assert moved.nonzero().flatten().tolist() == [31]


@torch.no_grad()
def test_next_video_saliency_is_the_class_tokens_attention(next_video):
    model, eager = next_video.model, tiny_next_video("eager")
    adapter, clip = adapter_for(model), next_video.clip(0)
    out = eager.model.vision_tower(clip, output_attentions=True, output_hidden_states=True)
    layer = model.config.vision_feature_layer
    assert layer == -2 and adapter.vision_attention() is model.model.vision_tower.encoder.layers[2].self_attn
    received = out.attentions[2].mean(1)[:, 0, 1:]
    (video,) = adapter.encode(clip[None], ALL).videos
    means = received.unflatten(1, (4, 2, 4, 2)).mean((2, 4)).flatten(1)
    torch.testing.assert_close(video.saliency, means, atol=1e-6, rtol=0)
    torch.testing.assert_close(video.tokens.flatten(0, 1), next_video.rows(0), atol=1e-5, rtol=0)
    assert video.grid == (4, 4) and video.keys.shape == (3, 16, 8) and video.frame_embed.shape == (3, 32)


def test_what_is_refused(qwen):
    model, given = qwen.model, qwen.inputs(0)
    with reduce_tokens(model) as run:
        with pytest.raises(BadUsage, match=r"needs pixel_values_videos .* and video_grid_thw"):
            run.encode(given["pixel_values_videos"])
        with pytest.raises(BadUsage, match="mm_token_type_ids"):
            model(**{**given, "mm_token_type_ids": None})
        short = {k: torch.cat([given[k][:, :6], given[k][:, 40:]], 1)
                 for k in ("input_ids", "attention_mask", "mm_token_type_ids")}  # fmt: skip
        with pytest.raises(BadUsage, match="38 placeholders for a video of 72"):
            model(**{**given, **short, "position_ids": torch.arange(len(short["input_ids"][0]))[None]})
    other = tiny_next_video("sdpa")
    other.config.vision_feature_select_strategy = "full"
    with pytest.raises(UnsupportedModel, match="class token"), reduce_tokens(other):
        pass


def test_families_by_class_name(qwen):
    """Found inside a wrapper too; a class that derives from a known one is known; the inner model is enough."""
    wrapped = torch.nn.Module()
    wrapped.base, wrapped.config = qwen.model, qwen.model.config
    assert adapter_for(wrapped).core is qwen.model.model
    assert adapter_for(qwen.model.model).core is qwen.model.model
    derived = type("MyQwen", (type(qwen.model),), {})
    other = object.__new__(derived)
    other.__dict__ = qwen.model.__dict__
    assert type(adapter_for(other)).__name__ == "Qwen25VL"
