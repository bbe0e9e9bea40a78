"""``./reproduce.sh convert --from DIR --to DIR``: a checkpoint of the original LLaVA-NeXT repository into the format
of transformers' LLaVA-OneVision class, shard by shard, without the hub.

Covers LLaVA-OneVision and LLaVA-Video with Qwen2: one flat config with ``mm_*`` settings, SigLIP's weights below
``model.vision_tower.vision_tower`` (llava_arch.py, siglip_encoder.py, multimodal_projector/builder.py there). Weights
are renamed, never changed. Added: ids for the image and video placeholders, and where the vocabulary has no
free row for them, rows that hold the mean of the others (they are never read, and never the most likely token)."""

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from holitom.errors import BadUsage, CannotRun, UnsupportedModel
from holitom.models import require_transformers
from holitom.models.llava_onevision import newline_order, pool_mode

CLASS = "LlavaQwenForCausalLM"  # LLaVA-OneVision and LLaVA-Video with Qwen2
TOWER = "model.vision_tower.vision_tower.vision_model."
SIGLIP, HEADS, SIZE = "siglip-so400m-patch14-384", 16, 384  # what the weights of a tower do not tell
PATCHES, PLACES = (f"{TOWER}embeddings.{part}_embedding.weight" for part in ("patch", "position"))
WORDS, INNER = "model.embed_tokens.weight", f"{TOWER}encoder.layers.0.mlp.fc1.weight"
GROWING = (WORDS, "lm_head.weight")
TEXT = (  # Qwen2Config's arguments; rope_scaling is ignored, as LlavaQwenForCausalLM does
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "rms_norm_eps", "rope_theta", "hidden_act", "attention_dropout", "initializer_range",
    "use_sliding_window", "sliding_window", "max_window_layers", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
EXPECTED = {
    "mm_projector_type": ("mlp2x_gelu",), "mm_patch_merge_type": ("spatial_unpad",), "add_faster_video": (False, None),
    "mm_spatial_pool_stride": (2, None), "mm_vision_select_feature": ("patch", None),
}  # fmt: skip
RENAMED = {
    re.escape(TOWER): "model.vision_tower.",
    r"model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"model\.image_newline$": "model.image_newline",
    r"model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
    r"lm_head\.": "lm_head.",
}
PREPROCESSING = {
    "image_processor_type": "SiglipImageProcessor", "do_resize": True, "resample": 3, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip
"""That repository's SigLipImageProcessor: bicubic, to the tower's size, values in [-1, 1]."""
TOKENIZER = re.compile(r"(tokenizer.*|vocab|merges|special_tokens_map|added_tokens|generation_config)\.(json|txt)")
INDEX = "model.safetensors.index.json"
WHOLE, AGAIN = "download the whole checkpoint (model-*.safetensors and their index)", "download it again (git lfs pull)"
Shapes = dict[str, tuple[int, ...]]


def convert(source: Path, target: Path, pool: str | None = None) -> dict[str, Any]:
    """Convert one folder; returns what was decided (pooling, newlines, placeholder ids, weights, dtype).

    pool: "average" or "bilinear" instead of the config's ``mm_spatial_pool_mode``. The target must not exist; it
    appears when everything is written. Raises BadUsage, UnsupportedModel (another architecture, weights missing or left
    over) and CannotRun (files, disk).
    """
    require_transformers()
    stored, shards = _opened(source)
    if target.exists():
        raise BadUsage(f"{target} exists", fix="give a folder that does not exist yet")
    shapes = {name: shape for shard in shards for name, shape in _shapes(shard).items()}
    if lacking := [name for name in (WORDS, PATCHES, PLACES, INNER) if name not in shapes]:
        raise UnsupportedModel(f"the checkpoint lacks {', '.join(lacking)}", fix=WHOLE)
    size = sum(shard.stat().st_size for shard in shards)
    target.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(target.parent).free) < 1.05 * size:
        told = f"{target.parent} has {free / 2**30:.1f} GiB free, and the weights need {size / 2**30:.1f}"
        raise CannotRun(told, fix="free some space, or give another folder")
    draft = target.with_name(f"{target.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        ids = _tokenizer(source, draft)
        config = _config(stored, shapes, ids, pool)
        placed = _places(shapes, config)
        config.dtype = _write(shards, draft, placed, config.text_config.vocab_size)
        config.save_pretrained(draft)
        side = config.vision_config.image_size
        _put(draft / "preprocessor_config.json", PREPROCESSING | {"size": {"height": side, "width": side}})
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    decided = {"pooling": pool_mode(config), "newlines": newline_order(config), "placeholders": ids}
    return decided | {"weights": len(placed), "dtype": str(config.dtype).removeprefix("torch.")}


def _opened(source: Path) -> tuple[dict[str, Any], list[Path]]:
    """The config and the weight files of a checkpoint that the LLaVA-OneVision class of transformers can express."""
    if not (source / "config.json").is_file():
        raise BadUsage(f"{source} is not a model folder: it has no config.json", fix="give the downloaded checkpoint")
    stored = _json(source / "config.json")
    classes = stored.get("architectures") or ["(none named)"]
    if "mm_vision_tower" not in stored and not re.match(r"Llava(Qwen|Llama|Mistral)", classes[0]):
        kind = stored.get("model_type")
        told = f"{source} is a {kind!r} model, not a checkpoint of the original LLaVA-NeXT repository"
        raise BadUsage(told, fix="models in the format of transformers need no conversion")
    if CLASS not in classes:
        told = f"a checkpoint of class {', '.join(classes)} cannot be converted"
        raise UnsupportedModel(told, fix=f"supported: {CLASS} (LLaVA-OneVision and LLaVA-Video with Qwen2)")
    for name, allowed in EXPECTED.items():
        if stored.get(name) not in allowed:
            fix = f"only {allowed[0]!r} can be converted; run such a model with the llava package (docs/llava.md)"
            raise UnsupportedModel(f"{name} is {stored.get(name)!r} in this checkpoint's config", fix=fix)
    names = {path.name for path in source.glob("*.safetensors")}
    if (source / INDEX).is_file():
        where = _json(source / INDEX).get("weight_map")
        if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
            raise CannotRun(f"{source / INDEX} has no weight_map", fix=AGAIN)
        names = set(where.values())
    missing = sorted(name for name in names if not (source / name).is_file())
    if not names or missing:
        raise CannotRun(f"{source} lacks {', '.join(missing) or 'weights as safetensors'}", fix=WHOLE)
    return stored, [source / name for name in sorted(names)]


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; CannotRun names a file that is cut off or holds something else."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CannotRun(f"{path} is not JSON ({error})", fix=AGAIN) from error
    if not isinstance(held, dict):
        raise CannotRun(f"{path} holds no JSON object", fix=AGAIN)
    return held


def _put(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _shapes(shard: Path) -> Shapes:
    """Of every weight in a file; CannotRun names one that is cut off, or that git-lfs has left as a pointer."""
    try:
        with safe_open(shard, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise CannotRun(f"{shard} holds no whole safetensors file ({error})", fix=AGAIN) from error


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


def _config(stored: dict[str, Any], shapes: Shapes, ids: dict[str, int], pool: str | None) -> Any:
    """The vocabulary keeps its rows where the new ids fit, else it grows to the next multiple of 64."""
    from transformers import LlavaOnevisionConfig, Qwen2Config

    text = {name: stored[name] for name in TEXT if stored.get(name) is not None}
    tied = "lm_head.weight" not in shapes
    needed, rows = max(ids.values()) + 1, shapes[WORDS][0]
    rows = rows if needed <= rows else -(-needed // 64) * 64
    config = LlavaOnevisionConfig(
        vision_config=_vision(str(stored.get("mm_vision_tower")), shapes),
        vision_feature_layer=-1, vision_feature_select_strategy="full",
        text_config=Qwen2Config(**text, tie_word_embeddings=tied, vocab_size=rows), tie_word_embeddings=tied,
        image_token_index=ids["image"], video_token_index=ids["video"],
        image_grid_pinpoints=stored.get("image_grid_pinpoints"),
        vision_aspect_ratio=stored.get("image_aspect_ratio") or "anyres_max_9",
        mm_spatial_pool_mode=pool or stored.get("mm_spatial_pool_mode") or "bilinear",
        mm_newline_position=stored.get("mm_newline_position") or "one_token",
        architectures=["LlavaOnevisionForConditionalGeneration"],
    )  # fmt: skip
    pool_mode(config), newline_order(config)  # what the adapter cannot read is refused before any weight is written
    return config


def _vision(tower: str, shapes: Shapes) -> Any:
    """The tower's config from the shapes of its weights. Of a whole tower (with its pooling head) the last layer is
    left out, as that repository does at loading."""
    from transformers import SiglipVisionConfig

    if not tower.rstrip("/").endswith(SIGLIP):
        told = f"the number of attention heads of the vision tower {tower!r} is not known"
        raise UnsupportedModel(told, fix=f"only {SIGLIP} can be converted")
    width, channels, _, patch = shapes[PATCHES]
    layers = {found[1] for name in shapes if (found := re.match(rf"{re.escape(TOWER)}encoder\.layers\.(\d+)\.", name))}
    return SiglipVisionConfig(
        hidden_size=width, intermediate_size=shapes[INNER][0], num_attention_heads=HEADS,
        num_hidden_layers=len(layers) - int(any(name.startswith(f"{TOWER}head.") for name in shapes)),
        num_channels=channels, patch_size=patch, vision_use_head=False,
        image_size=round(shapes[PLACES][0] ** 0.5) * patch + SIZE % patch,
    )  # fmt: skip


def _places(shapes: Shapes, config: Any) -> dict[str, str]:
    """Original name -> name in transformers, for every weight that is used; the target class has to be filled."""
    from transformers import LlavaOnevisionForConditionalGeneration

    with torch.device("meta"):
        model = LlavaOnevisionForConditionalGeneration(config)
    wanted = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    unused = f"model.vision_tower.encoder.layers.{config.vision_config.num_hidden_layers}."
    placed = {name: new for name in shapes if (new := _renamed(name)) and not new.startswith(unused)}
    inner = "vision_tower.vision_model." if any("vision_model." in name for name in wanted) else "vision_tower."
    placed = {name: new.replace("vision_tower.", inner, 1) for name, new in placed.items()}
    told = {"missing": set(wanted) - set(placed.values()), "left over": set(placed.values()) - set(wanted)}
    fixed = {new: shapes[name] for name, new in placed.items() if name not in GROWING}
    told["of another shape"] = {new for new, shape in fixed.items() if wanted.get(new, shape) != shape}
    if any(told.values()):
        said = "; ".join(f"{len(names)} {why} ({min(names)}, ...)" for why, names in told.items() if names)
        raise UnsupportedModel(f"the weights do not fill the target class: {said}", fix="give a complete checkpoint")
    return placed


def _renamed(name: str) -> str | None:
    """The name in transformers of an original weight; None for weights that are not used (SigLIP's pooling head, cached
    frequencies). Raises UnsupportedModel for a weight of unknown purpose."""
    if name.startswith(f"{TOWER}head.") or name.endswith((".inv_freq", ".position_ids")):
        return None
    for pattern, replacement in RENAMED.items():
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", replacement, name)
    raise UnsupportedModel(f"the weight {name} has no place in the LLaVA-OneVision class", fix="give a full checkpoint")


def _write(shards: Sequence[Path], target: Path, placed: dict[str, str], rows: int) -> torch.dtype:
    """Write the weights, one output file per input file, and the index; returns the dtype of the embeddings."""
    where, dtype, total = {}, torch.float32, 0
    for number, shard in enumerate(tqdm(shards, desc="convert", unit="file", disable=len(shards) < 3), start=1):
        tensors = {}
        with safe_open(shard, framework="pt") as file:
            for name in placed.keys() & set(file.keys()):
                weight = file.get_tensor(name)
                dtype = weight.dtype if name == WORDS else dtype
                if name in GROWING and len(weight) < rows:
                    mean = weight.float().mean(0, keepdim=True).to(weight.dtype)
                    weight = torch.cat([weight, mean.expand(rows - len(weight), -1)])
                tensors[placed[name]] = weight.contiguous()
        if tensors:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            save_file(tensors, target / name, metadata={"format": "pt"})
            where |= dict.fromkeys(tensors, name)
            total += (target / name).stat().st_size
    _put(target / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    return dtype


def main(argv: Sequence[str]) -> int:
    """The command line."""
    about = "A checkpoint of the original LLaVA-NeXT format for transformers, shard by shard, without the hub."
    pool = "how frames are pooled, instead of what the config says; the papers run LLaVA-Video with average (13 x 13)"
    parser = argparse.ArgumentParser(prog="./reproduce.sh convert", description=about)
    parser.add_argument("--from", dest="source", type=Path, required=True, metavar="DIR", help="the original folder")
    parser.add_argument("--to", dest="target", type=Path, required=True, metavar="DIR", help="a folder to be made")
    parser.add_argument("--pool", choices=("average", "bilinear"), help=pool)
    args = parser.parse_args(argv)
    told = convert(args.source, args.target, args.pool)
    where = {"end": "one after the video", "row": "one after every row", "none": "none"}[told["newlines"]]
    print(f"{args.target}: {told['weights']} weights ({told['dtype']}), pooling {told['pooling']}, newlines: {where}")
    if told["newlines"] == "row" and told["pooling"] != "average":
        print("LLaVA-Video is evaluated with average pooling in the papers: --pool average")
    return 0
