"""What cannot work, refused by name before it gives wrong numbers."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from holitom.errors import BadUsage, UnsupportedModel
from holitom.types import OPTIONAL_FIELDS, Reduction

_REFUSED = (
    *("custom_generate", "prefill_chunk_size", "token_healing"),
    *("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp", "speculation_type"),
)
"""Settings of ``generate`` that go back in the cache, or that cut or change the prompt, which is reduced as a whole."""
_POSITIONS = {"positions": ("contiguous", "original")}
_INNER = _POSITIONS | {
    "score": ("prev", "this"),
    "query": ("last", "text"),
    **dict.fromkeys(("prune_past", "causal", "include_newlines"), (True, False)),
}
"""What the attributes of a stage may be (``holitom.types``)."""


def check_model(model: nn.Module, parts: Iterable[nn.Module]) -> None:
    """Training mode, and compiled modules among the parts of a model, are refused."""
    for module in parts:
        compiled = hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        if compiled or "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None):
            raise UnsupportedModel("the model is compiled, and token counts change every time", fix="do not compile")
    if model.training:
        raise UnsupportedModel("the model is in training mode", fix="call model.eval() first")


def check_stages(adapter: Any, reduction: Reduction) -> None:
    """Stages of the wrong kind, layers out of range or out of order, and decoders that inner stages cannot follow."""
    outer, inner, decode = reduction.outer, reduction.inner, reduction.decode
    if outer is None and reduction.budget < 1:
        raise BadUsage(f"budget {reduction.budget} without an outer stage to spend it", fix="give outer=...")
    if outer is not None:
        if isinstance(outer, type) or not callable(outer) or not hasattr(outer, "requires"):
            raise BadUsage(f"{outer!r} is not an outer stage", fix="give an instance, for instance HoliTom(tau=0.65)")
        _check_attributes(outer, _POSITIONS)
        unknown, known = sorted(set(outer.requires) - set(OPTIONAL_FIELDS)), ", ".join(OPTIONAL_FIELDS)
        if unknown:
            raise BadUsage(f"{type(outer).__name__} requires {unknown}", fix=f"require some of {known}")
    inside, depth = [*inner, *([] if decode is None else [decode])], len(adapter.layers)
    for stage in inside:
        if isinstance(stage, type) or not callable(stage) or not hasattr(stage, "layer"):
            raise BadUsage(f"{stage!r} is not a stage with a layer", fix="give instances, e.g. FastV(layer=2)")
        name, lowest = type(stage).__name__, int(getattr(stage, "score", "prev") != "this")
        if not isinstance(stage.layer, int) or not lowest <= stage.layer < depth:
            raise BadUsage(f"{name} at layer {stage.layer!r}", fix=f"give an int in [{lowest}, {depth - 1}]")
        if stage is not decode:
            _check_attributes(stage, _INNER)
    try:
        inspect.signature(decode or (lambda row, visual: None)).bind("row", "visual")
    except TypeError:
        raise BadUsage(f"{type(decode).__name__} is no decode stage", fix="prefill's go into inner=") from None
    layers, config = [stage.layer for stage in inner], adapter.text.config
    if layers != sorted(set(layers)):
        raise BadUsage(f"inner stages at layers {layers}", fix="give each a layer of its own, in ascending order")
    slides = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    usual = ["sliding_attention" if slides else "full_attention"]  # of decoders that do not tell their layers
    odd = set(getattr(config, "layer_types", None) or usual) - {"full_attention"}
    if not config._attn_implementation.startswith(("eager", "sdpa", "flash_attention")):
        odd.add(config._attn_implementation)
    if inside and odd:
        what = f"stages inside the decoder need full attention by eager, sdpa or flash, not {', '.join(sorted(odd))}"
        raise UnsupportedModel(what, fix="use an outer stage only")


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
    for name in _REFUSED:
        if setting(model, given, name):
            raise UnsupportedModel(f"{name} does not work with reduced prompts", fix="generate without it")
    cache = setting(model, given, "cache_implementation")
    if cache not in (None, "dynamic"):
        raise UnsupportedModel(f"cache_implementation={cache!r}: layers differ in length here", fix="leave it out")


def check_cache(cache: Any, *, inside: bool) -> None:
    """Only plain caches grow with a reduced prompt; stages inside the decoder also read and shorten them."""
    kinds = {type(layer).__name__ for layer in getattr(cache, "layers", ())}
    plain = {"DynamicLayer", "ReadingLayer"} | (set() if inside else {"DynamicSlidingWindowLayer"})
    known = type(cache).__name__ in ("DynamicCache", "ReducedCache")
    dynamic = cache is None or (known and not getattr(cache, "offloading", False))
    if not dynamic or not kinds <= plain:
        what = f"a {type(cache).__name__} of {', '.join(sorted(kinds)) or 'no'} layers, fixed, offloaded or quantised"
        raise UnsupportedModel(what, fix="use DynamicCache() without options")
