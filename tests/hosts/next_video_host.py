"""A tiny LLaVA-NeXT-Video: 4 x 4 tokens a frame from 8 x 8 patches behind a class token, a Llama decoder."""

from __future__ import annotations

import torch
from hosting import LAYERS, PAD, VIDEO, Host, randomise
from seam import batch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

FRAMES = 3


def tiny(attention):
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, image_size=112, patch_size=14,
        projection_dim=32,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=300, max_position_embeddings=2048, pad_token_id=PAD,
    )  # fmt: skip
    config = LlavaNextVideoConfig(
        vision_config=vision, text_config=text, image_token_index=298, video_token_index=VIDEO,
        image_grid_pinpoints=[[112, 112]], spatial_pool_mode="average", spatial_pool_stride=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    config._attn_implementation = attention
    model = LlavaNextVideoForConditionalGeneration(config)
    model.set_attn_implementation(attention)
    return randomise(model)


class NextVideoHost(Host):
    def __init__(self, attention):
        self.model = tiny(attention)

    def clip(self, which):
        return torch.randn(FRAMES, 3, 112, 112, generator=torch.Generator().manual_seed(which))

    def grid(self, which):
        return 4, 4

    def inputs(self, *which):
        clips = torch.stack([self.clip(i) for i in which])
        return {**batch(*(self.prompt(i) for i in which)), "pixel_values_videos": clips}

    @torch.no_grad()
    def stock_rows(self, which):
        features = self.model.model.get_video_features(self.clip(which)[None]).pooler_output[0]
        return features.flatten(0, -2)  # frames apart in transformers 5.19

    def visual(self, which):
        return torch.ones(FRAMES * 16, dtype=torch.bool)

    def places(self, which, frame, cell):
        return frame * 16 + cell
