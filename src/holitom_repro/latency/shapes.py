"""Models of the papers' shapes with random weights, made on the device they run on; or a real checkpoint.

The sizes are those of the published configs (SigLIP so400m at 384 pixels, Qwen2). What a random model answers means
nothing; what it costs is what the trained one costs, as long as no stage of the method looks at the features, and for
those that do see ``holitom_repro.latency.content``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from holitom_repro import paths
from holitom.errors import BadUsage, CannotRun, UnsupportedModel
from holitom_repro.refusals import device as known_device

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
_QWEN = {"rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "max_position_embeddings": 32768}


@dataclass(frozen=True)
class Shape:
    """What a model of this name looks like. preset: the model whose presets fit it; row_newlines: LLaVA-Video's manner
    (average pooling to 13 x 13, a newline after every row); layers: decoder layers, ``full_layers`` in the original."""

    name: str
    preset: str
    frames: int
    hidden_size: int
    intermediate_size: int
    layers: int
    num_heads: int
    num_key_value_heads: int
    vocab_size: int = 152064
    row_newlines: bool = False
    full_layers: int = 0

    def cut(self, layers: int | None) -> Shape:
        """The same shape with fewer decoder layers; what is lost is only repetition."""
        if layers is None:
            return replace(self, full_layers=self.layers)
        if not 2 <= layers <= self.layers:
            raise BadUsage(f"{layers} layers of {self.name}", fix=f"give 2 to {self.layers}")
        return replace(self, layers=layers, full_layers=self.layers)

    def config(self) -> Any:
        """A transformers config of this shape."""
        from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

        text = Qwen2Config(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_key_value_heads,
            tie_word_embeddings=False,
            pad_token_id=0,
            **_QWEN,
        )
        config = LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(**SIGLIP),
            text_config=text,
            image_token_index=151646,
            video_token_index=151647,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            tie_word_embeddings=False,
        )
        if self.row_newlines:
            config.mm_newline_position, config.mm_spatial_pool_mode = "grid", "average"
        return config


SHAPES: dict[str, Shape] = {
    "ov-7b": Shape("ov-7b", "ov-7b", 32, 3584, 18944, 28, 28, 4),
    "video-7b": Shape("video-7b", "video-7b", 64, 3584, 18944, 28, 28, 4, row_newlines=True),
    "ov-72b-shape": Shape("ov-72b-shape", "ov-72b", 32, 8192, 29568, 80, 64, 8),
    "ov-0.5b": Shape("ov-0.5b", "ov-7b", 32, 896, 4864, 24, 14, 2, vocab_size=152000),
}
FOLDERS = {"tiny": ("tiny", "onevision"), "tiny-video": ("tiny", "video")}
"""Shipped, trained models: below data/."""


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode, and what it is. preset: whose presets fit; weights: "random", or where they came from;
    tier: which tier its timings belong to; stock: whether transformers runs it without this kit."""

    model: nn.Module
    name: str
    preset: str
    frames: int
    layers: int
    full_layers: int
    weights: str
    tier: str
    stock: bool

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def weight_bytes(self) -> int:
        return sum(p.nbytes for p in self.model.parameters()) + sum(b.nbytes for b in self.model.buffers())


def load(
    name: str, *, device: str | torch.device = "cpu", dtype: str = "bfloat16", layers: int | None = None, seed: int = 0
) -> Loaded:
    """A named shape with random weights, a shipped tiny model, or the checkpoint in a folder.

    Raises BadUsage (unknown name, layers of a checkpoint), CannotRun (no such device) and UnsupportedModel (a folder
    that holds something else). torch.OutOfMemoryError passes through: the caller records it.
    """
    device = known_device(str(device))
    if device.type == "cuda" and device.index:
        raise BadUsage(
            f"--device {device}: clocks and events would be those of another GPU",
            fix=f"CUDA_VISIBLE_DEVICES={device.index} and --device cuda",
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CannotRun("no CUDA device here", fix="give --device cpu (and --model tiny, or it takes hours)")
    if dtype not in DTYPES:
        raise BadUsage(f"dtype {dtype!r} is not known", fix=f"use one of {', '.join(DTYPES)}")
    if name in SHAPES:
        shape = SHAPES[name].cut(layers)
        model = build(shape.config(), device=device, dtype=DTYPES[dtype], seed=seed)
        stock = not shape.row_newlines
        return Loaded(
            model, name, shape.preset, shape.frames, shape.layers, shape.full_layers, "random", "speed", stock
        )
    folder = paths.data(*FOLDERS[name]) if name in FOLDERS else Path(name)
    if not folder.is_dir():
        known = ", ".join([*SHAPES, *FOLDERS])
        raise BadUsage(
            f"--model {name}: neither a known shape nor a folder", fix=f"use {known}, or a checkpoint's path"
        )
    if layers is not None:
        raise BadUsage("--layers with a checkpoint", fix="leave it out: a checkpoint runs with all of its layers")
    return _checkpoint(name, folder, device, dtype)


def build(config: Any, *, device: torch.device, dtype: torch.dtype, seed: int = 0) -> nn.Module:
    """A model with random weights, every tensor made on ``device`` in ``dtype``: no copy on the host, no hub.

    Matrices are normal with deviation 0.02, biases and the newline are zero or drawn likewise, norms are one.
    """
    from transformers import LlavaOnevisionForConditionalGeneration

    with _default_dtype(dtype), torch.device(device), _without_initialisation():
        model = LlavaOnevisionForConditionalGeneration(config)
    draw = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1 and "newline" not in name:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                weight.normal_(0.0, 0.02, generator=draw)
    model.requires_grad_(False)
    model.generation_config.eos_token_id = None
    return model.eval()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _without_initialisation() -> AbstractContextManager[None]:
    """Skip the library's own initialisation, which ``build`` overwrites: minutes at the size of 72B."""
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # moved in some release: slower, and the same in the end
        return nullcontext()
    return no_init_weights()


def _checkpoint(name: str, folder: Path, device: torch.device, dtype: str) -> Loaded:
    from holitom.models.processing import load_model

    model = load_model(folder, dtype, device).requires_grad_(False)
    config = model.config
    layers = config.text_config.num_hidden_layers
    stock = (
        getattr(config, "mm_newline_position", "one_token") == "one_token" and config.model_type == "llava_onevision"
    )
    if config.model_type != "llava_onevision":
        raise UnsupportedModel(f"{folder} is a {config.model_type!r} model", fix="give a LLaVA-OneVision checkpoint")
    preset = "ov-72b" if layers == 80 else "ov-7b" if stock else "video-7b"
    tier = "tiny" if name in FOLDERS else "paper"
    weights = "/".join(("data", *FOLDERS[name])) if name in FOLDERS else folder.name
    return Loaded(model, name if name in FOLDERS else folder.name, preset, 32, layers, layers, weights, tier, stock)
