"""The original ``llava`` package (repository LLaVA-NeXT): LLaVA-OneVision and LLaVA-Video with Qwen2, as released.

Nothing of it is imported or edited here: the adapter asks the loaded model for its tower, projector and pooling. The
package needs transformers 4.51 in an environment of its own (docs/llava.md)."""

from typing import Any

from torch import Tensor, nn

from holitom.errors import UnsupportedModel
from holitom.models.llava_onevision import LlavaOnevision, newline_order

IMAGE_TOKEN = -200
"""What stands for an image or a video in a prompt of that package (its constant IMAGE_TOKEN_INDEX)."""


class LlavaPackage(LlavaOnevision):
    """Adapter of ``LlavaQwenForCausalLM``. The release pools the attention of all frames of a batch for each of its
    videos; here every video gets its own frames'. owner: the module that has the package's methods."""

    video_token_id = IMAGE_TOKEN

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
