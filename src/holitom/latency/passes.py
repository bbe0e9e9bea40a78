"""One pass: pixels on the device -> the first token -> further tokens, with marks at the boundaries of its stages.

Marks come from outside: hooks on the model's modules, set before and after those of ``reduce_tokens``, and a wrapper
around the outer stage. The code that is measured is the code that users run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from holitom.attach import reduce_tokens
from holitom.attaching.stats import RunStats
from holitom.latency.shapes import Loaded
from holitom.latency.timeline import Clock, Timeline
from holitom.models import Adapter, adapter_for
from holitom.types import Reduction, VideoFeatures

STAGES = ("vision_tower", "saliency", "projector", "outer", "splice", "prefill", "inner", "first_token")
"""vision_tower; saliency: q and k of the tower's last layer read again; projector: with the pooling; outer: the
reduction before the language model; splice: prompt, newlines, embeddings; prefill: the decoder; inner: stages inside
it, with their attention rows and the later layers' positions; first_token: last norm to the chosen id."""
ADDED = ("saliency", "outer", "inner")
"""The stages that only a reduction has."""


@dataclass(frozen=True)
class Inputs:
    """pixels [B, T, 3, H, W] and ids [B, S] on the device; features: one per sample, to be used instead of what the
    tower makes of the pixels (None: the tower's own)."""

    pixels: Tensor
    ids: Tensor
    features: tuple[VideoFeatures, ...] | None = None

    @property
    def batch(self) -> int:
        return self.ids.shape[0]


@dataclass(frozen=True)
class Pass:
    """What one pass took and did. stages: seconds (empty if they were not marked); ttft: seconds from pixels to the
    first token; decode: seconds for ``new_tokens`` further ones; kv_bytes: per layer, after prefill."""

    stages: dict[str, float]
    ttft: float
    decode: float
    new_tokens: int
    kv_bytes: tuple[int, ...]
    stats: RunStats | None


@torch.inference_mode()
def run_pass(
    loaded: Loaded,
    reduction: Reduction | None,
    inputs: Inputs,
    clock: Clock,
    *,
    staged: bool = False,
    new_tokens: int = 0,
) -> Pass:
    """Run one pass. reduction None: the stock model, untouched by this kit. Raises what the model raises
    (torch.OutOfMemoryError among it); the model is as before in any case."""
    timeline = Timeline(clock, None if staged else ("vision_tower",))
    adapter = adapter_for(loaded.model)
    with ExitStack() as stack:
        marks = stack.enter_context(_marks(adapter, timeline, reduction)) if staged else None
        run = None
        if reduction is not None:
            timed = reduction
            if staged and reduction.outer is not None:
                timed = replace(reduction, outer=_MarkedOuter(reduction.outer, timeline))
            run = stack.enter_context(reduce_tokens(loaded.model, reduction=timed))
            if marks is not None:
                marks.after_the_kit()
        output, token = _prefill(loaded, run, inputs, timeline)
        if marks is not None:
            marks.stop()
        decoding = Timeline(clock)
        decoding.enter("decode")
        held = tuple(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers)
        for _ in range(new_tokens):
            output = loaded.model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1:].argmax(-1)
        decoding.close()
        stages = timeline.seconds()
        return Pass(
            {name: stages.get(name, 0.0) for name in STAGES} if staged else {},
            timeline.total(),
            decoding.total(),
            new_tokens,
            held,
            run.stats if run is not None else None,
        )


def _prefill(loaded: Loaded, run: Any, inputs: Inputs, timeline: Timeline) -> tuple[Any, Tensor]:
    timeline.enter("vision_tower")
    if run is None:
        output = loaded.model(input_ids=inputs.ids, pixel_values_videos=inputs.pixels, use_cache=True, logits_to_keep=1)
    else:
        features = run.encode(inputs.pixels)
        timeline.enter("splice")
        run.provide(inputs.features or features)
        output = loaded.model(input_ids=inputs.ids, use_cache=True, logits_to_keep=1)
    token = output.logits[:, -1:].argmax(-1)
    timeline.close()
    return output, token


class _MarkedOuter:
    """An outer stage, with a mark before and after it; everything else is the stage's own."""

    def __init__(self, stage: Any, timeline: Timeline) -> None:
        self._stage, self._timeline = stage, timeline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def __call__(self, video: VideoFeatures, budget: float | int) -> Any:
        self._timeline.enter("outer")
        kept = self._stage(video, budget)
        self._timeline.enter("splice")
        return kept


class _Marks:
    """Hooks that enter stages. Those set first run before the kit's own hooks, those set after run after them."""

    def __init__(self, adapter: Adapter, timeline: Timeline, reduction: Reduction | None) -> None:
        self.adapter, self.timeline = adapter, timeline
        self.inner = reduction.inner if reduction is not None else ()
        self.running = True
        self.undo: list[Callable[[], None]] = []

    def enter(self, stage: str) -> Callable[..., None]:
        def hook(*_: Any, **__: Any) -> None:
            if self.running:
                self.timeline.enter(stage)

        return hook

    def before_the_kit(self, reduction: Reduction | None) -> None:
        core, text = self.adapter.core, self.adapter.text
        self._before(core.multi_modal_projector, "projector")
        self._before(text, "prefill")
        self.undo.append(text.register_forward_hook(self.enter("first_token")).remove)
        if reduction is None:
            self._around(core, "get_video_features", after="splice")
            return
        needed = getattr(reduction.outer, "requires", frozenset())
        if {"saliency", "keys"} & set(needed):
            attention = self.adapter.vision_attention()
            self._before(attention, "saliency")
            self._around(attention, "forward", before="vision_tower")  # the kit's own hook has run by then
        self._at_layers("inner")

    def after_the_kit(self) -> None:
        self._at_layers("prefill")

    def stop(self) -> None:
        """Decoding is not part of any stage."""
        self.running = False

    def remove(self) -> None:
        while self.undo:
            self.undo.pop()()

    def _at_layers(self, stage: str) -> None:
        layers = self.adapter.layers
        for each in self.inner:
            if each.score == "prev":
                self.undo.append(layers[each.layer - 1].self_attn.register_forward_hook(self.enter(stage)).remove)
        for layer in layers[self.inner[0].layer :] if self.inner else ():
            self._before(layer, stage)

    def _before(self, module: Any, stage: str) -> None:
        self.undo.append(module.register_forward_pre_hook(self.enter(stage)).remove)

    def _around(self, owner: Any, name: str, before: str = "", after: str = "") -> None:
        """Mark the call of one method of this instance; the class stays as it is."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def marked(*args: Any, **kwargs: Any) -> Any:
            if before:
                self.enter(before)()
            result = original(*args, **kwargs)
            if after:
                self.enter(after)()
            return result

        setattr(owner, name, marked)
        self.undo.append(functools.partial(delattr, owner, name))


@contextmanager
def _marks(adapter: Adapter, timeline: Timeline, reduction: Reduction | None) -> Iterator[_Marks]:
    marks = _Marks(adapter, timeline, reduction)
    try:
        marks.before_the_kit(reduction)
        yield marks
    finally:
        marks.remove()
