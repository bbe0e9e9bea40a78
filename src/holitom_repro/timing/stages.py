"""One pass, from pixels on the device to the first token and on, with a moment at every boundary between its stages.

The moments are set from outside, by hooks before and after those of ``reduce_tokens``: what is timed is the code that
users run. On CUDA they are events in the stream, so nobody waits for them. Each moment belongs to exactly one stage.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from holitom import Reduction, reduce_tokens
from holitom.models import adapter_for, llava_onevision
from holitom.types import OPTIONAL_FIELDS, MergedFrames, VideoFeatures
from holitom_repro.timing.rows import STAGES
from holitom_repro.timing.shapes import Model


def clock_of(device: str) -> tuple[str, Callable[[], Any]]:
    """A name, and what gives the moment now. CUDA: events. CPU: with one thread the CPU seconds of this process, which
    a busy machine stretches little, otherwise the wall clock."""
    if device == "cuda":
        return "CUDA events", lambda: torch.cuda.current_stream().record_event(torch.cuda.Event(enable_timing=True))
    alone = torch.get_num_threads() == 1
    return ("CPU seconds, one thread", time.process_time) if alone else ("wall clock", time.perf_counter)


def between(first: Any, second: Any) -> float:
    """Seconds between two moments; waits for the device."""
    if isinstance(first, float):
        return second - first
    second.synchronize()
    return first.elapsed_time(second) / 1000


class Marks(ExitStack):
    """The boundaries of one pass: ``enter`` ends the stage before. The other methods do so at calls of the model, until
    the block ends."""

    def __init__(self, now: Callable[[], Any]) -> None:
        super().__init__()
        self.now = now
        self.moments: list[tuple[str, Any]] = []

    def enter(self, stage: str) -> None:
        """An empty name ends the pass: what is entered later, while decoding, does not count."""
        if not self.moments or self.moments[-1][0]:
            self.moments.append((stage, self.now()))

    def around(self, owner: Any, name: str, before: str = "", after: str = "") -> None:
        """At calls of one method: of an object, or of all objects of a class."""
        method = getattr(owner, name)

        def marked(*args: Any, **kwargs: Any) -> Any:
            if before:
                self.enter(before)
            result = method(*args, **kwargs)
            if after:
                self.enter(after)
            return result

        self.enter_context(patch.object(owner, name, marked))

    def inside(self, layers: Any, inner: Sequence[Any], stage: str) -> None:
        """Where ``reduce_tokens`` works inside the decoder: set before its hooks, and once more after them."""
        places = [layer.register_forward_pre_hook for layer in (layers[inner[0].layer :] if inner else ())]
        places += [layers[s.layer - 1].self_attn.register_forward_hook for s in inner if s.score == "prev"]
        for register in places:
            self.callback(register(lambda *_: self.enter(stage)).remove)


class Pass(NamedTuple):
    """What one pass took, in seconds, and did. stages: by name (one may be entered several times), together ``ttft``;
    decode: of the further tokens; stats: of ``reduce_tokens``, if it ran."""

    stages: dict[str, float]
    ttft: float
    decode: float
    stats: Any


def _left(drawn: VideoFeatures, merged: MergedFrames | None) -> VideoFeatures:
    """Drawn features of the frames that a tower stage has left."""
    if merged is None:
        return drawn
    fields = {name: getattr(drawn, name) for name in ("tokens", *OPTIONAL_FIELDS)}
    fields = {name: value[merged.first] for name, value in fields.items() if value is not None}
    return replace(drawn, **fields, merged=merged)


@torch.inference_mode()
def run_pass(model: Model, reduction: Reduction, inputs: Any, new_tokens: int = 0) -> Pass:
    """One pass of a loaded model, and ``new_tokens`` further ones, eagerly. Without any stage it is the stock model,
    untouched by ``holitom``. inputs: of ``make_inputs``. Raises what the model raises, and leaves it as it was."""
    module, adapter, (pixels, ids, features) = model.module, adapter_for(model.module), inputs
    now, run = clock_of(model.device)[1], None
    with Marks(now) as marks:
        marks.around(adapter.text, "forward", before="prefill", after="first_token")
        if reduction.outer or reduction.inner or reduction.decode or reduction.tower:
            requires = getattr(reduction.outer, "requires", frozenset())
            for name in ("received_attention", "mean_keys") if {"saliency", "keys"} & requires else ():
                marks.around(llava_onevision, name, before="saliency", after="vision")
            if reduction.outer is not None:
                marks.around(type(reduction.outer), "__call__", before="outer", after="splice")
            marks.inside(adapter.layers, reduction.inner, "inner")
            run = marks.enter_context(reduce_tokens(module, reduction=reduction))
            marks.inside(adapter.layers, reduction.inner, "prefill")
            marks.enter("vision")
            seen = run.encode(pixels)
            marks.enter("splice")
            run.provide([_left(drawn, one.merged) for drawn, one in zip(features, seen, strict=True)])
            output = module(input_ids=ids, use_cache=True, logits_to_keep=1)
        else:
            marks.around(adapter.core, "get_video_features", after="splice")
            marks.enter("vision")
            output = module(input_ids=ids, pixel_values_videos=pixels, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1:].argmax(-1)
        marks.enter("")
        begin = now()
        for _ in range(new_tokens):
            output = module(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1:].argmax(-1)
        decode = between(begin, now())
    spent = dict.fromkeys(STAGES, 0.0)
    for (name, begin), (_, end) in pairwise(marks.moments):
        spent[name] += between(begin, end)
    return Pass(spent, between(marks.moments[0][1], marks.moments[-1][1]), decode, run and run.stats)
