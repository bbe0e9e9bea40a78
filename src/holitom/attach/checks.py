"""What cannot work, refused by name before it gives wrong numbers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from holitom.errors import BadUsage, UnsupportedModel
from holitom.types import OPTIONAL_FIELDS, Reduction

_REFUSED = {
    "custom_generate": "runs code that knows nothing of reduced prompts",
    "prefill_chunk_size": "cuts the prompt into pieces, and reduction needs all of it at once",
    "token_healing": "changes the prompt's ids after it has been reduced",
} | dict.fromkeys(
    ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp", "speculation_type"),
    "is assisted decoding, which rolls the cache back; reduced layers cannot follow",
)
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
    for module in model.modules():
        own = vars(module)
        if "_orig_mod" in own.get("_modules", {}) or getattr(module, "_compiled_call_impl", None) or hasattr(
            own.get("forward"), "_torchdynamo_orig_callable"
        ):
            raise UnsupportedModel(
                "the model is compiled (torch.compile), and token counts change from call to call",
                fix="use it uncompiled",
            )
    if model.training:
        raise UnsupportedModel("the model is in training mode", fix="call model.eval() first")


def check_stages(adapter: Any, reduction: Reduction) -> None:
    """Stages of the wrong kind, layers out of range or out of order, and decoders that inner stages cannot follow."""
    outer, inner, decode = reduction.outer, reduction.inner, reduction.decode
    if outer is None and reduction.budget < 1:
        raise BadUsage(
            f"budget {reduction.budget} without an outer stage to spend it", fix="give outer=..., or a budget of 1"
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
    inside = [*inner, *([] if decode is None else [decode])]
    for stage in inside:
        if isinstance(stage, type) or not callable(stage) or not hasattr(stage, "layer"):
            raise BadUsage(
                f"{stage!r} is not a stage with a layer", fix="give instances, e.g. HoliTomMerge(layer=18, ratio=.5)"
            )
        lowest, depth = int(getattr(stage, "score", "prev") != "this"), len(adapter.layers)
        if not isinstance(stage.layer, int) or not lowest <= stage.layer < depth:
            raise BadUsage(
                f"{type(stage).__name__} at layer {stage.layer!r}, which is no int in [{lowest}, {depth - 1}]",
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
        raise BadUsage(f"inner stages at layers {layers}", fix="give each a layer of its own, in ascending order")
    config = adapter.text.config
    usual = ["full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"]
    odd = set(getattr(config, "layer_types", None) or usual) - {"full_attention"}
    if not config._attn_implementation.startswith(("eager", "sdpa", "flash_attention")):
        odd.add(config._attn_implementation)
    if inside and odd:
        raise UnsupportedModel(
            f"stages inside the decoder need full attention by eager, sdpa or flash, not {', '.join(sorted(odd))}",
            fix="use an outer stage only",
        )


def _check_attributes(stage: Any, allowed: Mapping[str, tuple[Any, ...]]) -> None:
    for name, values in allowed.items():
        if getattr(stage, name, None) not in values:
            has = f"has {name} {getattr(stage, name)!r}" if hasattr(stage, name) else f"has no attribute {name!r}"
            raise BadUsage(f"{type(stage).__name__} {has}", fix=f"use {' or '.join(map(repr, values))}")


def setting(model: Any, given: Mapping[str, Any], name: str) -> Any:
    """What a call of ``generate`` goes by: its own argument, its configuration's, the model's; None without any."""
    if name in given:
        return given[name]
    configs = (given.get("generation_config"), getattr(model, "generation_config", None))
    return next((v for c in configs if c is not None and (v := getattr(c, name, None)) is not None), None)


def check_generation(model: Any, given: Mapping[str, Any]) -> None:
    """Modes of ``generate`` that assume that all layers hold the same columns are refused."""
    for name, why in _REFUSED.items():
        if setting(model, given, name):
            raise UnsupportedModel(f"{name} {why}", fix="generate without it")
    cache = setting(model, given, "cache_implementation")
    if cache not in (None, "dynamic"):
        raise UnsupportedModel(
            f"cache_implementation={cache!r} cannot hold layers of different length",
            fix="leave it out, so that generate uses a DynamicCache",
        )


def check_cache(cache: Any, *, inside: bool) -> None:
    """Only plain caches grow with a reduced prompt; stages inside the decoder also read and shorten them."""
    kinds = {type(layer).__name__ for layer in getattr(cache, "layers", ())}
    plain = {"DynamicLayer", "ReadingLayer"} | (set() if inside else {"DynamicSlidingWindowLayer"})
    if cache is None or (type(cache).__name__ == "DynamicCache" and kinds <= plain and not getattr(cache, "offloading", False)):
        return
    raise UnsupportedModel(
        f"a {type(cache).__name__} of {', '.join(sorted(kinds)) or 'no'} layers, of fixed size, offloaded or quantised",
        fix="use DynamicCache() without options",
    )
