"""Saliency, keys and pooling, from one pass of a tower that runs SDPA."""

import pytest
import torch
from seam import pixels, tiny_model
from torch.nn import functional as F
from transformers import SiglipVisionConfig, SiglipVisionModel

from holitom.attach import reduce_tokens
from holitom.models import adapter_for
from holitom.models.encoding import probe_attention, received_attention
from holitom.models.llava_onevision import full_length


@pytest.mark.parametrize("layer", [-1, -2])
@torch.no_grad()
def test_saliency_is_the_column_mean_of_eager_attention(layer):
    """Of the tower's last layer, also where the features come from the one before."""
    model, eager = tiny_model("sdpa", vision_feature_layer=layer), tiny_model("eager", vision_feature_layer=layer)
    clip = pixels(2)
    out = eager.model.vision_tower(clip.flatten(0, 1), output_attentions=True, output_hidden_states=True)
    columns = out.attentions[-1].mean((1, 2))
    torch.testing.assert_close(columns.sum(-1), torch.ones(8), atol=1e-5, rtol=0)
    with reduce_tokens(model) as run:
        videos = run.encode(clip, saliency=True)
    pooled = model.model.apply_pooling(columns[..., None]).squeeze(-1)
    torch.testing.assert_close(torch.cat([v.saliency for v in videos]), pooled, atol=1e-7, rtol=0)
    tokens = model.model.get_video_features(clip).pooler_output[:, :-1].unflatten(1, (4, 16))
    torch.testing.assert_close(torch.stack([v.tokens for v in videos]), tokens, atol=1e-5, rtol=0)
    assert videos[0].grid == (4, 4) and videos[0].saliency.dtype == torch.float32
    assert videos[0].keys is None and videos[0].frame_embed is None


@torch.no_grad()
def test_blocks_of_frames_do_not_change_saliency(sdpa):
    attention = adapter_for(sdpa).vision_attention()
    assert attention is sdpa.model.vision_tower.encoder.layers[-1].self_attn
    hidden = torch.randn(7, 64, 32)
    whole = received_attention(attention, hidden)
    for chunk_bytes in (1, 4 * 4 * 64 * 64 * 3):
        torch.testing.assert_close(received_attention(attention, hidden, chunk_bytes), whole, atol=1e-7, rtol=0)
    torch.testing.assert_close(whole.sum(-1), torch.ones(7), atol=1e-5, rtol=0)


@torch.no_grad()
def test_keys_and_frame_embeddings(sdpa):
    adapter, clip = adapter_for(sdpa), pixels()[0]
    (video,) = adapter.encode([clip], frozenset({"keys", "frame_embed"})).videos
    seen = []
    handle = adapter.vision_attention().k_proj.register_forward_hook(lambda _, __, out: seen.append(out))
    sdpa.model.vision_tower(clip)
    handle.remove()
    keys = seen[0].unflatten(-1, (4, 8)).mean(2)
    torch.testing.assert_close(video.keys, sdpa.model.apply_pooling(keys), atol=1e-6, rtol=0)
    torch.testing.assert_close(video.frame_embed, video.tokens.mean(1), atol=1e-6, rtol=0)
    assert video.saliency is None


@torch.no_grad()
def test_half_precision_saliency_is_float32():
    model = tiny_model(dtype=torch.bfloat16)
    (video,) = adapter_for(model).encode(pixels().bfloat16(), frozenset({"saliency"})).videos
    assert video.tokens.dtype == torch.bfloat16 and video.saliency.dtype == torch.float32
    torch.testing.assert_close(video.saliency.sum(1), torch.full((4,), 0.25), atol=1e-2, rtol=0)


@pytest.mark.parametrize(("mode", "grid"), [("bilinear", (4, 4)), ("average", (3, 3))])
@torch.no_grad()
def test_odd_grids(mode, grid):
    """7 x 7 patches: interpolated to 4 x 4, or averaged to 3 x 3 without the last row and column (27 -> 14 or 13)."""
    model = tiny_model(mm_spatial_pool_mode=mode, mm_newline_position="grid")
    tower = SiglipVisionConfig(**{**model.config.vision_config.to_dict(), "image_size": 98})
    model.config.vision_config = tower
    model.model.vision_tower = SiglipVisionModel(tower).eval()
    clip = torch.randn(3, 3, 98, 98)
    (video,) = adapter_for(model).encode([clip], frozenset({"saliency"})).videos
    patches = model.model.vision_tower(clip, output_hidden_states=True).hidden_states[model.config.vision_feature_layer]
    maps = model.model.multi_modal_projector(patches).transpose(1, 2).unflatten(2, (7, 7))
    if mode == "bilinear":
        expected = F.interpolate(maps, size=(4, 4), mode="bilinear")
    else:
        expected = maps[..., :6, :6].unflatten(-1, (3, 2)).unflatten(-3, (3, 2)).mean((-1, -3))
    assert video.grid == grid and video.saliency.shape == (3, grid[0] * grid[1])
    torch.testing.assert_close(video.tokens, expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=0)
    assert full_length(model.config, 3) == 3 * grid[0] * (grid[1] + 1)


@torch.no_grad()
def test_the_probe_leaves_no_hook(sdpa):
    attention = adapter_for(sdpa).vision_attention()
    with pytest.raises(RuntimeError), probe_attention(attention, saliency=True, keys=False):
        raise RuntimeError
    assert not attention._forward_pre_hooks


@pytest.mark.gpu
@torch.no_grad()
def test_cuda_saliency_equals_cpu(sdpa):
    import copy

    clip = pixels(2)
    (expected, _) = adapter_for(sdpa).encode(clip, frozenset({"saliency", "keys"})).videos
    (video, _) = adapter_for(copy.deepcopy(sdpa).cuda()).encode(clip.cuda(), frozenset({"saliency", "keys"})).videos
    torch.testing.assert_close(video.saliency.cpu(), expected.saliency, atol=1e-4, rtol=0)
    torch.testing.assert_close(video.keys.cpu(), expected.keys, atol=1e-2, rtol=0)
