"""``./reproduce.sh convert --from DIR --to DIR``: a checkpoint of the original LLaVA-NeXT repository into the format
of transformers' LLaVA-OneVision class, shard by shard, without the hub.

Weights are renamed, never changed. Added: ids for the image and video placeholders, and where the vocabulary has no
free row for them, rows that hold the mean of the others (they are never read, and never the most likely token)."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from holitom.errors import BadUsage, CannotRun, UnsupportedModel
from holitom.models.base import require_transformers
from holitom.models.llava_onevision import newline_order, pool_mode
from holitom_repro import original
from holitom_repro.usage import Parser

TOKENS = {"image": "<image>", "video": "<video>"}
PREPROCESSING = {
    "image_processor_type": "SiglipImageProcessor", "do_resize": True, "resample": 3, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip
"""That repository's SigLipImageProcessor: bicubic, to the tower's size, values in [-1, 1]."""

INDEX = "model.safetensors.index.json"
_READ = (
    "model.embed_tokens.weight",
    f"{original.TOWER}embeddings.patch_embedding.weight",
    f"{original.TOWER}embeddings.position_embedding.weight",
    f"{original.TOWER}encoder.layers.0.mlp.fc1.weight",
)
_TOKENIZER = re.compile(r"(tokenizer.*|vocab|merges|special_tokens_map|added_tokens|generation_config)\.(json|txt)")


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
    _require(shapes)
    partial = target.with_name(f"{target.name}.partial")
    size = sum(shard.stat().st_size for shard in shards)
    target.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(target.parent).free) < 1.05 * size:
        raise CannotRun(
            f"{target.parent} has {free / 2**30:.1f} GiB free, and the weights need {size / 2**30:.1f}",
            fix="free some space, or give another folder",
        )
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        ids = _tokenizer(source, partial)
        config = _config(stored, shapes, ids, pool, source)
        config.text_config.vocab_size = _rows(max(ids.values()) + 1, shapes)
        placed = _places(shapes, config, _expected(config))
        dtype = _write(shards, partial, placed, config.text_config.vocab_size, size)
        config.dtype = dtype
        config.save_pretrained(partial)
        side = config.vision_config.image_size
        settings = PREPROCESSING | {"size": {"height": side, "width": side}}
        (partial / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {
        "pooling": pool_mode(config),
        "newlines": newline_order(config),
        "placeholders": ids,
        "weights": len(placed),
        "dtype": str(dtype).removeprefix("torch."),
    }


def _opened(source: Path) -> tuple[dict[str, Any], list[Path]]:
    """The config and the weight files of an original checkpoint."""
    if not (source / "config.json").is_file():
        raise BadUsage(f"{source} is not a model folder: it has no config.json", fix="give the downloaded checkpoint")
    stored = _json(source / "config.json")
    if not original.is_original(stored):
        raise BadUsage(
            f"{source} is a {stored.get('model_type')!r} model, not a checkpoint of the original LLaVA-NeXT repository",
            fix="models in the format of transformers need no conversion",
        )
    original.check(stored)
    if (source / INDEX).is_file():
        where = _json(source / INDEX).get("weight_map")
        if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
            raise CannotRun(f"{source / INDEX} has no weight_map", fix="download the file again")
        names = sorted(set(where.values()))
    else:
        names = sorted(path.name for path in source.glob("*.safetensors"))
    missing = [name for name in names if not (source / name).is_file()]
    if not names or missing:
        raise CannotRun(
            f"{source} has no weights as safetensors" if not names else f"{source} lacks {', '.join(missing)}",
            fix="download the whole checkpoint (model-*.safetensors and their index)",
        )
    return stored, [source / name for name in names]


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; CannotRun names a file that is cut off or holds something else."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CannotRun(f"{path} is not JSON ({error})", fix="download the file again") from error
    if not isinstance(held, dict):
        raise CannotRun(f"{path} holds no JSON object", fix="download the file again")
    return held


def _shapes(shard: Path) -> dict[str, tuple[int, ...]]:
    """Of every weight in a file; CannotRun names one that is cut off, or that git-lfs has left as a pointer."""
    try:
        with safe_open(shard, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise CannotRun(
            f"{shard} holds no whole safetensors file ({error})", fix="download it again (git lfs pull)"
        ) from error


def _require(shapes: Collection[str]) -> None:
    """UnsupportedModel where weights are missing by whose shapes the config is made."""
    tower = any(name.startswith(original.TOWER) for name in shapes)  # without any: original.vision_settings tells
    lacking = [name for name in _READ if name not in shapes and (tower or not name.startswith(original.TOWER))]
    if lacking:
        raise UnsupportedModel(
            f"the checkpoint lacks {', '.join(lacking)}",
            fix="download the whole checkpoint (model-*.safetensors and their index)",
        )


def _tokenizer(source: Path, target: Path) -> dict[str, int]:
    """Write the tokenizer with both placeholders in it; their ids."""
    from transformers import AutoTokenizer

    for path in source.iterdir():
        if _TOKENIZER.fullmatch(path.name):
            shutil.copy2(path, target / path.name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(target))
    except (OSError, ValueError) as error:
        raise CannotRun(f"{source} has no tokenizer that loads", fix="copy the checkpoint's tokenizer files") from error
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in TOKENS.values() if token not in known], special_tokens=True)
    tokenizer.save_pretrained(target)
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in TOKENS.items()}


def _config(stored: dict[str, Any], shapes: Any, ids: dict[str, int], pool: str | None, source: Path) -> Any:
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    tower = str(stored.get("mm_vision_tower", ""))
    local = next((f for f in (source / tower / "config.json", Path(tower) / "config.json") if f.is_file()), None)
    given = _json(local) if local is not None else {}
    vision = original.vision_settings(shapes, tower, given.get("vision_config", given))
    tied = "lm_head.weight" not in shapes
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**vision),
        text_config=Qwen2Config(**original.text_settings(stored), tie_word_embeddings=tied),
        image_token_index=ids["image"],
        video_token_index=ids["video"],
        image_grid_pinpoints=stored.get("image_grid_pinpoints"),
        vision_aspect_ratio=stored.get("image_aspect_ratio") or "anyres_max_9",
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=tied,
        mm_spatial_pool_mode=pool or stored.get("mm_spatial_pool_mode") or "bilinear",
        mm_newline_position=stored.get("mm_newline_position") or "one_token",
        architectures=["LlavaOnevisionForConditionalGeneration"],
    )


def _rows(needed: int, shapes: dict[str, tuple[int, ...]]) -> int:
    """Rows of the vocabulary: as they are where the new ids fit, else up to the next multiple of 64."""
    have = shapes["model.embed_tokens.weight"][0]
    return have if needed <= have else -(-needed // 64) * 64


def _expected(config: Any) -> dict[str, tuple[int, ...]]:
    """Every weight of the target class, by name, with its shape."""
    from transformers import LlavaOnevisionForConditionalGeneration

    pool_mode(config), newline_order(config)  # what the adapter cannot read is refused before anything is written
    with torch.device("meta"):
        model = LlavaOnevisionForConditionalGeneration(config)
    wanted = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    return wanted


def _places(shapes: dict[str, tuple[int, ...]], config: Any, wanted: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Original name -> name in transformers, for every weight that is used; all of the target's must be among them."""
    nested = any(name.startswith("model.vision_tower.vision_model.") for name in wanted)
    depth = config.vision_config.num_hidden_layers
    placed = {}
    for name in shapes:
        new = original.renamed(name)
        if new is None or new.startswith(f"model.vision_tower.encoder.layers.{depth}."):
            continue
        placed[name] = new.replace("vision_tower.", "vision_tower.vision_model.", 1) if nested else new
    missing, extra = set(wanted) - set(placed.values()), set(placed.values()) - set(wanted)
    grows = ("model.language_model.embed_tokens.weight", "lm_head.weight")
    wrong = [n for o, n in placed.items() if n in wanted and n not in grows and shapes[o] != wanted[n]]
    if missing or extra or wrong:
        told = {"missing": missing, "left over": extra, "of another shape": wrong}
        said = "; ".join(f"{len(names)} {why} ({min(names)}, ...)" for why, names in told.items() if names)
        raise UnsupportedModel(f"the weights do not fill the target class: {said}", fix="give a complete checkpoint")
    return placed


def _write(shards: Sequence[Path], target: Path, placed: dict[str, str], rows: int, size: int) -> torch.dtype:
    """Write the weights, one output file per input file, and the index; returns the dtype of the embeddings."""
    where, dtype = {}, torch.float32
    with tqdm(total=size, unit="B", unit_scale=True, desc="convert", disable=size < 2**28) as bar:
        for number, shard in enumerate(shards, start=1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            tensors = dict(_renamed(shard, placed, rows))
            if "model.language_model.embed_tokens.weight" in tensors:
                dtype = tensors["model.language_model.embed_tokens.weight"].dtype
            if tensors:
                save_file(tensors, target / name, metadata={"format": "pt"})
                where |= dict.fromkeys(tensors, name)
            bar.update(shard.stat().st_size)
    index = {"metadata": {"total_size": sum((target / n).stat().st_size for n in set(where.values()))}}
    (target / INDEX).write_text(json.dumps(index | {"weight_map": where}, indent=2) + "\n")
    return dtype


def _renamed(shard: Path, placed: dict[str, str], rows: int) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(shard, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            if name not in placed:
                continue
            weight = file.get_tensor(name)
            if name in ("model.embed_tokens.weight", "lm_head.weight") and len(weight) < rows:
                mean = weight.float().mean(0, keepdim=True).to(weight.dtype)
                weight = torch.cat([weight, mean.expand(rows - len(weight), -1)])
            yield placed[name], weight.contiguous()


def main(words: Sequence[str]) -> int:
    """The command line."""
    about = "A checkpoint of the original LLaVA-NeXT format for transformers, shard by shard, without the hub."
    parser = Parser(prog="./reproduce.sh convert", description=about)
    parser.add_argument("--from", dest="source", type=Path, required=True, metavar="DIR", help="the original folder")
    parser.add_argument("--to", dest="target", type=Path, required=True, metavar="DIR", help="a folder to be made")
    parser.add_argument(
        "--pool",
        choices=("average", "bilinear"),
        help="how the frames are pooled; default: as the checkpoint's config says. The papers and lmms-eval run "
        "LLaVA-Video with average (13 x 13 tokens a frame)",
    )
    args = parser.parse_args(words)
    told = convert(args.source, args.target, args.pool)
    where = {"end": "one after the video", "row": "one after every row", "none": "none"}[told["newlines"]]
    sys.stdout.write(
        f"{args.target}: {told['weights']} weights ({told['dtype']}), pooling {told['pooling']}, newlines: {where}\n"
    )
    if told["newlines"] == "row" and told["pooling"] != "average":
        sys.stdout.write("LLaVA-Video is evaluated with average pooling in the papers: --pool average\n")
    return 0
