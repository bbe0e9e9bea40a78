"""The tiny video LLM: the architecture of LLaVA-OneVision, small enough to learn its world on two CPU cores."""

import copy
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from holitom_repro.records import write_atomic
from holitom_repro.tiny.vocabulary import END, IMAGE, PAD, START, VIDEO, VOCABULARY_SIZE, WORD_ID, tokenizer
from holitom_repro.tiny.world import SIZE

PATCH = 4
GRID = SIZE // PATCH // 2  # cells per side after 2 x 2 pooling
CELLS = GRID * GRID
VISION_DIM, TEXT_DIM, LAYERS = 96, 128, 6
PREPROCESSOR = {
    "image_processor_type": "SiglipImageProcessor", "do_resize": True, "size": {"height": SIZE, "width": SIZE},
    "resample": 4, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip
"""4: PIL's box filter, the exact inverse of nearest-neighbour enlargement."""
_TORCH = {name: value for name, value in PREPROCESSOR.items() if name != "image_processor_type"}
_TORCH |= {"resample": 3, "do_convert_rgb": True}  # bicubic: torchvision knows no box filter
PROCESSOR = {
    "processor_class": "LlavaOnevisionProcessor", "num_image_tokens": (SIZE // PATCH) ** 2,
    "vision_feature_select_strategy": "full", "image_token": IMAGE, "video_token": VIDEO,
    "image_processor": _TORCH
    | {"image_processor_type": "LlavaOnevisionImageProcessor", "image_grid_pinpoints": [[SIZE, SIZE]]},
    "video_processor": _TORCH | {"video_processor_type": "LlavaOnevisionVideoProcessor"},
}  # fmt: skip
"""For transformers' own processor, and so for engines; this kit reads PREPROCESSOR."""


def build(row_newlines: bool = False, feature_layer: int = -2):
    """A model with fresh weights from torch's global generator.

    Features come from the last layer but one (``feature_layer``), saliency from the last one; LLaVA-OneVision
    takes both from the last layer of its truncated tower. ``row_newlines`` gives the LLaVA-Video manner: average
    pooling and a newline token after every row of cells.
    """
    import transformers as hf

    vision = hf.SiglipVisionConfig(
        hidden_size=VISION_DIM, intermediate_size=256, num_hidden_layers=3, num_attention_heads=3, image_size=SIZE,
        patch_size=PATCH, vision_use_head=False,
    )  # fmt: skip
    text = hf.Qwen2Config(
        vocab_size=VOCABULARY_SIZE, hidden_size=TEXT_DIM, intermediate_size=384, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True,
        bos_token_id=WORD_ID[START], eos_token_id=WORD_ID[END], pad_token_id=WORD_ID[PAD], initializer_range=0.05,
    )  # fmt: skip
    config = hf.LlavaOnevisionConfig(
        vision_config=vision, text_config=text, vision_feature_layer=feature_layer, tie_word_embeddings=True,
        image_token_index=WORD_ID[IMAGE], video_token_index=WORD_ID[VIDEO], image_grid_pinpoints=[[SIZE, SIZE]],
    )  # fmt: skip
    if row_newlines:
        config.mm_newline_position, config.mm_spatial_pool_mode = "grid", "average"
    config._attn_implementation = "sdpa"
    return hf.LlavaOnevisionForConditionalGeneration(config)


def normalise(frames) -> Tensor:
    """Frames [..., H, W, 3] in 0..1 -> pixel values [..., 3, H, W] in -1..1, as SigLIP's preprocessor gives them."""
    return ((torch.as_tensor(frames) - 0.5) / 0.5).movedim(-1, -3).contiguous()


def tower_states(model, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [F, 3, H, W] -> hidden states [F, 64, Dv] of the feature layer and of the last layer."""
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    return states[model.config.vision_feature_layer], states[-1]


def project(model, states: Tensor) -> Tensor:
    """Projector and 2 x 2 pooling, [F, 64, Dv] -> [F, 16, D]. On an even grid bilinear pooling to half size and average
    pooling are the same."""
    return model.model.apply_pooling(model.model.multi_modal_projector(states))


def export(model, folder: Path, tower_only: bool = False) -> None:
    """Write a Hugging Face folder: bfloat16 weights, tokenizer with chat template, preprocessing. ``tower_only`` keeps
    the vision tower alone, as a SiglipVisionModel."""
    folder.mkdir(parents=True, exist_ok=True)
    part = model.model.vision_tower if tower_only else model
    copy.deepcopy(part).to("cpu", torch.bfloat16).save_pretrained(folder)
    write_atomic(folder / "preprocessor_config.json", json.dumps(PREPROCESSOR, indent=2) + "\n")
    if not tower_only:
        _name_as_published(folder / "model.safetensors")
        write_atomic(folder / "processor_config.json", json.dumps(PROCESSOR, indent=2) + "\n")
        tokenizer().save_pretrained(folder)


def _name_as_published(file: Path) -> None:
    """Give the tower's weights the names that they have in LLaVA-OneVision's own checkpoints, which every release of
    transformers reads, and vLLM too; transformers 5.23 writes them without the level "vision_model"."""
    named = {name.replace("vision_tower.", "vision_tower.vision_model."): one for name, one in load_file(file).items()}
    save_file(named, file, {"format": "pt"})
