"""Checkpoints in the format of the original LLaVA-NeXT repository: recognising one, and its names in transformers.

Covers LLaVA-OneVision and LLaVA-Video with Qwen2 (class LlavaQwenForCausalLM): one flat config with ``mm_*`` settings,
SigLIP's weights below ``model.vision_tower.vision_tower``. Facts from that repository (llava_arch.py,
siglip_encoder.py, multimodal_projector/builder.py)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from holitom.errors import UnsupportedModel

CLASSES = ("LlavaQwenForCausalLM",)
TOWER = "model.vision_tower.vision_tower.vision_model."
TOWERS = {"siglip-so400m-patch14-384": {"num_attention_heads": 16, "patch_size": 14}}
"""What a tower's weights do not tell, by the end of its name."""

_TEXT = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "rms_norm_eps", "rope_theta", "hidden_act", "attention_dropout", "initializer_range",
    "use_sliding_window", "sliding_window", "max_window_layers", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
_RENAMED = (
    (re.compile(r"^model\.vision_tower\.vision_tower\.vision_model\."), "model.vision_tower."),
    (re.compile(r"^model\.mm_projector\.0\."), "model.multi_modal_projector.linear_1."),
    (re.compile(r"^model\.mm_projector\.2\."), "model.multi_modal_projector.linear_2."),
    (re.compile(r"^model\.image_newline$"), "model.image_newline"),
    (re.compile(r"^model\.(embed_tokens|layers|norm)\."), r"model.language_model.\1."),
    (re.compile(r"^lm_head\."), "lm_head."),
)


def is_original(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is one of that repository's."""
    classes = config.get("architectures") or []
    return "mm_vision_tower" in config or any(re.fullmatch(r"Llava(Qwen|Llama|Mistral)\w*", name) for name in classes)


def check(config: Mapping[str, Any]) -> None:
    """UnsupportedModel for checkpoints that the LLaVA-OneVision class of transformers cannot express."""
    classes = config.get("architectures") or []
    if not set(classes) & set(CLASSES):
        raise UnsupportedModel(
            f"a checkpoint of class {', '.join(classes) or '(none named)'} cannot be converted",
            fix=f"supported: {', '.join(CLASSES)} (LLaVA-OneVision and LLaVA-Video with Qwen2)",
        )
    expected = {
        "mm_projector_type": ("mlp2x_gelu",),
        "mm_patch_merge_type": ("spatial_unpad",),
        "add_faster_video": (False, None),
        "mm_spatial_pool_stride": (2, None),
        "mm_vision_select_feature": ("patch", None),
    }
    for name, allowed in expected.items():
        if config.get(name) not in allowed:
            raise UnsupportedModel(
                f"{name} is {config.get(name)!r} in this checkpoint's config",
                fix=f"only {allowed[0]!r} can be converted; run such a model with the llava package (docs/llava.md)",
            )


def renamed(name: str) -> str | None:
    """The name in transformers of an original weight; None for weights that are not used (SigLIP's pooling head, cached
    frequencies). Raises UnsupportedModel for a weight of unknown purpose."""
    if name.startswith(f"{TOWER}head.") or name.endswith((".inv_freq", ".position_ids")):
        return None
    for pattern, replacement in _RENAMED:
        if pattern.match(name):
            return pattern.sub(replacement, name)
    raise UnsupportedModel(
        f"the weight {name} has no place in the LLaVA-OneVision class", fix="convert a full, unquantised checkpoint"
    )


def text_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen2Config's arguments, vocabulary left out. rope_scaling is ignored, as LlavaQwenForCausalLM does."""
    return {name: config[name] for name in _TEXT if config.get(name) is not None}


def vision_settings(shapes: Mapping[str, tuple[int, ...]], tower: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """SiglipVisionConfig's arguments from the shapes of the checkpoint's weights.

    tower: the config's ``mm_vision_tower``; given: that tower's own ``vision_config`` where it is at hand. Of a whole
    tower (with its pooling head) the last layer is left out, as that repository does at loading.
    """
    known = next((facts for name, facts in TOWERS.items() if tower.rstrip("/").endswith(name)), {})
    heads = given.get("num_attention_heads", known.get("num_attention_heads"))
    patch = f"{TOWER}embeddings.patch_embedding.weight"
    if patch not in shapes:
        raise UnsupportedModel(
            "the checkpoint holds no vision tower", fix="use a checkpoint that was saved with its tower's weights"
        )
    if heads is None:
        raise UnsupportedModel(
            f"the number of attention heads of the vision tower {tower!r} is not known",
            fix=f"known: {', '.join(TOWERS)}; or let mm_vision_tower name a local folder with a config.json",
        )
    width, channels, _, size = shapes[patch]
    cells = shapes[f"{TOWER}embeddings.position_embedding.weight"][0]
    layers = 1 + max(int(m[1]) for n in shapes if (m := re.match(re.escape(TOWER) + r"encoder\.layers\.(\d+)\.", n)))
    return {
        "hidden_size": width,
        "intermediate_size": shapes[f"{TOWER}encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": layers - int(any(name.startswith(f"{TOWER}head.") for name in shapes)),
        "num_attention_heads": heads,
        "num_channels": channels,
        "patch_size": size,
        "image_size": round(cells**0.5) * size + given.get("image_size", 384) % size,
        "vision_use_head": False,
    }
