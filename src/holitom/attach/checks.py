"""What cannot work, refused by name before it gives wrong numbers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from holitom.errors import BadUsage, UnsupportedModel
from holitom.types import OPTIONAL_FIELDS, Reduction

_UNSUPPORTED = {
    "assistant_model": "assisted decoding rolls the cache back, which reduced layers cannot follow",
    "prompt_lookup_num_tokens": "assisted decoding rolls the cache back, which reduced layers cannot follow",
    "assistant_early_exit": "assisted decoding rolls the cache back, which reduced layers cannot follow",
    "use_mtp": "assisted decoding rolls the cache back, which reduced layers cannot follow",
    "speculation_type": "assisted decoding rolls the cache back, which reduced layers cannot follow",
    "prefill_chunk_size": "a prompt in pieces cannot be reduced, which needs all of it at once",
    "token_healing": "the prompt's ids are changed behind the back of its embeddings",
    "custom_generate": "foreign generation code is unknown to token reduction",
}
_POSITIONS = ("contiguous", "original")
_INNER = {
    "score": ("prev", "this"),
    "query": ("last", "text"),
    "positions": _POSITIONS,
    "prune_past": (True, False),
    "causal": (True, False),
    "include_newlines": (True, False),
}
"""What the attributes of a stage may be (``holitom.types``)."""


def check_model(model: nn.Module) -> None:
    """Training mode and compiled modules are refused."""
    if any(
        hasattr(m, "_orig_mod")
        or getattr(m, "_compiled_call_impl", None)
        or hasattr(vars(m).get("forward"), "_torchdynamo_orig_callable")
        for m in model.modules()
    ):
        raise UnsupportedModel(
            "the model is compiled (torch.compile), and token counts change from call to call", fix="use it uncompiled"
        )
    if model.training:
        raise UnsupportedModel("the model is in training mode", fix="call model.eval() first")


def check_stages(adapter: Any, reduction: Reduction) -> None:
    """Stages of the wrong kind, layers out of range or out of order, and sliding-window decoders are refused."""
    outer, inner, decode = reduction.outer, reduction.inner, reduction.decode
    if outer is None and reduction.budget < 1:
        raise BadUsage(
            f"budget {reduction.budget} without an outer stage to spend it",
            fix="give outer=..., or leave budget at 1",
        )
    if outer is not None:
        if isinstance(outer, type) or not callable(outer) or not hasattr(outer, "requires"):
            raise BadUsage(f"{outer!r} is not an outer stage", fix="give an instance, for instance HoliTom(tau=0.65)")
        _check_attributes(outer, {"positions": _POSITIONS})
        if unknown := set(outer.requires) - set(OPTIONAL_FIELDS):
            raise BadUsage(
                f"{type(outer).__name__} requires {', '.join(map(repr, sorted(unknown)))}",
                fix=f"require some of {', '.join(OPTIONAL_FIELDS)}",
            )
    depth = len(adapter.layers)
    for stage in (*inner, *([decode] if decode is not None else [])):
        if isinstance(stage, type) or not callable(stage) or not hasattr(stage, "layer"):
            raise BadUsage(
                f"{stage!r} is not a stage with a layer", fix="give instances, e.g. HoliTomMerge(layer=18, ratio=.5)"
            )
        lowest = 0 if getattr(stage, "score", "prev") == "this" else 1
        if not isinstance(stage.layer, int) or not lowest <= stage.layer < depth:
            raise BadUsage(
                f"{type(stage).__name__} at layer {stage.layer!r}, but its layer must be an int in [{lowest}, {depth - 1}]",
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
    if layers != sorted(set(layers)):
        raise BadUsage(
            f"inner stages at layers {layers}", fix="give every inner stage a layer of its own, in ascending order"
        )
    config = adapter.text.config
    usual = ["full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"]
    kinds = set(getattr(config, "layer_types", None) or usual) - {"full_attention"}
    if (inner or decode is not None) and kinds:
        raise UnsupportedModel(
            f"this decoder has {', '.join(sorted(kinds))} layers, whose window counts slots",
            fix="use an outer stage only",
        )


def _check_attributes(stage: Any, allowed: Mapping[str, tuple[Any, ...]]) -> None:
    for name, values in allowed.items():
        words = f"{name} {' or '.join(map(repr, values))}"
        if getattr(stage, name, None) not in values:
            has = f"has {name} {getattr(stage, name)!r}" if hasattr(stage, name) else f"has no attribute {name!r}"
            raise BadUsage(f"{type(stage).__name__} {has}", fix=f"give it {words}")


def generation_setting(model: Any, given: Mapping[str, Any], name: str) -> Any:
    """What a call of ``generate`` goes by: its own argument, its configuration's, the model's; None without any."""
    if name in given:
        return given[name]
    configs = (given.get("generation_config"), getattr(model, "generation_config", None))
    return next((v for c in configs if c is not None and (v := getattr(c, name, None)) is not None), None)


def check_generation(model: Any, given: Mapping[str, Any]) -> None:
    """Modes of ``generate`` that assume that all layers hold the same columns are refused."""
    for name, why in _UNSUPPORTED.items():
        if generation_setting(model, given, name):
            raise UnsupportedModel(f"generate with {name}: {why}", fix="generate without it")
    cache = generation_setting(model, given, "cache_implementation")
    if cache not in (None, "dynamic"):
        raise UnsupportedModel(
            f"cache_implementation={cache!r} cannot hold layers of different length",
            fix="leave it out, so that generate uses a DynamicCache",
        )


def check_cache(cache: Any, *, inside: bool) -> None:
    """Only plain caches grow with a reduced prompt. inside: stages in the decoder also read and shorten them."""
    layers = {type(layer).__name__ for layer in getattr(cache, "layers", ())}
    plain = {"DynamicLayer", "ReadingLayer"} if inside else {"DynamicLayer", "ReadingLayer", "DynamicSlidingWindowLayer"}
    if cache is None or (type(cache).__name__ == "DynamicCache" and layers <= plain and not getattr(cache, "offloading", 0)):
        return
    raise UnsupportedModel(
        f"a {type(cache).__name__} with offloading, a fixed size, or layers other than {', '.join(sorted(plain))}",
        fix="use DynamicCache() without options",
    )
