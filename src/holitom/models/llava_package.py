"""The original ``llava`` package (repository LLaVA-NeXT): LLaVA-OneVision and LLaVA-Video with Qwen2, as released.

Nothing of it is imported or edited here: the adapter asks the loaded model for its tower, projector and pooling. The
package needs transformers 4.51 in an environment of its own (docs/llava.md)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from holitom.errors import UnsupportedModel
from holitom.models.base import Order
from holitom.models.llava_onevision import LlavaOnevision, newline_order

IMAGE_TOKEN = -200
"""What stands for an image or a video in a prompt of that package (its constant IMAGE_TOKEN_INDEX)."""


class LlavaPackage(LlavaOnevision):
    """Adapter of ``LlavaQwenForCausalLM``. The release pools the attention of all frames of a batch for each of its
    videos; here every video gets its own frames'."""

    def __init__(self, model: nn.Module) -> None:
        found = (m for m in model.modules() if any(c.__name__ == "LlavaMetaForCausalLM" for c in type(m).__mro__))
        self.owner: Any = next(found, None)
        if self.owner is None:
            raise UnsupportedModel(f"{type(model).__name__} has no LlavaMetaForCausalLM in it", fix="give that model")
        self.core = self.text = self.owner.get_model()
        self.config = self.owner.config
        self.tower = self.owner.get_vision_tower()
        self.layers, self.rotary = self.core.layers, self.core.rotary_emb
        self.video_token_id = IMAGE_TOKEN
        self.newline_order = _order(self.config)

    @property
    def newline(self) -> Tensor | None:
        return super().newline if hasattr(self.core, "image_newline") else None

    def patches(self, frames: Tensor) -> Tensor:
        return self.tower(frames)

    def tokens(self, patches: Tensor) -> Tensor:
        return self.pool(self.core.mm_projector(patches))

    def pool(self, patches: Tensor) -> Tensor:
        return self.owner.get_2dPool(patches)


def _order(config: Any) -> Order:
    """Where newlines go, from the settings as llava_arch.py reads them."""
    merge = getattr(config, "mm_patch_merge_type", None) or "flat"
    if getattr(config, "add_faster_video", False):
        raise UnsupportedModel("add_faster_video mixes two poolings of a frame", fix="use a model without it")
    if merge == "flat":
        return "none"
    order = newline_order(config)
    return "none" if order == "end" and "unpad" not in merge else order
