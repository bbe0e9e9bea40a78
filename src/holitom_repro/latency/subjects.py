"""One setting under measurement: what it has given so far, and what happens when it cannot go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from holitom.attach import reduce_tokens
from holitom.errors import CannotRun, KitError
from holitom_repro.latency.backends import full_setting, release
from holitom_repro.latency.crossings import HOW_CUDA, HOW_PRETEND, Crossings, cuda_waits
from holitom_repro.latency.decoding import Decoded
from holitom_repro.latency.faults import out_of_memory
from holitom_repro.latency.passes import Inputs, Pass, run_pass
from holitom_repro.latency.pretending import pretended_device, put
from holitom_repro.latency.shapes import Loaded
from holitom_repro.latency.timeline import Clock
from holitom.types import Reduction, VideoFeatures

SMALL = 256 * 2**20  # bytes of weights up to which peaks on a CPU and the stand-in for crossings are affordable


class DidNotAct(CannotRun):
    """A method left the video as it was: its times are those of something else, so there is nothing to record."""


@dataclass
class Subject:
    """reduction: as asked; run: as it is run (None: the stock model); at: which budgets these are, in words; bare and
    staged: passes without and with marks inside; decoded: the runs of every way of generating; outcome: "measured", or
    what stopped it, with the reason; cold: a capture has emptied the allocators since its last pass."""

    at: str
    reduction: Reduction
    run: Reduction | None
    bare: list[Pass] = field(default_factory=list)
    staged: list[Pass] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    decoded: dict[str, list[Decoded]] = field(default_factory=dict)
    outcome: str = "measured"
    reason: str = ""
    cold: bool = False
    memory: dict[str, Any] = field(default_factory=dict)
    syncs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, at: str, reduction: Reduction, loaded: Loaded) -> Subject:
        full = reduction.outer is None and not reduction.inner and reduction.decode is None
        return cls(at, reduction, full_setting(loaded) if full else reduction)

    @property
    def reduces(self) -> bool:
        return self.run is not None and (self.run.outer is not None or bool(self.run.inner) or bool(self.run.decode))

    def stop(self, outcome: str, error: BaseException) -> None:
        lines = str(error).strip().splitlines()
        self.outcome, self.reason = outcome, lines[0][:300] if lines else type(error).__name__


def guarded(loaded: Loaded, subject: Subject, call: Callable[[], object]) -> None:
    """Run ``call`` unless this setting has failed before; running out of memory, or being refused, is its outcome. That
    a method did not act is none: DidNotAct ends the measurement."""
    if subject.outcome != "measured":
        return
    try:
        call()
    except DidNotAct:
        raise
    except KitError as error:
        subject.stop("unsupported", error)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        subject.stop("out of memory", error)
        release(loaded)


def check_acted(subject: Subject, done: Pass) -> None:
    """DidNotAct, with the setting's name, unless every stage of the pass ran and took tokens away; a decode stage needs
    a pass that generates."""
    if not subject.reduces or (subject.run.decode is not None and not done.new_tokens):
        return
    try:
        done.stats.check_acted()
    except CannotRun as error:
        fix = "measure a budget below the whole video, and longer videos; a decode stage needs --new-tokens 2 or more"
        raise DidNotAct(f"{subject.reduction.name} at {subject.at}: {error.what}", fix=fix) from error


def examine(loaded: Loaded, subject: Subject, inputs: Inputs, clock: Clock) -> None:
    """Peak memory and crossings between host and device, each in passes of their own that are not timed."""

    def once() -> None:
        run_pass(loaded, subject.run, inputs, clock)

    def look() -> None:
        if loaded.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            once()
            peak = torch.cuda.max_memory_allocated()
            subject.memory = {"peak_bytes": peak, "above_bytes": peak - before, "how": "CUDA allocator, one prefill"}
            with cuda_waits() as seen:
                once()
            subject.syncs = seen.describe(HOW_CUDA)
        elif loaded.weight_bytes <= SMALL:
            from holitom_repro.bench import peak_bytes

            above = peak_bytes(once)
            whole = loaded.weight_bytes + above
            subject.memory = {"peak_bytes": whole, "above_bytes": above, "how": "storages alive at once, one prefill"}
            if subject.reduces:
                subject.syncs = count_crossings(loaded, subject.run, inputs).describe(HOW_PRETEND)
        else:
            subject.memory = {"peak_bytes": None, "above_bytes": None, "how": "not measured on a CPU at this size"}

    guarded(loaded, subject, look)


def count_crossings(loaded: Loaded, reduction: Reduction, inputs: Inputs) -> Crossings:
    """Crossings between host and device in one prefill of one video, on the CPU stand-in (``Crossings``)."""
    with pretended_device(loaded.model) as seen:
        ids, pixels = put(inputs.ids[:1], seen), put(inputs.pixels[:1], seen)
        with reduce_tokens(loaded.model, reduction=reduction) as run:
            features = run.encode(pixels)
            if inputs.features:
                features = [pretending(inputs.features[0], seen)]
            run.provide(features)
            loaded.model(input_ids=ids, use_cache=True, logits_to_keep=1)
    return seen


def pretending(video: VideoFeatures, seen: Crossings) -> VideoFeatures:
    """The features on the pretended device."""
    names = ("tokens", "saliency", "keys", "frame_embed")
    return replace(video, **{n: put(getattr(video, n), seen) for n in names if getattr(video, n) is not None})
