"""Qwen2.5-VL as transformers implements it: frames in pairs, merged 2 x 2, rotary positions in time, rows and columns.

A token of a video is one 2 x 2 merge of patches of one pair of frames: T counts pairs, and N = h * w / 4 differs from
video to video. There is no newline. Every token that is kept, before or inside the language model, keeps its three
positions (M-RoPE), whatever the stage's own policy: there is no other numbering that the model has been trained on."""

import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from holitom.errors import BadUsage
from holitom.models import Adapter, device_of
from holitom.models.saliency import mean_keys, probing, received_attention
from holitom.types import VideoFeatures


class Qwen25VL(Adapter):
    """Adapter of ``Qwen2_5_VLForConditionalGeneration`` (or of its inner ``Qwen2_5_VLModel``)."""

    video_inputs = ("video_grid_thw",)

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, "visual")
        self.merge: int = self.config.vision_config.spatial_merge_size
        self.whole: int = max(self.tower.fullatt_block_indexes)

    def vision_attention(self) -> nn.Module:
        """The attention of the tower's last block that sees whole frames: the others see windows of 8 x 8 patches, in
        which a patch can receive nothing from outside. In the published models it is also the last block."""
        return self.tower.blocks[self.whole].attn

    def encode(
        self,
        pixels: Tensor | Sequence[Tensor],
        requires: frozenset[str] = frozenset(),
        video_grid_thw: Tensor | None = None,
    ) -> list[VideoFeatures]:
        """One tower pass over all videos: pixels [patches, values], video_grid_thw [videos, 3], as the processor makes
        them.

        saliency and keys come from ``vision_attention()``, as means over the patches of a token; keys without rotary
        positions. There is no pooling head, so frame_embed and head_saliency are refused.
        """
        if video_grid_thw is None:
            what = "Qwen2.5-VL needs video_grid_thw [videos, 3] beside its pixels [patches, values]"
            raise BadUsage(what, fix="give both, as the model's processor makes them")
        if {"frame_embed", "head_saliency"} & requires:
            self.pooling_head()
        attention = self.vision_attention() if {"saliency", "keys"} & requires else None
        pixels = pixels.to(device_of(self.tower, pixels), self.tower.dtype)
        with probing(attention, "qkv") as seen:
            tokens = self.tower(pixels, grid_thw=video_grid_thw).pooler_output
        fields = {"tokens": tokens}
        if attention:
            library = sys.modules[type(attention).__module__]
            query, key, _ = seen["qkv"].unflatten(-1, (3, attention.num_heads, -1)).unbind(1)
            if "saliency" in requires:
                turned = library.apply_rotary_pos_emb_vision(query, key, *seen["position_embeddings"])
                frames = (tuple(part[a:b][None] for part in turned) for a, b in pairwise(seen["cu_seqlens"].tolist()))
                fields["saliency"] = torch.cat([received_attention(*qk, attention.scaling)[0] for qk in frames])
            if "keys" in requires:
                fields["keys"] = mean_keys(key)
            settings = ("spatial_merge_size", "window_size", "patch_size")
            windows = library.get_vision_window_index(video_grid_thw, **{n: getattr(self.tower, n) for n in settings})
            order = torch.argsort(torch.as_tensor(windows[0])).to(tokens.device)  # the tower works window by window
            for name in fields.keys() - {"tokens"}:  # of patches
                fields[name] = fields[name].unflatten(0, (-1, self.merge**2)).mean(1).to(tokens.device)[order]
        sizes = [(t, h // self.merge, w // self.merge) for t, h, w in video_grid_thw.tolist()]
        split = {name: values.split([t * h * w for t, h, w in sizes]) for name, values in fields.items()}
        return [
            VideoFeatures(grid=(h, w), **{name: parts[i].unflatten(0, (t, -1)) for name, parts in split.items()})
            for i, (t, h, w) in enumerate(sizes)
        ]

    def grid_positions(self, kwargs: Mapping[str, Any]) -> Tensor:
        """Positions in time, rows and columns [3, B, S] of the whole prompt: those given, or the model's own."""
        given = kwargs.get("position_ids")
        if given is not None:
            return given[-3:] if given.ndim == 3 else given.expand(3, -1, -1)
        if kwargs.get("mm_token_type_ids") is None or kwargs.get("video_grid_thw") is None:
            what = "the positions of a video's tokens need mm_token_type_ids and video_grid_thw"
            raise BadUsage(what, fix="give all that the model's processor makes")
        names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "attention_mask", "mm_token_type_ids")
        found, deltas = self.core.get_rope_index(kwargs["input_ids"], **{name: kwargs.get(name) for name in names})
        self.core.rope_deltas = deltas  # as the model's own forward does
        return found
