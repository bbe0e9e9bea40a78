"""One pass: pixels on the device -> the first token -> further tokens, with marks at the boundaries of its stages.

The marks come from outside (``holitom_repro.latency.marks``): what is measured is the code that users run.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from holitom.attach import reduce_tokens
from holitom.attaching.stats import RunStats
from holitom.errors import KitError
from holitom_repro.latency.decoding import Decoded, decode_statically
from holitom_repro.latency.marks import MarkedOuter, marked_stages
from holitom_repro.latency.shapes import Loaded
from holitom_repro.latency.static_decoding import Prompt
from holitom_repro.latency.timeline import Clock, Timeline
from holitom.models import adapter_for
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
    first token; decode: seconds for ``new_tokens`` further ones; decoded: every way in which they were generated, eager
    first; kv_bytes: per layer, after prefill."""

    stages: dict[str, float]
    ttft: float
    decode: float
    new_tokens: int
    kv_bytes: tuple[int, ...]
    stats: RunStats | None
    decoded: tuple[Decoded, ...] = ()


@torch.inference_mode()
def run_pass(
    loaded: Loaded,
    reduction: Reduction | None,
    inputs: Inputs,
    clock: Clock,
    *,
    staged: bool = False,
    new_tokens: int = 0,
    ways: Sequence[str] = ("eager",),
    attention: str = "sdpa",
) -> Pass:
    """Run one pass. reduction None: the stock model, untouched by this kit. ways, attention: how the new tokens are
    generated (``holitom_repro.latency.decoding``), one after the other from the same prefill. Raises what the model raises
    (torch.OutOfMemoryError among it); the model is as before in any case."""
    timeline = Timeline(clock, None if staged else ("vision_tower",))
    adapter = adapter_for(loaded.model)
    with ExitStack() as stack:
        marks = stack.enter_context(marked_stages(adapter, timeline, reduction)) if staged else None
        run = None
        if reduction is not None:
            timed = reduction
            if staged and reduction.outer is not None:
                timed = replace(reduction, outer=MarkedOuter(reduction.outer, timeline))
            run = stack.enter_context(reduce_tokens(loaded.model, reduction=timed))
            if marks is not None:
                marks.after_the_kit()
        output, token = _prefill(loaded, run, inputs, timeline)
        if marks is not None:
            marks.stop()
        held = tuple(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers)
        prompt = _prompt(output.past_key_values, token.device) if new_tokens and len(ways) > 1 else None
        first, chosen = token, []
        decoding = Timeline(clock)
        decoding.enter("decode")
        for _ in range(new_tokens):
            output = loaded.model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1:].argmax(-1)
            chosen.append(token)
        decoding.close()
    stages, decoded = timeline.seconds(), []
    if new_tokens:
        attended = loaded.model.config.text_config._attn_implementation
        decoded = [Decoded("eager", decoding.total(), attention=attended, tokens=torch.cat(chosen, 1).cpu())]
    del output
    for way in ways[1:] if new_tokens else ():
        if isinstance(prompt, Prompt):
            decoded.append(decode_statically(loaded, prompt, first, new_tokens, way, clock, attention))
        else:
            decoded.append(Decoded(way, outcome="unsupported", reason=str(prompt)))
    return Pass(
        {name: stages.get(name, 0.0) for name in STAGES} if staged else {},
        timeline.total(),
        decoding.total(),
        new_tokens,
        held,
        run.stats if run is not None else None,
        tuple(decoded),
    )


def _prompt(cache: Any, device: torch.device) -> Prompt | KitError:
    """What static decoding continues, or why it cannot."""
    try:
        return Prompt.of(cache, device)
    except KitError as error:
        return error


@torch.inference_mode()
def prefilled(loaded: Loaded, reduction: Reduction | None, inputs: Inputs, clock: Clock) -> tuple[Prompt, Tensor]:
    """What one prefill leaves for static decoding, and its token [B, 1]. Raises what the model raises."""
    with ExitStack() as stack:
        run = None if reduction is None else stack.enter_context(reduce_tokens(loaded.model, reduction=reduction))
        output, token = _prefill(loaded, run, inputs, Timeline(clock))
        return Prompt.of(output.past_key_values, token.device), token


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
