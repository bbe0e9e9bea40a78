"""Qwen2.5-VL as transformers implements it: frames in pairs, merged 2 x 2, rotary positions in time, rows and columns.

A token of a video is one 2 x 2 merge of patches of one pair of frames: T counts pairs, and N = h * w / 4 differs from
video to video. There is no newline. Every token that is kept, before or inside the language model, keeps its three
positions (M-RoPE), whatever the stage's own policy: there is no other numbering that the model has been trained on."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from holitom.errors import BadUsage, UnsupportedModel
from holitom.models.base import AdapterBase
from holitom.models.encoding import EncodedVideos, Probe, clock, map_bytes, probing
from holitom.types import VideoFeatures
from holitom.versions import require_transformers


class Qwen25VL(AdapterBase):
    """Adapter of ``Qwen2_5_VLForConditionalGeneration`` (or of its inner ``Qwen2_5_VLModel``)."""

    video_inputs = ("video_grid_thw",)

    def __init__(self, model: nn.Module) -> None:
        require_transformers()
        parts = {"visual", "language_model"}
        core = next((m for m in model.modules() if parts <= set(m._modules)), None)
        if core is None:
            raise UnsupportedModel(
                f"{type(model).__name__} has no visual beside a language_model", fix="give the whole model"
            )
        self.core: Any = core
        self.config: Any = model.config
        self.text = core.language_model
        self.layers = self.text.layers
        self.rotary = self.text.rotary_emb
        self.video_token_id: int = self.config.video_token_id
        self.merge: int = self.config.vision_config.spatial_merge_size

    def vision_attention(self) -> nn.Module:
        """The attention of the tower's last block that sees whole frames: the others see windows of 8 x 8 patches, in
        which a patch can receive nothing from outside. In the published models it is also the last block."""
        visual = self.core.visual
        whole = [i for i in visual.fullatt_block_indexes if i < len(visual.blocks)]
        if not whole:
            raise UnsupportedModel(
                "no block of this vision tower attends to whole frames", fix="use a method that needs no saliency"
            )
        return visual.blocks[max(whole)].attn

    def encode(
        self,
        pixels: Tensor | Sequence[Tensor],
        requires: frozenset[str] = frozenset(),
        video_grid_thw: Tensor | None = None,
    ) -> EncodedVideos:
        """One tower pass over all videos: pixels [patches, values], video_grid_thw [videos, 3], as the processor makes
        them.

        saliency and keys come from ``vision_attention()``, as means over the patches of a token; keys without rotary
        positions. frame_embed is the mean of the tokens of a pair of frames.
        """
        if video_grid_thw is None or not isinstance(pixels, Tensor) or pixels.ndim != 2:
            raise BadUsage(
                "Qwen2.5-VL needs pixel_values_videos [patches, values] and video_grid_thw [videos, 3]",
                fix="give both, as the model's processor makes them",
            )
        visual, sizes = self.core.visual, video_grid_thw.tolist()
        saliency, keys = "saliency" in requires, "keys" in requires
        pixels = pixels.to(device=next(visual.parameters()).device, dtype=visual.dtype)
        start = clock(pixels.device)
        probe = Probe()
        if saliency or keys:
            with probing(self.vision_attention(), _reader(saliency, keys)) as probe:
                tokens = visual(pixels, grid_thw=video_grid_thw).pooler_output
        else:
            tokens = visual(pixels, grid_thw=video_grid_thw).pooler_output
        counts = [t * h * w // self.merge**2 for t, h, w in sizes]
        parts = {"tokens": tokens, "saliency": probe.saliency, "keys": probe.keys}
        if saliency or keys:
            order = self._raster(video_grid_thw)
            for name in ("saliency", "keys"):
                if parts[name] is not None:
                    parts[name] = parts[name].unflatten(0, (-1, self.merge**2)).mean(1)[order.to(parts[name].device)]
        seconds = {"vision": clock(pixels.device) - start - probe.seconds, "saliency": probe.seconds}
        split = {name: value.split(counts) for name, value in parts.items() if value is not None}
        videos = []
        for i, (t, h, w) in enumerate(sizes):
            own = {name: pieces[i].unflatten(0, (t, -1)) for name, pieces in split.items()}
            if "frame_embed" in requires:
                own["frame_embed"] = own["tokens"].mean(1)
            videos.append(VideoFeatures(grid=(h // self.merge, w // self.merge), **own))
        return EncodedVideos(videos=tuple(videos), seconds=seconds)

    def grid_positions(self, kwargs: Mapping[str, Any]) -> Tensor:
        """Positions in time, rows and columns [3, B, S] of the whole prompt: those given, or the model's own."""
        given = kwargs.get("position_ids")
        if given is not None:
            return given[-3:] if given.ndim == 3 else given.expand(3, -1, -1)
        if kwargs.get("mm_token_type_ids") is None or kwargs.get("video_grid_thw") is None:
            raise BadUsage(
                "the positions of a video's tokens need mm_token_type_ids and video_grid_thw",
                fix="give all that the model's processor makes",
            )
        names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "attention_mask", "mm_token_type_ids")
        found, deltas = self.core.get_rope_index(kwargs["input_ids"], **{name: kwargs.get(name) for name in names})
        self.core.rope_deltas = deltas  # as the model's own forward does
        return found

    def packed(self, rows: Tensor) -> Any:
        return (rows,)

    def _raster(self, grid_thw: Tensor) -> Tensor:
        """For every token in reading order, its place in the order of windows in which the tower works."""
        visual: Any = self.core.visual
        find = sys.modules[type(visual).__module__].get_vision_window_index
        windows, _ = find(
            grid_thw,
            spatial_merge_size=visual.spatial_merge_size,
            window_size=visual.window_size,
            patch_size=visual.patch_size,
        )
        return torch.argsort(torch.as_tensor(windows, device=next(visual.parameters()).device))


def _reader(saliency: bool, keys: bool) -> Any:
    """What is read of the probed attention's input: received attention and keys of every patch, as the tower orders
    them."""

    def read(attention: Any, hidden: Tensor, kwargs: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        query, key, _ = attention.qkv(hidden).reshape(len(hidden), 3, attention.num_heads, -1).unbind(1)
        mean_keys = key.mean(1) if keys else None
        if not saliency:
            return None, mean_keys
        rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb_vision
        query, key = rotate(query, key, *kwargs["position_embeddings"])
        ends = kwargs["cu_seqlens"].tolist()
        pieces = [_received(query[a:b], key[a:b], attention.scaling) for a, b in pairwise(ends)]
        return torch.cat(pieces), mean_keys

    return read


def _received(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Column means of softmax(q k^T) over heads and queries of one frame [P, heads, width] -> [P] float32, in blocks of
    queries that bound the memory."""
    patches, heads, _ = query.shape
    query, key = query.transpose(0, 1).float() * scale, key.permute(1, 2, 0).float()
    total = query.new_zeros(patches)
    for rows in query.split(max(1, map_bytes(query) // (4 * heads * patches)), dim=1):
        total += (rows @ key).softmax(-1).sum((0, 1))
    return total / (heads * patches)
