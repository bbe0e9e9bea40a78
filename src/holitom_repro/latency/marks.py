"""Marks at the boundaries of a pass's stages, set from outside: hooks on the model's modules, before and after those of
``reduce_tokens``, and a wrapper around the outer stage. The code that is measured is the code that users run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from holitom_repro.latency.timeline import Timeline
from holitom.models import Adapter
from holitom.types import Reduction, VideoFeatures


class MarkedOuter:
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


class Marks:
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
def marked_stages(adapter: Adapter, timeline: Timeline, reduction: Reduction | None) -> Iterator[Marks]:
    marks = Marks(adapter, timeline, reduction)
    try:
        marks.before_the_kit(reduction)
        yield marks
    finally:
        marks.remove()
