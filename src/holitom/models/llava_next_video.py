"""LLaVA-NeXT-Video as transformers implements it: CLIP tower with a class token, pooled features, Vicuna (Llama).

Not LLaVA-Video, which has a SigLIP tower and Qwen2 and runs on the LLaVA-OneVision class. There is no newline after a
video's tokens: 24 x 24 patches are pooled to 12 x 12 tokens a frame, before the projector. Saliency is what the class
token gives each patch, without its own share, pooled by averaging, also where the resampler convolves."""

from __future__ import annotations

from torch import Tensor, nn

from holitom.errors import UnsupportedModel
from holitom.models.base import AdapterBase
from holitom.models.llava_onevision import LlavaOnevision, average_pool
from holitom.models.siglip_head import PoolingHead


class LlavaNextVideo(LlavaOnevision):
    """Adapter of ``LlavaNextVideoForConditionalGeneration`` (or of its inner ``LlavaNextVideoModel``)."""

    attention_class = "CLIPAttention"
    class_token = 1
    newline = None

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.newline_order = "none"
        if not isinstance(self.config.vision_feature_layer, int):
            raise UnsupportedModel("features of several layers are not supported", fix="set one vision_feature_layer")
        if self.config.vision_feature_select_strategy != "default":
            what = "with the class token among the features they are no grid"
            raise UnsupportedModel(what, fix="set vision_feature_select_strategy to 'default'")

    def vision_attention(self) -> nn.Module:
        """The attention of the layer whose output the features are (the last but one in the published models)."""
        found, layer = self.attentions(), self.config.vision_feature_layer
        index = layer + len(found) if layer < 0 else layer - 1  # state 0 is what enters the first layer
        if not 0 <= index < len(found):
            what = f"vision_feature_layer {layer} is no output of a tower of {len(found)} layers"
            raise UnsupportedModel(what, fix="use the published setting, -2")
        return found[index]

    def tokens(self, patches: Tensor) -> Tensor:
        return self.core.multi_modal_projector(self.core.vision_resampler(patches))

    def pool(self, patches: Tensor) -> Tensor:
        return average_pool(patches, self.config.spatial_pool_stride)

    def pooling_head(self) -> PoolingHead:
        return AdapterBase.pooling_head(self)
