"""The original ``llava`` package (repository LLaVA-NeXT): LLaVA-OneVision and LLaVA-Video with Qwen2, as released.

Nothing of it is imported or edited here: the adapter asks the loaded model for its tower, projector and pooling. The
package needs transformers 4.51 in an environment of its own (docs/llava.md)."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any, Literal

from torch import Tensor, nn

from holitom.errors import UnsupportedModel
from holitom.models.base import AdapterBase
from holitom.models.encoding import EncodedVideos, Probe, clock, probe_attention
from holitom.models.llava_onevision import frames_of, newline_order
from holitom.types import VideoFeatures

Order = Literal["end", "row", "none"]
IMAGE_TOKEN = -200
"""What stands for an image or a video in a prompt of that package (its constant IMAGE_TOKEN_INDEX)."""


class LlavaPackage(AdapterBase):
    """Adapter of ``LlavaQwenForCausalLM``."""

    video_token_id = IMAGE_TOKEN

    def __init__(self, model: nn.Module) -> None:
        found = (m for m in model.modules() if any(c.__name__ == "LlavaMetaForCausalLM" for c in type(m).__mro__))
        owner = next(found, None)
        if owner is None:
            raise UnsupportedModel(f"{type(model).__name__} has no LlavaMetaForCausalLM in it", fix="give that model")
        self.owner: Any = owner
        self.core: Any = owner.get_model()
        self.config: Any = owner.config
        self.text = self.core
        self.layers, self.rotary = self.core.layers, self.core.rotary_emb
        self.newline_order: Order = _order(self.config)

    @property
    def newline(self) -> Tensor | None:
        return getattr(self.core, "image_newline", None)

    def vision_attention(self) -> nn.Module:
        """The attention of the tower's last layer; the package has deleted the one behind it when loading."""
        tower = self.owner.get_vision_tower()
        found = [m for m in tower.modules() if type(m).__name__.lower() == "siglipattention"]
        if not found:
            raise UnsupportedModel(
                f"the vision tower {type(tower).__name__} has no SigLIP attention",
                fix="use a model with a SigLIP tower, or a method that needs no saliency",
            )
        return found[-1]

    def encode(self, pixels: Tensor | Sequence[Tensor], requires: frozenset[str] = frozenset()) -> EncodedVideos:
        """One tower pass over all frames of all videos: pixels [B, T, 3, H, W], or one [T, 3, H, W] per video.

        The released code pools the attention of all frames of a batch for each of its videos; here every video gets its
        own frames'. frame_embed is the mean of the frame's tokens.
        """
        frames, sizes = frames_of(pixels)
        frames = frames.to(next(self.owner.get_vision_tower().parameters()).device)
        saliency, keys = "saliency" in requires, "keys" in requires
        start, probe = clock(frames.device), Probe()
        if saliency or keys:
            with probe_attention(self.vision_attention(), saliency=saliency, keys=keys) as probe:
                patches = self.owner.encode_images(frames)
        else:
            patches = self.owner.encode_images(frames)
        tokens = self.owner.get_2dPool(patches)
        pooled = {
            "tokens": tokens,
            "saliency": self.owner.get_2dPool(probe.saliency[..., None]).squeeze(-1) if saliency else None,
            "keys": self.owner.get_2dPool(probe.keys) if keys else None,
            "frame_embed": tokens.mean(1) if "frame_embed" in requires else None,
        }
        seconds = {"vision": clock(frames.device) - start - probe.seconds, "saliency": probe.seconds}
        split = {name: value.split(sizes) for name, value in pooled.items() if value is not None}
        side = isqrt(tokens.shape[1])
        videos = (VideoFeatures(grid=(side, side), **{n: p[i] for n, p in split.items()}) for i in range(len(sizes)))
        return EncodedVideos(videos=tuple(videos), seconds=seconds)


def _order(config: Any) -> Order:
    """Where newlines go, from the settings as llava_arch.py reads them."""
    merge = getattr(config, "mm_patch_merge_type", None) or "flat"
    if getattr(config, "add_faster_video", False):
        raise UnsupportedModel("add_faster_video mixes two poolings of a frame", fix="use a model without it")
    if merge == "flat":
        return "none"
    order = newline_order(config)
    return "none" if order == "end" and "unpad" not in merge else order
