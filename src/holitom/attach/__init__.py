"""The door: put token reduction into a video language model for as long as a ``with`` block lasts.

``generate`` of the model instance reduces the videos, splices the prompt and goes on from embeddings; the forward of
its core does so for a plain call. From there on the model itself counts in the reduced prompt: nothing is translated
back. Hooks on the decoder layers run the stages inside (``holitom.attach.decoder``)."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from holitom.attach.llava_package import PackageRun
from holitom.attach.session import Run, check_model
from holitom.attach.stats import RunStats, SampleStats
from holitom.attach.tower import tower_layers
from holitom.errors import BadUsage, UnsupportedModel
from holitom.models import Adapter, adapter_for
from holitom.types import OPTIONAL_FIELDS, Decode, Inner, Outer, Reduction, Tower, check_budget

__all__ = ["Run", "RunStats", "SampleStats", "reduce_tokens"]
_CHANGING = threading.Lock()  # two threads that open a block at once would take each other's methods for the model's
_OUTER = {"positions": ("contiguous", "original")}
_INNER = {
    "positions": ("contiguous", "original"),
    "score": ("prev", "this"),
    "query": ("last", "text"),
    **dict.fromkeys(("prune_past", "causal", "include_newlines"), (True, False)),
}
"""What the attributes of a stage may be (``holitom.types``)."""


@contextmanager
def reduce_tokens(
    model: nn.Module,
    outer: Outer | None = None,
    budget: float = 1.0,
    inner: Inner | Sequence[Inner] = (),
    decode: Decode | None = None,
    *,
    tower: Tower | None = None,
    reduction: Reduction | None = None,
) -> Iterator[Run]:
    """Reduce the visual tokens of every video that this model sees inside the block::

        with reduce_tokens(model, outer=HoliTom(tau=0.65), budget=0.1, inner=HoliTomMerge(layer=18, ratio=0.5)) as run:
            out = model.generate(**inputs)
        run.stats.last.kept

    outer runs before the language model and keeps about ``budget`` of the T * N tokens; inner stages run once each in
    prefill, in front of their layers; decode chooses what is read for every generated token; tower (``EarlyTom()``)
    merges frames inside a SigLIP tower, so that outer sees fewer. ``reduction`` gives all five at once. ``run.stats``
    says what was asked and spent; ``check_acted()`` raises CannotRun when a stage has done nothing.

    Prompts keep their placeholders (any number > 0 per video, one unbroken run each), and returned sequences the full
    prompt. ``generate``: greedy, sampling, beams, returned sequences, left-padded batches, several videos, images
    beside them; what reads ids while generating reads those of the full prompt; a cache is always used. A plain forward
    gives the logits of the reduced prompt, padded on the left; further tokens may follow on its cache (their positions
    and mask follow from it), but no further ``generate``. Images and prompts without video pass through unchanged.

    Hooks and instance attributes (``generate``, ``forward`` of the core) are set on this model object and removed when
    the block ends, also after an exception. Copying the model inside the block is refused, and so is a second thread
    while a call is under way; a call that outlives the block raises in its own thread, and so does what goes on from a
    cache that was filled inside it. Raises UnsupportedModel (unknown family, training mode, compiled model,
    static, offloaded or quantised cache, chunked prefill, assisted decoding; sliding windows for stages inside the
    decoder) and BadUsage (budget, layers, attributes of a stage, labels, inputs).
    """
    if reduction is not None and not isinstance(reduction, Reduction):
        raise BadUsage(f"reduction is a {type(reduction).__name__}", fix="give a Reduction: preset(...).reduction")
    if reduction is not None and (budget != 1.0 or inner or any(stage is not None for stage in (outer, decode, tower))):
        raise BadUsage("a reduction is given, and stages beside it", fix="give one of the two")
    stages = tuple(inner) if isinstance(inner, Sequence) else (inner,)
    chosen = reduction or Reduction("custom", outer, budget, stages, decode, tower)
    check_budget(chosen.budget)
    check_model(model, model.modules())
    adapter = adapter_for(model)
    _check_stages(adapter, chosen)
    run = (PackageRun if hasattr(adapter, "owner") else Run)(model, adapter, chosen)
    try:
        with _CHANGING:
            run.install()
        yield run
    finally:
        with _CHANGING:
            run.remove()


def _check_stages(adapter: Adapter, reduction: Reduction) -> None:
    """Stages of the wrong kind, layers out of range or out of order, and decoders that stages inside cannot follow."""
    outer, inner, decode, depth = reduction.outer, reduction.inner, reduction.decode, len(adapter.layers)
    if outer is not None:
        _check_kind(outer, "an outer stage", "requires", _OUTER)
        unknown, known = sorted(set(outer.requires) - set(OPTIONAL_FIELDS)), ", ".join(OPTIONAL_FIELDS)
        if unknown:
            raise BadUsage(f"{type(outer).__name__} requires {unknown}", fix=f"require some of {known}")
    elif reduction.budget < 1:
        raise BadUsage(f"budget {reduction.budget} without an outer stage to spend it", fix="give outer=...")
    for stage in (*inner, *([] if decode is None else [decode])):
        _check_kind(stage, "a stage with a layer", "layer", {} if stage is decode else _INNER)
        name, lowest = type(stage).__name__, int(getattr(stage, "score", "prev") != "this")
        if not isinstance(stage.layer, int) or not lowest <= stage.layer < depth:
            raise BadUsage(f"{name} at layer {stage.layer!r}", fix=f"give an int in [{lowest}, {depth - 1}]")
        if stage is decode and hasattr(stage, "score"):
            raise BadUsage(f"{name} is no decode stage", fix="prefill's go into inner=")
    layers, config = [stage.layer for stage in inner], adapter.text.config
    if layers != sorted(set(layers)):
        raise BadUsage(f"inner stages at layers {layers}", fix="give each a layer of its own, in ascending order")
    slides = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    usual = ["sliding_attention" if slides else "full_attention"]  # of decoders that do not tell their layers
    odd = set(getattr(config, "layer_types", None) or usual) - {"full_attention"}
    if not config._attn_implementation.startswith(("eager", "sdpa", "flash_attention")):
        odd.add(config._attn_implementation)
    if odd and (inner or decode is not None):
        what = f"stages inside the decoder need full attention by eager, sdpa or flash, not {', '.join(sorted(odd))}"
        raise UnsupportedModel(what, fix="use an outer stage only")
    if reduction.tower is not None:
        _check_tower(adapter, reduction.tower)


def _check_kind(stage: Any, kind: str, mark: str, allowed: Mapping[str, tuple[Any, ...]]) -> None:
    """An instance that can be called, with the attribute ``mark``, and others of allowed values."""
    if isinstance(stage, type) or not callable(stage) or not hasattr(stage, mark):
        raise BadUsage(f"{stage!r} is not {kind}", fix="give an instance, for instance HoliTom(tau=0.65)")
    for name, values in allowed.items():
        if getattr(stage, name, None) not in values:
            has = f"has {name} {getattr(stage, name)!r}" if hasattr(stage, name) else f"has no attribute {name!r}"
            raise BadUsage(f"{type(stage).__name__} {has}", fix=f"use {' or '.join(map(repr, values))}")


def _check_tower(adapter: Adapter, stage: Any) -> None:
    """What is no tower stage, layers out of range or out of order, and features from before they are done."""
    _check_kind(stage, "a tower stage", "layers", {})
    layers, depth = list(stage.layers), len(tower_layers(adapter))
    fits = all(isinstance(layer, int) and 0 <= layer < depth - 1 for layer in layers)
    if not fits or layers != sorted(set(layers)):
        what = f"{type(stage).__name__} behind layers {layers} of a tower of {depth}"
        raise BadUsage(what, fix=f"give ascending ints in [0, {depth - 2}]")
    chosen = getattr(adapter.config, "vision_feature_layer", -1)
    for state in [chosen] if isinstance(chosen, int) else chosen:
        if layers and (state + depth if state < 0 else state - 1) <= layers[-1]:  # the layer that puts it out
            what = f"features are taken from state {state}, and frames are merged behind layer {layers[-1]}"
            raise UnsupportedModel(what, fix="give the stage earlier layers")
