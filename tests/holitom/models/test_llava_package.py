"""Features of the original llava package, against the package itself; runs where it imports (docs/llava.md)."""

import pytest
import torch

pytest.importorskip("llava.model.language_model.llava_qwen", reason="the original llava package is not installed here")

from llava_host import KINDS, tiny

from holitom.errors import UnsupportedModel
from holitom.models import adapter_for

BOTH = frozenset({"saliency", "keys"})


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_features_are_the_packages(kind):
    """Every video has its own frames' saliency: the release pools those of all frames of a batch for each."""
    model, clips = tiny(kind), [torch.randn(2, 3, 384, 384), torch.randn(3, 3, 384, 384)]
    adapter, seen = adapter_for(model), []
    attention = model.get_vision_tower().vision_tower.vision_model.encoder.layers[-1].self_attn
    assert adapter.vision_attention() is attention and adapter.video_token_id == -200
    handle = attention.register_forward_hook(lambda module, args, out: seen.append(out[1].mean((1, 2))))
    stock = [model.get_2dPool(model.encode_images(clip)) for clip in clips]
    handle.remove()
    side = 14 if kind == "onevision" else 13
    for video, tokens, columns in zip(adapter.encode(clips, BOTH), stock, seen, strict=True):
        torch.testing.assert_close(video.tokens, tokens, atol=1e-5, rtol=0)
        pooled = model.get_2dPool(columns[..., None]).squeeze(-1)
        torch.testing.assert_close(video.saliency, pooled, atol=1e-7, rtol=0)
        assert video.grid == (side, side) and video.keys.shape == (video.frames, side**2, 8)
    assert torch.equal(adapter.newline, model.get_model().image_newline)
    assert adapter.newline_order == {"onevision": "end", "video": "row"}[kind]
    words, place = torch.tensor([[5, -200, 7]]), [0, 2]
    assert torch.equal(adapter.embed(words, {})[0, place], model.get_model().embed_tokens(words[0, place]))


def test_settings_as_the_package_reads_them():
    model = tiny("video")
    for settings, order in (({"mm_patch_merge_type": "flat"}, "none"), ({"mm_patch_merge_type": "spatial"}, "row"),
                            ({"mm_newline_position": "one_token"}, "none"), ({"mm_newline_position": None}, "none"),
                            ({"mm_patch_merge_type": "spatial_unpad"}, "end")):  # fmt: skip
        model.config.update(settings)
        assert adapter_for(model).newline_order == order
    model.config.add_faster_video = True
    with pytest.raises(UnsupportedModel, match="add_faster_video"):
        adapter_for(model)
