"""vLLM's LLaVA-OneVision with an outer stage behind its projector, and with reduced videos as inputs."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.distributed import get_tp_group
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig

from holitom.models.saliency import mean_keys, probing, received_attention
from holitom.types import VideoFeatures
from holitom_vllm.setting import Setting, mean_over_ranks, setting_of


def _setting(model: Any) -> Setting:
    """What a ModelConfig of vLLM asks for."""
    asked = model.multimodal_config
    return setting_of(model.hf_config, asked.video_pruning_rate, asked.video_pruning_method)


class Info(LlavaOnevisionProcessingInfo):
    """The counts that the front end puts placeholders by."""

    def __init__(self, ctx: Any) -> None:
        self.setting = _setting(ctx.model_config)  # refuses, before a tower is loaded
        super().__init__(ctx)

    def get_num_video_tokens(self, *, image_width: int, image_height: int, num_frames: int) -> int:
        cells = self._get_num_frame_tokens(image_width=image_width, image_height=image_height)
        return self.setting.count(num_frames, cells) + 1  # the newline


class Processor(LlavaOnevisionMultiModalProcessor):
    """Takes videos as embeddings [M, D], too, which the stock class does not."""

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        return {**fields, "video_embeds": MultiModalFieldConfig.batched("video")}


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=LlavaOnevisionDummyInputsBuilder)
class HoliTomLlavaOnevision(LlavaOnevisionForConditionalGeneration):
    """Images and whole videos as the stock class computes them, videos reduced where a rate is given.

    It does not declare vLLM's ``SupportsMultiModalPruning``: that interface is for positions of several axes. Videos
    are encoded one after the other all the same, so that memory does not grow with what a rate lets into one step.
    """

    hf_to_vllm_mapper = (
        WeightsMapper(  # what transformers 5.23 writes has no "vision_model." level
            orig_to_new_regex={re.compile(r"^(model\.)?vision_tower\.(?!vision_model\.)"): "vision_tower.vision_model."}
        )
        | LlavaOnevisionForConditionalGeneration.hf_to_vllm_mapper
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        self.setting = _setting(vllm_config.model_config)
        config = vllm_config.model_config.hf_config
        layer, config.vision_feature_layer = config.vision_feature_layer, -1  # all layers: saliency is of the last one
        try:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
        finally:
            config.vision_feature_layer = layer
        depth = len(self.vision_tower.vision_model.encoder.layers)
        self.feature_layer = layer if layer >= 0 else layer + depth + 1

    def _features(self, pixels: Tensor, last: bool = False) -> Tensor:
        """[F, 3, H, W] -> what the projector takes [F, P, C]; ``last``: run the layers after that, too."""
        tower = self.vision_tower.vision_model
        states = features = tower.embeddings(pixels)
        for number, layer in enumerate(tower.encoder.layers if last else tower.encoder.layers[: self.feature_layer]):
            states, _ = layer(states)
            features = states if number < self.feature_layer else features
        return features

    def _image_pixels_to_features(self, vision_tower: Any, pixel_values: Tensor) -> Tensor:
        return self._features(pixel_values)

    def _video(self, pixels: Tensor) -> VideoFeatures:
        """[T, 3, H, W] -> projected and pooled tokens, with what the method reads beside them."""
        attention = self.vision_tower.vision_model.encoder.layers[-1].self_attn
        wanted = self.setting.method.requires if self.setting.method else ()
        with probing(attention, *(["qkv_proj"] if wanted else [])) as seen:
            tokens = self.apply_pooling(self.multi_modal_projector(self._features(pixels, last=bool(wanted))))
        found: dict[str, Tensor] = {}
        if wanted:
            heads = (attention.num_heads_per_partition, attention.head_dim)
            query, key = (part.unflatten(-1, heads) for part in seen["qkv_proj"][0].chunk(3, dim=-1)[:2])
            if "saliency" in wanted:
                found["saliency"] = received_attention(query, key, attention.scale)[..., None]
            if "keys" in wanted:
                found["keys"] = mean_keys(key)
            if attention.tp_size > 1:
                found = {name: mean_over_ranks(value, get_tp_group()) for name, value in found.items()}
            found = {name: self.apply_pooling(value) for name, value in found.items()}
            if "saliency" in found:
                found["saliency"] = found["saliency"].squeeze(-1)
        side = math.isqrt(tokens.shape[1])
        return VideoFeatures(tokens, (side, side), **found)

    def _process_video_pixels(self, inputs: Any) -> list[Tensor]:
        newline = self.image_newline[None]
        reduced = (self.setting.reduce(self._video(video)) for video in inputs["pixel_values_videos"])
        return [torch.cat([tokens, newline.to(tokens)]) for tokens in reduced]

    def embed_multimodal(self, **kwargs: Any) -> Any:
        given = kwargs.pop("video_embeds", None)
        return super().embed_multimodal(**kwargs) if given is None else tuple(given)
