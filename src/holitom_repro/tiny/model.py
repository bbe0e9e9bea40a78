"""The tiny video LLM: the architecture of LLaVA-OneVision, small enough to learn its world on two CPU cores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from holitom_repro.tiny.vocabulary import END, IMAGE, PAD, START, VIDEO, VOCABULARY_SIZE, WORD_ID
from holitom_repro.tiny.world import SIZE

PATCH = 4
GRID = SIZE // PATCH // 2  # cells per side after 2 x 2 pooling
CELLS = GRID * GRID
VISION_DIM, TEXT_DIM, LAYERS = 96, 128, 6


def vision_config():
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(
        hidden_size=VISION_DIM,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )


def build(row_newlines: bool = False, feature_layer: int = -2):
    """A model with fresh weights from torch's global generator.

    Features come from the last layer but one (``feature_layer``), saliency from the last one; LLaVA-OneVision
    takes both from the last layer of its truncated tower. ``row_newlines`` gives the LLaVA-Video manner: average
    pooling and a newline token after every row of cells.
    """
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config

    text = Qwen2Config(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=TEXT_DIM,
        intermediate_size=384,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=WORD_ID[START],
        eos_token_id=WORD_ID[END],
        pad_token_id=WORD_ID[PAD],
        initializer_range=0.05,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision_config(),
        text_config=text,
        vision_feature_layer=feature_layer,
        image_token_index=WORD_ID[IMAGE],
        video_token_index=WORD_ID[VIDEO],
        tie_word_embeddings=True,
        image_grid_pinpoints=[[SIZE, SIZE]],
    )
    if row_newlines:
        config.mm_newline_position = "grid"
        config.mm_spatial_pool_mode = "average"
    config._attn_implementation = "sdpa"
    return LlavaOnevisionForConditionalGeneration(config)


def normalise(frames) -> Float[Tensor, "*batch 3 height width"]:
    """Frames [..., H, W, 3] in 0..1 -> pixel values [..., 3, H, W] in -1..1, as SigLIP's preprocessor gives them."""
    return ((torch.as_tensor(frames) - 0.5) / 0.5).movedim(-1, -3).contiguous()


def tower_states(model, pixels: Float[Tensor, "frames 3 height width"]) -> tuple[Tensor, Tensor]:
    """Hidden states [F, 64, Dv] of the feature layer and of the last layer."""
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    return states[model.config.vision_feature_layer], states[-1]


def project(model, states: Float[Tensor, "frames patches dim"]) -> Float[Tensor, "frames cells dim2"]:
    """Projector and 2 x 2 pooling. On an even grid bilinear pooling to half size and average pooling are the same."""
    return model.model.apply_pooling(model.model.multi_modal_projector(states))


def received_attention(model, states: Float[Tensor, "frames patches dim"]) -> Float[Tensor, "frames cells"]:
    """Attention each cell receives in the last tower layer, from the states that enter it; for inspection only."""
    tower = getattr(model.model.vision_tower, "vision_model", model.model.vision_tower)
    layer = tower.encoder.layers[-1]
    x = layer.layer_norm1(states)
    frames, patches, dim = x.shape
    heads = layer.self_attn.num_heads
    q, k = (
        p(x).view(frames, patches, heads, -1).transpose(1, 2) for p in (layer.self_attn.q_proj, layer.self_attn.k_proj)
    )
    received = (q @ k.mT / (dim // heads) ** 0.5).softmax(-1).mean((1, 2))
    side = int(patches**0.5)
    return F.avg_pool2d(received.view(frames, 1, side, side), 2).flatten(1)
