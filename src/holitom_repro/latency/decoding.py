"""The same prompt's next tokens, generated in several ways: eagerly as ``generate`` does it, with a static cache, and
as a CUDA graph. What a way cannot do is an outcome with its reason, never a silent fallback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from holitom.errors import BadUsage, KitError
from holitom_repro.latency.faults import out_of_memory
from holitom_repro.latency.shapes import Loaded
from holitom_repro.latency.static_decoding import ATTENTIONS, Prompt, StaticDecoder
from holitom_repro.latency.timeline import Clock
from holitom.models import adapter_for

WAYS = ("eager", "static", "graph")
"""eager: the model's forward on a DynamicCache, with the kit's hooks where a reduction has some; static: one loop over
the decoder's layers on static caches; graph: the same step captured once and replayed."""


@dataclass(frozen=True)
class Decoded:
    """One way's run. seconds: for all tokens; setup: seconds before them (copying the cache, capturing; 0 for eager);
    tokens [B, n] on the host, None unless measured."""

    way: str
    seconds: float = 0.0
    setup: float = 0.0
    attention: str = ""
    tokens: Tensor | None = None
    outcome: str = "measured"
    reason: str = ""


def check_ways(ways: Sequence[str]) -> tuple[str, ...]:
    """The ways in their usual order, eager always among them; BadUsage for unknown ones."""
    if unknown := [way for way in ways if way not in WAYS]:
        raise BadUsage(f"--decode {' '.join(unknown)}", fix=f"use {', '.join(WAYS)}")
    return tuple(way for way in WAYS if way in {"eager", *ways})


@torch.inference_mode()
def decode_statically(
    loaded: Loaded, prompt: Prompt, first: Tensor, number: int, way: str, clock: Clock, attention: str = "sdpa"
) -> Decoded:
    """``number`` tokens behind the prompt, "static" or as a "graph". Refusals and lack of memory are outcomes."""
    try:
        begun = clock.mark()
        decoder = StaticDecoder(loaded.model, adapter_for(loaded.model), prompt, first, number, attention)
        if way == "graph":
            decoder.capture()
        started = clock.mark()
        tokens = decoder.steps(number)
        ended = clock.mark()
        clock.settle()
    except KitError as error:
        return Decoded(way, outcome="unsupported", reason=_words(error), attention=attention)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return Decoded(way, outcome="out of memory", reason=_words(error), attention=attention)
    return Decoded(way, clock.between(started, ended), clock.between(begun, started), attention, tokens.cpu())


def fastest_attention(loaded: Loaded, prompt: Prompt, first: Tensor, clock: Clock, number: int = 8) -> dict[str, Any]:
    """What decodes this prompt fastest: {"best": name, name: seconds for ``number`` tokens, or in words why not}. As a
    graph on CUDA, where launches do not count, else with the static cache alone."""
    way = "graph" if loaded.device.type == "cuda" else "static"
    tried: dict[str, Any] = {}
    for name in ATTENTIONS:
        runs = [decode_statically(loaded, prompt, first, number, way, clock, name) for _ in range(2)]  # one to warm up
        tried[name] = runs[-1].seconds if runs[-1].outcome == "measured" else runs[-1].reason
    measured = {name: taken for name, taken in tried.items() if isinstance(taken, float)}
    return {"best": min(measured, key=measured.__getitem__) if measured else ATTENTIONS[0], **tried}


def describe(runs: Sequence[Decoded], eager: Sequence[Decoded], batch: int, number: int) -> dict[str, Any]:
    """One way's entry in a record: outcome, samples, rates, and which share of its tokens is that of eager decoding of
    the same prefill (below 1 in half precision, where kernels round differently)."""
    from holitom_repro.latency.records import spread

    failed = next((run for run in runs if run.outcome != "measured"), None)
    if failed is not None:
        return {"outcome": failed.outcome, "reason": failed.reason, "attention": failed.attention, "seconds": []}
    same = [(a.tokens == b.tokens).float().mean() for a, b in zip(runs, eager, strict=True)]
    seconds = [run.seconds for run in runs]
    return {
        "outcome": "measured",
        "reason": "",
        "attention": runs[0].attention,
        "seconds": seconds,
        "setup_seconds": [run.setup for run in runs],
        "tok_s": spread([batch * number / taken for taken in seconds]),
        "ms_per_step": spread(seconds, 1000 / number),
        "same_tokens": float(torch.stack(same).mean()),
    }


def _words(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
