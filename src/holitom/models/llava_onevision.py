"""The LLaVA families: LLaVA-OneVision (SigLIP tower, two-layer projector, pooling, Qwen2 or Llama decoder), LLaVA-Video
in the same format and LLaVA-NeXT-Video as transformers has them, and the original ``llava`` package.

LLaVA-Video checkpoints differ in two settings, named as in the LLaVA-NeXT repository and read from the model's config:
``mm_spatial_pool_mode`` "bilinear" (default: 27 x 27 patches -> 14 x 14) or "average" (2 x 2 means, an odd last row and
column left out: 27 x 27 -> 13 x 13), and ``mm_newline_position`` "one_token" (default), "grid" (a newline per row) or
"no_token"."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import zip_longest
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holitom.errors import BadUsage, UnsupportedModel
from holitom.models import Adapter, Order, device_of, own_weight
from holitom.models.saliency import HUB, PoolingHead, load_pooling_head, mean_keys, probing, received_attention
from holitom.types import MergedFrames, VideoFeatures

NEWLINE_ORDERS: dict[str, Order] = {"one_token": "end", "grid": "row", "no_token": "none"}


def pool_mode(config: Any) -> str:
    """How features are pooled: "bilinear" or "average"."""
    return _setting(config, "mm_spatial_pool_mode", "bilinear", "average")


def newline_order(config: Any) -> Order:
    """Where newlines go, in the words of holitom.models."""
    return NEWLINE_ORDERS[_setting(config, "mm_newline_position", *NEWLINE_ORDERS)]


def _setting(config: Any, name: str, *known: str) -> str:
    """A setting of the config, the first of the known ones where there is none; UnsupportedModel for another."""
    value = getattr(config, name, None) or known[0]
    if value not in known:
        raise UnsupportedModel(f"{name} {value!r} is not known", fix=f"use one of {', '.join(known)}")
    return value


def full_length(config: Any, frames: int) -> int:
    """Embeddings of an unreduced video in the prompt, newlines included: the placeholders that it needs."""
    patches = config.vision_config.image_size // config.vision_config.patch_size
    side = -(-patches // 2) if pool_mode(config) == "bilinear" else patches // 2
    return frames * side * side + {"end": 1, "row": frames * side, "none": 0}[newline_order(config)]


def average_pool(patches: Tensor, stride: int) -> Tensor:
    """[F, P, C] -> [F, N, C]: means over squares of a square frame; what is left over at its edges is left out."""
    maps = patches.transpose(1, 2).unflatten(2, (isqrt(patches.shape[1]), -1))
    return F.avg_pool2d(maps, stride).flatten(2).transpose(1, 2)


class LlavaOnevision(Adapter):
    """Adapter of ``LlavaOnevisionForConditionalGeneration`` (or of its inner ``LlavaOnevisionModel``). The other LLaVA
    families derive from it and say what their tower, projector and pooling are."""

    head_source: str | Path = HUB
    """The folder or hub id from which SigLIP's pooling head is read when a method asks for it."""
    attention_class = "SiglipAttention"
    class_token = 0  # how many tokens stand before a frame's patches in the tower

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, "vision_tower")
        self.newline_order = newline_order(self.config)
        self.average = pool_mode(self.config) == "average"

    @property
    def newline(self) -> Tensor | None:
        return own_weight(self.core, "image_newline")

    def vision_attention(self) -> nn.Module:
        """The attention that saliency and keys are read from: that of the tower's last layer."""
        return self.attentions()[-1]

    def attentions(self) -> list[nn.Module]:
        """The attentions of the tower's layers, found by class name, whatever the path to them."""
        name = self.attention_class.lower()
        found = [module for module in self.tower.modules() if type(module).__name__.lower() == name]
        if not found:
            what = f"the vision tower {type(self.tower).__name__} has no {self.attention_class}"
            raise UnsupportedModel(what, fix="use the published tower, or give features with run.provide(...)")
        return found

    def patches(self, frames: Tensor) -> Tensor:
        """Pixels [F, 3, H, W] -> what the projector takes [F, P, C], from ``config.vision_feature_layer``."""
        layer = self.config.vision_feature_layer
        wanted = True if layer == 0 else layer  # transformers >= 5.20 keeps only these; a true value keeps all before
        states = self.tower(frames, output_hidden_states=wanted, return_dict=True).hidden_states
        chosen = states[layer] if isinstance(layer, int) else torch.cat([states[i] for i in layer], dim=-1)
        return chosen[:, 1:] if self.config.vision_feature_select_strategy == "default" else chosen

    def tokens(self, patches: Tensor) -> Tensor:
        """[F, P, C] -> projected and pooled [F, N, D]."""
        return self.pool(self.core.multi_modal_projector(patches))

    def pool(self, patches: Tensor) -> Tensor:
        """[F, P, C] -> [F, N, C], as this model pools its features."""
        return average_pool(patches, 2) if self.average else self.core.apply_pooling(patches)

    def pooling_head(self) -> PoolingHead:
        config = next(module.config for module in self.tower.modules() if hasattr(module, "config"))  # may be wrapped
        return load_pooling_head(self.head_source, config.hidden_size)

    def encode(
        self,
        pixels: Tensor | Sequence[Tensor],
        requires: frozenset[str] = frozenset(),
        tower: Callable[[list[int]], AbstractContextManager[list[MergedFrames]]] = lambda frames: nullcontext([]),
    ) -> list[VideoFeatures]:
        """One tower pass over all frames of all videos: pixels [B, T, 3, H, W], or one [T, 3, H, W] per video.

        requires: the optional fields to fill. saliency and keys come from ``vision_attention()``, wherever the features
        come from. frame_embed and head_saliency are the output of SigLIP's own pooling head and the attention of its
        query; these checkpoints leave the head out, so it is read apart (models.saliency). tower: frames per video
        -> a block in which a stage works inside the tower (attach.tower), and what it did.
        """
        clips = list(pixels)
        if not clips or any(clip.ndim != 4 for clip in clips):
            what = f"pixel_values_videos of shapes {[list(clip.shape) for clip in clips]}"
            raise BadUsage(what, fix="give [videos, frames, 3, height, width], or a list of them")
        head = self.pooling_head() if {"frame_embed", "head_saliency"} & requires else None
        attention = self.vision_attention() if {"saliency", "keys"} & requires else None
        frames = clips[0] if len(clips) == 1 else torch.cat(clips)
        frames = frames.to(device_of(self.tower, frames))
        with tower([len(clip) for clip in clips]) as merged, probing(attention, "q_proj", "k_proj") as seen:
            patches = self.patches(frames)
        tokens = self.tokens(patches)
        fields: dict[str, Tensor] = {}
        if attention:
            query, key = (seen[name].unflatten(-1, (attention.num_heads, -1)) for name in ("q_proj", "k_proj"))
            if "saliency" in requires:
                asking = query[:, :1] if self.class_token else query
                received = received_attention(asking, key, attention.scale)[:, self.class_token :]
                fields["saliency"] = self.pool(received[..., None]).squeeze(-1)
            if "keys" in requires:
                fields["keys"] = self.pool(mean_keys(key)[:, self.class_token :])
        if head:
            embed, received = head.to(patches.device)(patches)
            found = {"frame_embed": embed, "head_saliency": self.pool(received[..., None]).squeeze(-1)}
            fields |= {name: value for name, value in found.items() if name in requires}
        sizes = [len(one.first) for one in merged] or [len(clip) for clip in clips]
        split = {name: value.to(tokens.device).split(sizes) for name, value in fields.items()}
        side = isqrt(tokens.shape[1])
        return [
            VideoFeatures(part, (side, side), **{name: parts[i] for name, parts in split.items()}, merged=done)
            for i, (part, done) in enumerate(zip_longest(tokens.split(sizes), merged))
        ]


class LlavaNextVideo(LlavaOnevision):
    """Adapter of ``LlavaNextVideoForConditionalGeneration`` (or of its inner ``LlavaNextVideoModel``): CLIP tower with
    a class token, pooled features, Vicuna (Llama). Not LLaVA-Video, which has a SigLIP tower and Qwen2.

    There is no newline after a video's tokens: 24 x 24 patches are pooled to 12 x 12 tokens a frame, before the
    projector. Saliency is what the class token gives each patch, without its own share, pooled by averaging, also where
    the resampler convolves."""

    attention_class = "CLIPAttention"
    class_token = 1
    newline = None

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.newline_order = "none"

    def vision_attention(self) -> nn.Module:
        """The attention of the layer whose output the features are (the last but one in the published models)."""
        layer = self.config.vision_feature_layer
        return self.attentions()[layer if layer < 0 else layer - 1]  # state 0 is what enters the first layer

    def tokens(self, patches: Tensor) -> Tensor:
        return self.core.multi_modal_projector(self.core.vision_resampler(patches))

    def pool(self, patches: Tensor) -> Tensor:
        return average_pool(patches, self.config.spatial_pool_stride)

    def pooling_head(self) -> PoolingHead:
        return Adapter.pooling_head(self)


class LlavaPackage(LlavaOnevision):
    """Adapter of ``LlavaQwenForCausalLM`` of the package ``llava`` (repository LLaVA-NeXT): LLaVA-OneVision and
    LLaVA-Video with Qwen2, as released. owner: the module that has the package's methods.

    Nothing of the package is imported or edited: the loaded model is asked for its tower, projector and pooling. It
    needs transformers 4.51 in an environment of its own (docs/llava.md). The release pools the attention of all frames
    of a batch for each of its videos; here every video gets its own frames'."""

    video_token_id = -200  # what stands for an image or a video in a prompt: the package's IMAGE_TOKEN_INDEX

    def __init__(self, model: nn.Module) -> None:
        found = (m for m in model.modules() if any(c.__name__ == "LlavaMetaForCausalLM" for c in type(m).__mro__))
        self.owner: Any = next(found)
        self.core = self.text = self.owner.get_model()
        self.config, self.tower = self.owner.config, self.owner.get_vision_tower()
        self.layers, self.rotary = self.core.layers, self.core.rotary_emb
        if getattr(self.config, "add_faster_video", False):
            raise UnsupportedModel("add_faster_video mixes two poolings of a frame", fix="use a model without it")
        merge, order = getattr(self.config, "mm_patch_merge_type", None) or "flat", newline_order(self.config)
        bare = merge == "flat" or (order == "end" and "unpad" not in merge)  # as llava_arch.py reads them
        self.newline_order = "none" if bare else order

    @property
    def newline(self) -> Tensor | None:
        return super().newline if hasattr(self.core, "image_newline") else None

    def patches(self, frames: Tensor) -> Tensor:
        return self.tower(frames)

    def tokens(self, patches: Tensor) -> Tensor:
        return self.pool(self.core.mm_projector(patches))

    def pool(self, patches: Tensor) -> Tensor:
        return self.owner.get_2dPool(patches)
