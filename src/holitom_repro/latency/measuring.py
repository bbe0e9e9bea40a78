"""Measures settings against each other in one process: warm-up, then A B C A B C ..., so that ratios hold within a run.

Every repeat runs each setting twice: once bare, with marks at the two ends (this is the time that is reported), and
once with marks at every boundary (this is the share of each stage). What runs out of memory, or is refused, becomes a
record that says so, and the others go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from holitom.errors import BadUsage, KitError
from holitom_repro.latency.backends import choose_backend, full_setting, release
from holitom_repro.latency.content import MODEL, Similarity
from holitom_repro.latency.decoding import check_ways, fastest_attention
from holitom_repro.latency.faults import out_of_memory
from holitom_repro.latency.inputs import TEXT_AFTER, TEXT_BEFORE, host_stages, make_inputs
from holitom_repro.latency.machine_state import gpu_state, machine_state
from holitom_repro.latency.passes import Inputs, prefilled, run_pass
from holitom_repro.latency.recording import record_of
from holitom_repro.latency.records import VERSION
from holitom_repro.latency.saliency_ways import try_ways
from holitom_repro.latency.shapes import Loaded
from holitom_repro.latency.subjects import Subject, check_acted, examine, guarded
from holitom_repro.latency.timeline import Clock, clock_for
from holitom.models.llava_onevision import pooled_grid
from holitom_repro.provenance import code_fingerprint, provenance
from holitom.types import Reduction

Record = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """repeats of every setting after ``warmup`` passes; in the first ``staged_repeats`` of them (None: in all) a second
    pass marks the stages; new_tokens are generated in the first ``decode_repeats`` (0: none), in all of ``ways``.
    video: a file whose decoding is timed too, and whose pixels are shown; saliency_ways: whether both ways to the
    saliency are timed as well (holitom_repro.latency.saliency_ways)."""

    repeats: int = 20
    warmup: int = 5
    new_tokens: int = 100
    decode_repeats: int = 5
    ways: tuple[str, ...] = ("eager",)
    staged_repeats: int | None = None
    video: Path | None = None
    seed: int = 0
    saliency_ways: bool = False

    @property
    def staged(self) -> int:
        return self.repeats if self.staged_repeats is None else min(self.staged_repeats, self.repeats)

    @property
    def passes(self) -> int:
        """Prefills per setting."""
        return self.warmup + self.repeats + self.staged


def measure(
    loaded: Loaded,
    settings: Sequence[tuple[str, Reduction]],
    *,
    frames: int,
    batch: int,
    similarity: Similarity | None,
    protocol: Protocol,
    part: str = "",
    clock: Clock | None = None,
    slower: Mapping[str, str] | None = None,
    advance: Callable[[int], None] = lambda passes: None,
) -> list[Record]:
    """One record per setting ("at" which budget, the setting). The full model is the setting without stages. part: the
    figure's part they belong to, for those who read the records; slower: attention backends that are not tried, with
    the reason.

    advance: called with the number of passes that were done, for a progress bar; ``protocol.passes`` per setting in
    all. Leaves the model with the backend that was fastest. Raises DidNotAct when a method leaves its video as it was,
    and BadUsage for a decode stage without tokens to generate.
    """
    clock = clock or clock_for(loaded.device)
    _check_decode_stages(settings, protocol)
    state = machine_state(loaded.device.type)
    side = loaded.config.vision_config.image_size
    host, host_note, pixels = host_stages(protocol.video, frames, side, min(5, protocol.repeats))
    subjects = [Subject.of(at, made, loaded) for at, made in settings]
    inputs, backend, tried, attending, saliency = None, "", {}, {}, {}
    try:
        inputs = make_inputs(loaded, frames, batch, similarity, seed=protocol.seed, pixels=pixels)
        backend, tried = choose_backend(loaded, inputs, clock, skip=slower or {})
        attending = _decode_attention(loaded, inputs, clock, protocol)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        for subject in subjects:
            subject.stop("out of memory", error)
        release(loaded)
    if inputs is not None:
        _repeat(loaded, subjects, inputs, clock, protocol, attending, advance)
        for subject in subjects:
            examine(loaded, subject, inputs, clock)
        saliency = _saliency_ways(loaded, inputs, clock, protocol)  # last: a kernel that fails spoils nothing else
    common = {
        "version": VERSION,
        "kind": "latency",
        "part": part,
        "tier": loaded.tier,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": loaded.name,
        "layers": loaded.layers,
        "full_layers": loaded.full_layers,
        "weights": loaded.weights,
        "device": torch.cuda.get_device_name() if loaded.device.type == "cuda" else "CPU",
        "dtype": str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
        "attention": backend,
        "attention_tried": tried,
        "decode_attention_tried": attending,
        "saliency_tried": saliency,
        "clock": getattr(clock, "name", type(clock).__name__),
        "frames": frames,
        "cells_per_frame": math.prod(pooled_grid(loaded.config)),
        "batch": batch,
        "text_tokens": TEXT_BEFORE + TEXT_AFTER,
        "new_tokens": protocol.new_tokens,
        "repeats": protocol.repeats,
        "staged_repeats": protocol.staged,
        "warmup": protocol.warmup,
        "content": similarity.describe() | {"model": MODEL} if similarity else {"how": "the tower's own features"},
        "pixels": "frames of the video file" if pixels is not None else "normal noise",
        "host_stages": {"seconds": host, "how": host_note},
        "state": state | {"gpu_after": gpu_state() if loaded.device.type == "cuda" else None},
        "provenance": provenance(),
        "code": code_fingerprint(),
    }
    return [common | record_of(loaded, subject, protocol, batch, frames) for subject in subjects]


def _repeat(
    loaded: Loaded,
    subjects: Sequence[Subject],
    inputs: Inputs,
    clock: Clock,
    protocol: Protocol,
    attending: dict[str, Any],
    advance: Callable[[int], None],
) -> None:
    again = (check_ways(protocol.ways), attending.get("best", "sdpa"))
    for subject in subjects:
        for _ in range(protocol.warmup):
            guarded(loaded, subject, partial(run_pass, loaded, subject.run, inputs, clock))
        advance(protocol.warmup)
    for repeat in range(protocol.repeats):
        new = protocol.new_tokens if repeat < protocol.decode_repeats else 0
        staged = repeat < protocol.staged
        turn = repeat % len(subjects)  # nobody is always first
        for subject in [*subjects[turn:], *subjects[:turn]]:
            guarded(loaded, subject, partial(_once, loaded, subject, inputs, clock, new, staged, *again))
            if new and "graph" in again[0]:
                for other in subjects:
                    other.cold = True
            advance(1 + staged)


def _once(
    loaded: Loaded,
    subject: Subject,
    inputs: Inputs,
    clock: Clock,
    new: int,
    staged: bool,
    ways: tuple[str, ...],
    attention: str,
) -> None:
    def warm() -> None:  # what a capture has given back is asked for again by a pass that nobody times
        if subject.cold:
            run_pass(loaded, subject.run, inputs, clock)
            subject.cold = False

    warm()
    bare = run_pass(loaded, subject.run, inputs, clock, new_tokens=new, ways=ways, attention=attention)
    check_acted(subject, bare)
    subject.bare.append(bare)
    if new:
        subject.decode.append(bare.decode)
        for run in bare.decoded:
            subject.decoded.setdefault(run.way, []).append(run)
        subject.cold = "graph" in ways
    if staged:
        warm()
        subject.staged.append(run_pass(loaded, subject.run, inputs, clock, staged=True))
        check_acted(subject, subject.staged[-1])


def _decode_attention(loaded: Loaded, inputs: Inputs, clock: Clock, protocol: Protocol) -> dict[str, Any]:
    """Which attention static decoding is fastest with, on the full prompt; empty where nothing is decoded so."""
    if not protocol.new_tokens or not protocol.decode_repeats or len(check_ways(protocol.ways)) == 1:
        return {}
    try:
        prompt, first = prefilled(loaded, full_setting(loaded), inputs, clock)
        return fastest_attention(loaded, prompt, first, clock)
    except KitError as error:
        return {"best": "sdpa", "sdpa": str(error)}
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        release(loaded)
        return {"best": "sdpa", "sdpa": "out of memory before it was tried"}


def _saliency_ways(loaded: Loaded, inputs: Inputs, clock: Clock, protocol: Protocol) -> dict[str, Any]:
    """What the ways to the saliency take, or in words why not; empty where nobody asked."""
    if not protocol.saliency_ways:
        return {}
    try:
        return try_ways(loaded, inputs, clock, protocol.repeats)
    except (KitError, RuntimeError) as error:
        release(loaded)
        return {"maps": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"}


def _check_decode_stages(settings: Sequence[tuple[str, Reduction]], protocol: Protocol) -> None:
    for _, reduction in settings:
        if reduction.decode is not None and not (protocol.new_tokens and protocol.decode_repeats):
            raise BadUsage(
                f"{reduction.name} has a stage that acts while generating, and no token is to be generated",
                fix="give --new-tokens 2 and --decode-repeats 1, or more",
            )
