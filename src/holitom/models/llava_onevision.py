"""LLaVA-OneVision as transformers implements it: SigLIP tower, two-layer projector, pooling, Qwen2 (or Llama) decoder.

LLaVA-Video checkpoints in the same format differ in two settings, named as in the LLaVA-NeXT repository and read from
the model's config: ``mm_spatial_pool_mode`` "bilinear" (default: 27 x 27 patches -> 14 x 14) or "average" (2 x 2
means, an odd last row and column left out: 27 x 27 -> 13 x 13), and ``mm_newline_position`` "one_token" (default),
"grid" (a newline per row) or "no_token"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holitom.errors import BadUsage, UnsupportedModel
from holitom.models.base import AdapterBase
from holitom.models.encoding import EncodedVideos, clock, probe_attention
from holitom.models.siglip_head import HUB, HeadRecord, PoolingHead, find_pooling_head
from holitom.types import VideoFeatures
from holitom.versions import FORWARD_ONLY, require_transformers

Order = Literal["end", "row", "none"]
NEWLINE_ORDERS: dict[str, Order] = {"one_token": "end", "grid": "row", "no_token": "none"}
POOL_MODES = ("bilinear", "average")


def pool_mode(config: Any) -> str:
    """How features are pooled: "bilinear" or "average"."""
    mode = getattr(config, "mm_spatial_pool_mode", None) or "bilinear"
    if mode not in POOL_MODES:
        raise UnsupportedModel(f"mm_spatial_pool_mode {mode!r} is not known", fix=f"use one of {', '.join(POOL_MODES)}")
    return mode


def newline_order(config: Any) -> Order:
    """Where newlines go, in the words of holitom.layout."""
    position = getattr(config, "mm_newline_position", None) or "one_token"
    if position not in NEWLINE_ORDERS:
        known = ", ".join(NEWLINE_ORDERS)
        raise UnsupportedModel(f"mm_newline_position {position!r} is not known", fix=f"use one of {known}")
    return NEWLINE_ORDERS[position]


def pooled_grid(config: Any) -> tuple[int, int]:
    """Rows and columns of a frame after pooling with stride 2."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    side = -(-side // 2) if pool_mode(config) == "bilinear" else side // 2
    return side, side


def full_length(config: Any, frames: int) -> int:
    """Embeddings of an unreduced video in the prompt, newlines included: the placeholders that it needs."""
    rows, columns = pooled_grid(config)
    newlines = {"end": 1, "row": frames * rows, "none": 0}[newline_order(config)]
    return frames * rows * columns + newlines


def core_of(model: nn.Module) -> Any:
    """The module that joins tower and language model, wherever wrappers (PEFT, for one) have put it."""
    found = (m for m in model.modules() if {"vision_tower", "language_model"} <= set(m._modules))
    core = next(found, None)
    if core is None:
        raise UnsupportedModel(
            f"{type(model).__name__} has no vision_tower beside a language_model", fix="give the whole model"
        )
    return core


def frames_of(pixels: Tensor | Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """Pixels [B, T, 3, H, W], or one [T, 3, H, W] per video -> all frames [F, 3, H, W], and frames per video."""
    videos = list(pixels)
    if not videos or any(v.ndim != 4 for v in videos):
        raise BadUsage(
            f"pixel_values_videos of shapes {[list(v.shape) for v in videos]}",
            fix="give [videos, frames, 3, height, width], or a list of them",
        )
    return videos[0] if len(videos) == 1 else torch.cat(videos), [len(v) for v in videos]


class LlavaOnevision(AdapterBase):
    """Adapter of ``LlavaOnevisionForConditionalGeneration`` (or of its inner ``LlavaOnevisionModel``)."""

    embeds_videos = True

    def __init__(self, model: nn.Module) -> None:
        require_transformers(minimum=FORWARD_ONLY)  # generate() is checked where it is called
        self.core = core_of(model)
        self.config: Any = model.config
        self.text = self.core.language_model
        self.layers = self.text.layers
        self.rotary = self.text.rotary_emb
        self.video_token_id: int = self.config.video_token_id
        self.pool_mode, self.newline_order = pool_mode(self.config), newline_order(self.config)
        self.head_source: str | Path = HUB
        self.head_record: HeadRecord | None = None
        self._head: PoolingHead | None = None

    @property
    def newline(self) -> Tensor:
        return self.core.image_newline

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a frame after pooling."""
        return pooled_grid(self.config)

    def vision_attention(self) -> nn.Module:
        """The attention of the tower's last kept layer, found by class name, whatever the path to it."""
        found = [m for m in self.core.vision_tower.modules() if type(m).__name__.lower() == "siglipattention"]
        if not found:
            raise UnsupportedModel(
                f"the vision tower {type(self.core.vision_tower).__name__} has no SigLIP attention",
                fix="use a model with a SigLIP tower, or give the features yourself with run.provide(...)",
            )
        return found[-1]

    def pool(self, patches: Tensor) -> Tensor:
        """[F, P, C] -> [F, N, C], as this model pools its features."""
        if self.pool_mode == "bilinear":
            return self.core.apply_pooling(patches)
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        maps = patches.transpose(1, 2).unflatten(2, (side, side))
        return F.avg_pool2d(maps, kernel_size=2, stride=2).flatten(2).transpose(1, 2)

    def encode(self, pixels: Tensor | Sequence[Tensor], requires: frozenset[str] = frozenset()) -> EncodedVideos:
        """One tower pass over all frames of all videos: pixels [B, T, 3, H, W], or one [T, 3, H, W] per video.

        requires: the optional VideoFeatures fields to fill. SigLIP's own pooling head is not part of these checkpoints:
        where it can be had for this tower (models.siglip_head), frame_embed is its output and saliency the attention
        of its query; otherwise frame_embed is the mean of the frame's tokens and saliency the attention received.
        ``head_record`` says which. The features come from ``config.vision_feature_layer``, saliency
        and keys always from the tower's last layer.
        """
        frames, sizes = frames_of(pixels)
        saliency, keys = "saliency" in requires, "keys" in requires
        frames = frames.to(next(self.core.vision_tower.parameters()).device)
        start = clock(frames.device)
        if saliency or keys:
            with probe_attention(self.vision_attention(), saliency=saliency, keys=keys) as probe:
                patches = self._tower(frames)
        else:
            probe, patches = None, self._tower(frames)
        tokens = self.pool(self.core.multi_modal_projector(patches))
        received = probe.saliency if saliency else None
        embed = None
        if "frame_embed" in requires:
            head = self._pooling_head(patches)
            embed, received = head(patches) if head else (tokens.mean(1), received)
        pooled = {
            "saliency": self.pool(received[..., None]).squeeze(-1) if saliency else None,
            "keys": self.pool(probe.keys) if keys else None,
            "frame_embed": embed,
        }
        seconds = {"vision": clock(frames.device) - start, "saliency": probe.seconds if probe else 0.0}
        seconds["vision"] -= seconds["saliency"]
        split = {name: value.split(sizes) for name, value in pooled.items() if value is not None}
        features = tuple(
            VideoFeatures(part, self.grid, **{name: parts[i] for name, parts in split.items()})
            for i, part in enumerate(tokens.split(sizes))
        )
        return EncodedVideos(videos=features, seconds=seconds)

    def _pooling_head(self, patches: Tensor) -> PoolingHead | None:
        if self.head_record is None:  # asked for once
            self._head, self.head_record = find_pooling_head(patches.shape[-1], self.head_source)
        return self._head.to(patches.device) if self._head else None

    def _tower(self, frames: Tensor) -> Tensor:
        layer = self.config.vision_feature_layer
        wanted = True if layer == 0 else layer  # transformers >= 5.20 keeps only these; a true value keeps all before
        states = self.core.vision_tower(frames, output_hidden_states=wanted, return_dict=True).hidden_states
        chosen = states[layer] if isinstance(layer, int) else torch.cat([states[i] for i in layer], dim=-1)
        return chosen[:, 1:] if self.config.vision_feature_select_strategy == "default" else chosen
