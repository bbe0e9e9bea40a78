"""What cannot work, refused by name before it gives wrong numbers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn
from transformers.cache_utils import Cache

from holitom.attaching.library import DynamicLayer
from holitom.attaching.reading import ReadingLayer
from holitom.errors import BadUsage, UnsupportedModel
from holitom.models import Adapter
from holitom.types import OPTIONAL_FIELDS, POSITIONS, Decode, Inner, Outer

_ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
_DYNAMIC = (None, "dynamic")
_PLAIN = (DynamicLayer, ReadingLayer)
_OUTER: dict[str, tuple[Any, ...]] = {"positions": POSITIONS}
_INNER: dict[str, tuple[Any, ...]] = {
    "score": ("prev", "this"),
    "query": ("last", "text"),
    "positions": POSITIONS,
    "prune_past": (True, False),
    "causal": (True, False),
    "include_newlines": (True, False),
}
"""What the attributes of a stage may be (``holitom.types``)."""


def check_model(model: nn.Module) -> None:
    """Training mode, compiled modules, and a model that is already reduced are refused."""
    if hasattr(model, "_orig_mod") or any(getattr(m, "_compiled_call_impl", None) for m in model.modules()):
        raise UnsupportedModel(
            "the model is compiled (torch.compile), and token counts change from call to call", fix="use it uncompiled"
        )
    if any("get_video_features" in vars(module) for module in model.modules()):
        raise BadUsage("this model is already inside a reduce_tokens block", fix="leave that block first")
    check_not_training(model)


def check_not_training(model: nn.Module) -> None:
    if model.training:
        raise UnsupportedModel("the model is in training mode", fix="call model.eval() first")


def check_stages(
    adapter: Adapter, outer: Outer | None, budget: float, inner: Sequence[Inner], decode: Decode | None
) -> None:
    """Stages of the wrong kind, layers out of range or out of order, and sliding-window decoders are refused."""
    if outer is not None and (isinstance(outer, type) or not callable(outer) or not hasattr(outer, "requires")):
        raise BadUsage(f"{outer!r} is not an outer stage", fix="give an instance, for instance HoliTom(tau=0.65)")
    if outer is not None:
        _check_attributes(outer, _OUTER)
        if unknown := set(outer.requires) - set(OPTIONAL_FIELDS):
            raise BadUsage(
                f"{type(outer).__name__} requires {', '.join(map(repr, sorted(unknown)))}",
                fix=f"require some of {', '.join(OPTIONAL_FIELDS)}",
            )
    if outer is None and budget < 1:
        raise BadUsage(
            f"budget {budget} without an outer stage to spend it", fix="give outer=..., or leave budget at 1"
        )
    depth = len(adapter.layers)
    for stage in (*inner, *([decode] if decode is not None else [])):
        if isinstance(stage, type) or not callable(stage) or not hasattr(stage, "layer"):
            raise BadUsage(
                f"{stage!r} is not a stage with a layer", fix="give instances, e.g. HoliTomMerge(layer=18, ratio=.5)"
            )
        if not isinstance(stage.layer, int):
            raise BadUsage(
                f"{type(stage).__name__} at layer {stage.layer!r}, which is no int", fix="count layers from 0"
            )
        lowest = 0 if getattr(stage, "score", "prev") == "this" else 1
        if not lowest <= stage.layer < depth:
            raise BadUsage(
                f"{type(stage).__name__} at layer {stage.layer}, but its layer must lie in [{lowest}, {depth - 1}]",
                fix=f"this model's decoder has {depth} layers, counted from 0",
            )
    for stage in inner:
        _check_attributes(stage, _INNER)
    if decode is not None:
        try:
            inspect.signature(decode).bind("row", "visual")
        except TypeError:
            raise BadUsage(
                f"{type(decode).__name__} is no decode stage: it cannot be called with a row and ids",
                fix="give a stage inside the decoder's prefill as inner=",
            ) from None
    layers = [stage.layer for stage in inner]
    if len(set(layers)) < len(layers):
        raise BadUsage(f"two inner stages at one layer: {layers}", fix="give every inner stage a layer of its own")
    if layers != sorted(layers):
        raise BadUsage(
            f"inner stages at layers {layers} are not in ascending order", fix=f"order them as {sorted(layers)}"
        )
    window = getattr(adapter.text.config, "sliding_window", None)
    usual = ["full_attention" if window is None else "sliding_attention"]  # of decoders that do not tell their layers
    kinds = set(getattr(adapter.text.config, "layer_types", None) or usual)
    if (inner or decode is not None) and kinds != {"full_attention"}:
        raise UnsupportedModel(
            f"this decoder has {', '.join(sorted(kinds - {'full_attention'}))} layers, whose window counts slots",
            fix="use an outer stage only",
        )


def _check_attributes(stage: Outer | Inner, allowed: Mapping[str, tuple[Any, ...]]) -> None:
    for name, values in allowed.items():
        words = f"{name} {' or '.join(map(repr, values))}"
        if not hasattr(stage, name):
            raise BadUsage(f"{type(stage).__name__} has no attribute {name!r}", fix=f"give it {words}")
        if getattr(stage, name) not in values:
            raise BadUsage(f"{type(stage).__name__} has {name} {getattr(stage, name)!r}", fix=f"use {words}")


def generation_setting(model: Any, kwargs: Mapping[str, Any], name: str) -> Any:
    """What a call of ``generate`` goes by: its own argument, its configuration's, the model's; None without any."""
    if name in kwargs:
        return kwargs[name]
    configs = (kwargs.get("generation_config"), getattr(model, "generation_config", None))
    return next((v for c in configs if c is not None and (v := getattr(c, name, None)) is not None), None)


def rows_per_prompt(model: Any, kwargs: Mapping[str, Any]) -> int:
    """How many rows ``generate`` makes of each prompt, side by side: its beams, or the sequences to return."""
    return max(generation_setting(model, kwargs, name) or 1 for name in ("num_beams", "num_return_sequences"))


def check_generation(model: Any, kwargs: Mapping[str, Any]) -> None:
    """Modes of ``generate`` that assume that all layers hold the same columns are refused."""
    setting = partial(generation_setting, model, kwargs)
    for name in _ASSISTED:
        if setting(name):
            raise UnsupportedModel(
                f"assisted decoding ({name}) rolls the cache back, which reduced layers cannot follow",
                fix="generate without it",
            )
    if setting("prefill_chunk_size"):
        raise UnsupportedModel(
            "prefill_chunk_size cuts the prompt into pieces, and reduction needs the whole prompt at once",
            fix="generate with prefill_chunk_size=None",
        )
    if setting("cache_implementation") not in _DYNAMIC:
        raise UnsupportedModel(
            f"cache_implementation={setting('cache_implementation')!r} cannot hold layers of different length",
            fix="leave it out, so that generate uses a DynamicCache",
        )
    if kwargs.get("custom_generate") is not None:
        raise UnsupportedModel("custom_generate code is unknown to token reduction", fix="generate without it")


def check_cache(cache: Cache | None, needs_plain_layers: bool) -> None:
    """Only caches that grow by concatenation work; stages inside the decoder also read and shorten them."""
    if cache is None:
        return
    if (
        not isinstance(cache, Cache)
        or cache.is_compileable
        or not all(isinstance(x, DynamicLayer) for x in cache.layers)
    ):
        raise UnsupportedModel(
            f"a {type(cache).__name__} has a fixed size or layout, and reduced prompts do not", fix="use a DynamicCache"
        )
    if needs_plain_layers and (cache.offloading or any(type(x) not in _PLAIN for x in cache.layers)):
        raise UnsupportedModel(
            f"stages inside the decoder need plain cache layers, not a {type(cache).__name__} with offloading, "
            "quantised or sliding-window layers",
            fix="use DynamicCache() without options",
        )
