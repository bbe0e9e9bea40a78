"""``./reproduce.sh convert --from DIR --to DIR``: a checkpoint of the original LLaVA-NeXT repository into the format
of transformers' LLaVA-OneVision class, without the hub.

Covers LLaVA-OneVision and LLaVA-Video with Qwen2: one flat config with ``mm_*`` settings, SigLIP's weights below
``model.vision_tower.vision_tower`` (llava_arch.py, siglip_encoder.py, multimodal_projector/builder.py there). Weights
are renamed, never changed, and all of them are held at once: 7B needs 15 GB of memory. Added: ids for the image and
video placeholders, in free rows of the vocabulary."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from typer import Option

from holitom.errors import BadUsage, CannotRun, UnsupportedModel, first_line
from holitom.models import require_transformers
from holitom.models.llava_onevision import newline_order, pool_mode

CLASS = "LlavaQwenForCausalLM"  # LLaVA-OneVision and LLaVA-Video with Qwen2
TOWER = "model.vision_tower.vision_tower.vision_model."
SIGLIP = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16,
    "image_size": 384, "patch_size": 14,
}  # fmt: skip
"""siglip-so400m-patch14-384 without its last layer, which that repository leaves out, as it does the pooling head."""
TEXT = (  # Qwen2Config's arguments; rope_scaling is ignored, as LlavaQwenForCausalLM does
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta", "hidden_act", "attention_dropout",
    "initializer_range", "use_sliding_window", "sliding_window", "max_window_layers", "bos_token_id", "eos_token_id",
    "pad_token_id",
)  # fmt: skip
EXPECTED = {
    "mm_vision_tower": ("siglip-so400m-patch14-384",), "mm_projector_type": ("mlp2x_gelu",),
    "mm_patch_merge_type": ("spatial_unpad",), "mm_spatial_pool_stride": (2, None), "add_faster_video": (False, None),
    "mm_vision_select_feature": ("patch", None),
}  # fmt: skip
RENAMED = {
    re.escape(TOWER): "model.vision_tower.vision_model.",  # as published: every release of transformers reads it
    r"model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
}
PREPROCESSING = {
    "image_processor_type": "SiglipImageProcessor", "do_resize": True, "size": {"height": 384, "width": 384},
    "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}  # fmt: skip
"""That repository's SigLipImageProcessor: bicubic, to the tower's size, values in [-1, 1]."""
TOKENIZER = re.compile(r"(tokenizer.*|vocab|merges|special_tokens_map|added_tokens|generation_config)\.(json|txt)")
WHOLE = "download the whole checkpoint again (git lfs pull)"
POOL = "how frames are pooled, instead of what the config says; the papers run LLaVA-Video with average (13 x 13)"


def convert(
    source: Annotated[Path, Option("--from", metavar="DIR", help="the original folder")],
    target: Annotated[Path, Option("--to", metavar="DIR", help="a folder to be made")],
    pool: Annotated[Literal["average", "bilinear"] | None, Option(help=POOL)] = None,
) -> int:
    """Convert one folder and print what was decided. The target appears when everything is written.

    Raises BadUsage, UnsupportedModel (another architecture, weights missing or left over) and CannotRun (files, disk).
    """
    require_transformers()
    stored = _settings(source)
    if target.exists():
        raise BadUsage(f"{target} exists", fix="give a folder that does not exist yet")
    draft = target.with_name(f"{target.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        ids = _tokenizer(source, draft)
        weights = _weights(source)
        config = _config(stored, weights, ids, pool)
        pooling, newlines = pool_mode(config), newline_order(config)  # refuses what the adapter cannot read
        _check(weights, config)
        config.dtype = weights["model.language_model.embed_tokens.weight"].dtype
        save_torch_state_dict(weights, draft)
        config.save_pretrained(draft)
        (draft / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING, indent=2) + "\n", encoding="utf-8")
        draft.rename(target)
    except (OSError, SafetensorError) as error:
        fix = "free some space, or give another folder"
        raise CannotRun(f"{target} was not made ({first_line(error)})", fix=fix) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    where = {"end": "one after the video", "row": "one after every row", "none": "none"}[newlines]
    print(f"{target}: {len(weights)} weights ({config.dtype}), pooling {pooling}, newlines: {where}")
    if newlines == "row" and pooling != "average":
        print("LLaVA-Video is evaluated with average pooling in the papers: --pool average")
    return 0


def _settings(source: Path) -> dict[str, Any]:
    """The config of a checkpoint that the LLaVA-OneVision class of transformers can express."""
    try:
        stored = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        fix = "give the downloaded checkpoint"
        raise BadUsage(f"{source} is not a model folder: it has no config.json", fix=fix) from error
    except ValueError as error:
        raise CannotRun(f"{source / 'config.json'} is not JSON ({error})", fix=WHOLE) from error
    classes = stored.get("architectures") or ["(none named)"]
    if "mm_vision_tower" not in stored and not re.match(r"Llava(Qwen|Llama|Mistral)", classes[0]):
        kind = stored.get("model_type")
        told = f"{source} is a {kind!r} model, not a checkpoint of the original LLaVA-NeXT repository"
        raise BadUsage(told, fix="models in the format of transformers need no conversion")
    if CLASS not in classes:
        told = f"a checkpoint of class {', '.join(classes)} cannot be converted"
        raise UnsupportedModel(told, fix=f"supported: {CLASS} (LLaVA-OneVision and LLaVA-Video with Qwen2)")
    tower = Path(str(stored.get("mm_vision_tower"))).name  # an account's, or in a folder of somebody's own
    for name, allowed in EXPECTED.items():
        value = tower if name == "mm_vision_tower" else stored.get(name)
        if value not in allowed:
            fix = f"only {allowed[0]!r} can be converted; run such a model with the llava package (docs/llava.md)"
            raise UnsupportedModel(f"{name} is {value!r} in this checkpoint's config", fix=fix)
    return stored


def _tokenizer(source: Path, target: Path) -> dict[str, int]:
    """Write the tokenizer with both placeholders in it; their ids."""
    from transformers import AutoTokenizer

    for path in source.iterdir():
        if TOKENIZER.fullmatch(path.name):
            shutil.copy2(path, target / path.name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(target))
    except (OSError, ValueError) as error:
        raise CannotRun(f"{source} has no tokenizer that loads", fix="copy the checkpoint's tokenizer files") from error
    marks = {"image": "<image>", "video": "<video>"}
    tokenizer.add_tokens([mark for mark in marks.values() if mark not in tokenizer.get_vocab()], special_tokens=True)
    tokenizer.save_pretrained(target)
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in marks.items()}


def _weights(source: Path) -> dict[str, Tensor]:
    """All weights that are used, by their names in transformers; CannotRun names a file that is cut off, or that
    git-lfs has left as a pointer. Unused: SigLIP's pooling head and its last layer, cached frequencies."""
    beyond = f"encoder.layers.{SIGLIP['num_hidden_layers']}."
    unused = re.compile(rf"{re.escape(TOWER)}(head\.|{re.escape(beyond)})|.*\.(inv_freq|position_ids)$")
    found = {}
    for path in sorted(source.glob("*.safetensors")):
        try:
            stored = load_file(path)
        except (SafetensorError, ValueError, OSError) as error:
            raise CannotRun(f"{path} holds no whole safetensors file ({first_line(error)})", fix=WHOLE) from error
        for name, weight in stored.items():
            new = name
            for pattern, replacement in RENAMED.items():
                new = re.sub(f"^{pattern}", replacement, new)
            if not unused.match(name):
                found[new] = weight
    if not found:
        raise CannotRun(f"{source} lacks weights as safetensors", fix=WHOLE)
    return found


def _config(stored: dict[str, Any], weights: dict[str, Tensor], ids: dict[str, int], pool: str | None) -> Any:
    """Without a head of its own the language model is tied to its embeddings, whatever the stored config says."""
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    text = {name: stored[name] for name in TEXT if stored.get(name) is not None}
    tied = "lm_head.weight" not in weights
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**SIGLIP, vision_use_head=False),
        vision_feature_layer=-1, vision_feature_select_strategy="full",
        text_config=Qwen2Config(**text, tie_word_embeddings=tied), tie_word_embeddings=tied,
        image_token_index=ids["image"], video_token_index=ids["video"],
        image_grid_pinpoints=stored.get("image_grid_pinpoints"),
        vision_aspect_ratio=stored.get("image_aspect_ratio") or "anyres_max_9",
        mm_spatial_pool_mode=pool or stored.get("mm_spatial_pool_mode") or "bilinear",
        mm_newline_position=stored.get("mm_newline_position") or "one_token",
        architectures=["LlavaOnevisionForConditionalGeneration"],
    )  # fmt: skip


def _check(weights: dict[str, Tensor], config: Any) -> None:
    """UnsupportedModel where they are not exactly those of the target class, or a placeholder has no row in it."""
    from transformers import LlavaOnevisionForConditionalGeneration

    if max(config.image_token_id, config.video_token_id) >= config.text_config.vocab_size:
        raise UnsupportedModel("the vocabulary has no free rows for the placeholders", fix="give another checkpoint")
    with torch.device("meta"):
        wanted = LlavaOnevisionForConditionalGeneration(config).state_dict()
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    level = ".vision_model."  # which some releases have in these names
    shapes = [{(name.replace(level, "."), one.shape) for name, one in each.items()} for each in (weights, wanted)]
    odd = sorted({name for name, _ in shapes[0] ^ shapes[1]})
    if odd:
        told = f"{len(odd)} weights are missing, left over or of another shape ({', '.join(odd[:3])})"
        raise UnsupportedModel(told, fix=WHOLE)


def main(words: Sequence[str]) -> int:
    """The command line."""
    command = typer.Typer(add_completion=False)
    command.command(help="A checkpoint of the original LLaVA-NeXT format for transformers, without the hub.")(convert)
    return command(list(words), prog_name="./reproduce.sh convert", standalone_mode=False) or 0
