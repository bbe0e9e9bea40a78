"""LLaVA-NeXT-Video as transformers implements it: CLIP tower with a class token, pooled features, Vicuna (Llama).

Not LLaVA-Video, which has a SigLIP tower and Qwen2 and runs on the LLaVA-OneVision class. There is no newline after a
video's tokens: 24 x 24 patches are pooled to 12 x 12 tokens a frame, before the projector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from holitom.errors import UnsupportedModel
from holitom.models.base import AdapterBase
from holitom.models.encoding import EncodedVideos, Probe, Reading, clock, mean_keys, probing
from holitom.models.llava_onevision import core_of, frames_of
from holitom.types import VideoFeatures
from holitom.versions import require_transformers


class LlavaNextVideo(AdapterBase):
    """Adapter of ``LlavaNextVideoForConditionalGeneration`` (or of its inner ``LlavaNextVideoModel``)."""

    embeds_videos = True

    def __init__(self, model: nn.Module) -> None:
        require_transformers()
        self.core = core_of(model)
        self.config: Any = model.config
        self.text = self.core.language_model
        self.layers = self.text.layers
        self.rotary = self.text.rotary_emb
        self.video_token_id: int = self.config.video_token_id
        vision = self.config.vision_config
        self.side = vision.image_size // vision.patch_size // self.config.spatial_pool_stride
        if not isinstance(self.config.vision_feature_layer, int):
            raise UnsupportedModel("features of several layers are not supported", fix="set one vision_feature_layer")
        if self.config.vision_feature_select_strategy != "default":
            raise UnsupportedModel(
                "with the class token among the features they are no grid",
                fix="set vision_feature_select_strategy to 'default'",
            )

    def vision_attention(self) -> nn.Module:
        """The attention of the layer whose output the features are (the last but one in the published models)."""
        found = [m for m in self.core.vision_tower.modules() if type(m).__name__ == "CLIPAttention"]
        depth, layer = len(found), self.config.vision_feature_layer
        index = depth + layer if layer < 0 else layer - 1  # state 0 is the embedding, state i the output of layer i - 1
        if not 0 <= index < depth:
            raise UnsupportedModel(
                f"vision_feature_layer {layer} is no output of the {depth} CLIP attentions of "
                f"{type(self.core.vision_tower).__name__}",
                fix="use a model with a CLIP tower and the published setting, -2",
            )
        return found[index]

    def encode(self, pixels: Tensor | Sequence[Tensor], requires: frozenset[str] = frozenset()) -> EncodedVideos:
        """One tower pass over all frames of all videos: pixels [B, T, 3, H, W], or one [T, 3, H, W] per video.

        saliency is what the class token gives each patch (mean over heads, without its own share, float32), pooled by
        averaging like the features; keys are those of the patches. frame_embed is the mean of the frame's tokens.
        """
        frames, sizes = frames_of(pixels)
        tower = self.core.vision_tower
        frames = frames.to(next(tower.parameters()).device)
        start, probe = clock(frames.device), Probe()
        if {"saliency", "keys"} & requires:
            with probing(self.vision_attention(), _reader("saliency" in requires, "keys" in requires)) as probe:
                patches = self._tower(frames)
        else:
            patches = self._tower(frames)
        tokens = self.core.multi_modal_projector(self.core.vision_resampler(patches))
        pooled = {
            "tokens": tokens,
            "saliency": None if probe.saliency is None else self._mean(probe.saliency[..., None]).squeeze(-1),
            "keys": None if probe.keys is None else self._mean(probe.keys),
            "frame_embed": tokens.mean(1) if "frame_embed" in requires else None,
        }
        seconds = {"vision": clock(frames.device) - start - probe.seconds, "saliency": probe.seconds}
        split = {name: value.split(sizes) for name, value in pooled.items() if value is not None}
        grid = (self.side, self.side)
        videos = (VideoFeatures(grid=grid, **{n: parts[i] for n, parts in split.items()}) for i in range(len(sizes)))
        return EncodedVideos(videos=tuple(videos), seconds=seconds)

    def _tower(self, frames: Tensor) -> Tensor:
        layer = self.config.vision_feature_layer
        states = self.core.vision_tower(frames, output_hidden_states=layer or True, return_dict=True).hidden_states
        return states[layer][:, 1:]

    def _mean(self, patches: Tensor) -> Tensor:
        """[F, P, C] -> [F, N, C]: means over the squares that the resampler pools (also where it convolves)."""
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        maps = patches.transpose(1, 2).unflatten(2, (side, side))
        return F.avg_pool2d(maps, self.config.spatial_pool_stride).flatten(2).transpose(1, 2)


def _reader(saliency: bool, keys: bool) -> Any:
    def read(attention: Any, hidden: Tensor, _: Any) -> Reading:
        received = None
        if saliency:
            heads = (attention.num_heads, attention.head_dim)
            query = attention.q_proj(hidden[:, :1]).unflatten(-1, heads).transpose(1, 2).float() * attention.scale
            key = attention.k_proj(hidden).unflatten(-1, heads).transpose(1, 2).float()
            received = (query @ key.transpose(-1, -2)).softmax(-1).mean(1)[:, 0, 1:]
        return received, mean_keys(attention, hidden)[:, 1:] if keys else None

    return read
