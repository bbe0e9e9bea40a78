"""A tiny random model of the original llava package, which needs an environment of its own (docs/llava.md)."""

from __future__ import annotations

import torch
from hosts import randomise
from llava.model.language_model.llava_qwen import LlavaQwenConfig, LlavaQwenForCausalLM
from llava.model.multimodal_encoder.siglip_encoder import SigLipVisionConfig, SigLipVisionModel, SigLipVisionTower
from llava.model.multimodal_projector.builder import build_vision_projector

LAYERS = 5
KINDS = {"onevision": ("bilinear", "one_token"), "video": ("average", "grid")}


def tiny(kind, attention="sdpa"):
    pool, newline = KINDS[kind]
    config = LlavaQwenConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=300, max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=False, attn_implementation=attention, mm_hidden_size=32, mm_projector_type="mlp2x_gelu",
        mm_patch_merge_type="spatial_unpad", mm_spatial_pool_mode=pool, mm_spatial_pool_stride=2,
        mm_newline_position=newline,
    )  # fmt: skip
    model = LlavaQwenForCausalLM(config)
    tower = SigLipVisionTower("siglip", config, delay_load=True)
    tower.config = SigLipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=384, patch_size=14
    )
    tower.vision_tower = SigLipVisionModel(tower.config)
    del tower.vision_tower.vision_model.encoder.layers[-1:]  # as load_model does
    tower.vision_tower.vision_model.head = torch.nn.Identity()
    tower.is_loaded = True
    core = model.get_model()
    core.vision_tower, core.mm_projector = tower, build_vision_projector(config)
    core.image_newline = torch.nn.Parameter(torch.empty(32))
    return randomise(model, None)
