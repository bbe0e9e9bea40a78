"""Measures settings against each other in one process: warm-up, then A B C A B C ..., so that ratios hold within a run.

Every repeat runs each setting twice: once bare, with marks at the two ends (this is the time that is reported), and
once with marks at every boundary (this is the share of each stage). What runs out of memory, or is refused, becomes a
record that says so, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from holitom.errors import KitError
from holitom.latency.backends import choose_backend, full_setting, release
from holitom.latency.content import Similarity
from holitom.latency.inputs import TEXT_AFTER, TEXT_BEFORE, host_stages, make_inputs
from holitom.latency.machine_state import gpu_state, machine_state
from holitom.latency.passes import STAGES, Inputs, Pass, run_pass
from holitom.latency.records import VERSION, extrapolated, summarise
from holitom.latency.settings import FULL
from holitom.latency.shapes import Loaded
from holitom.latency.syncs import HOW_CUDA, HOW_PRETEND, cuda_waits, pretended_device, put
from holitom.latency.timeline import Clock, clock_for
from holitom.provenance import code_fingerprint, provenance
from holitom.types import Reduction

Record = dict[str, Any]
SMALL = 256 * 2**20  # bytes of weights up to which peaks on a CPU and the stand-in for crossings are affordable


@dataclass(frozen=True)
class Protocol:
    """repeats of every setting after ``warmup`` passes; new_tokens generated in the first ``decode_repeats`` repeats
    (0: none); text that says which budgets these are goes into every record as ``at``."""

    repeats: int = 20
    warmup: int = 5
    new_tokens: int = 100
    decode_repeats: int = 5
    video: Path | None = None
    seed: int = 0

    @property
    def passes(self) -> int:
        """Prefills per setting."""
        return self.warmup + 2 * self.repeats


@dataclass
class _Subject:
    """One setting under measurement."""

    at: str
    reduction: Reduction
    run: Reduction | None
    bare: list[Pass] = field(default_factory=list)
    staged: list[Pass] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    outcome: str = "measured"
    reason: str = ""
    memory: dict[str, Any] = field(default_factory=dict)
    syncs: dict[str, Any] = field(default_factory=dict)


def measure(
    loaded: Loaded,
    settings: Sequence[tuple[str, Reduction]],
    *,
    frames: int,
    batch: int,
    similarity: Similarity | None,
    protocol: Protocol,
    clock: Clock | None = None,
    advance: Callable[[int], None] = lambda passes: None,
) -> list[Record]:
    """One record per setting ("at" which budget, the setting). The full model is the setting without stages.

    advance: called with the number of passes that were done, for a progress bar; ``protocol.passes`` per setting in
    all. Leaves the model with the backend that was fastest.
    """
    clock = clock or clock_for(loaded.device)
    state = machine_state(loaded.device.type)
    side = loaded.config.vision_config.image_size
    host, host_note, pixels = host_stages(protocol.video, frames, side, min(5, protocol.repeats))
    subjects = [_Subject(at, made, full_setting(loaded) if _is_full(made) else made) for at, made in settings]
    inputs, backend, tried = None, "", {}
    try:
        inputs = make_inputs(loaded, frames, batch, similarity, seed=protocol.seed, pixels=pixels)
        backend, tried = choose_backend(loaded, inputs, clock)
    except torch.OutOfMemoryError as error:
        for subject in subjects:
            subject.outcome, subject.reason = "out of memory", _first_line(error)
        release(loaded)
    if inputs is not None:
        _repeat(loaded, subjects, inputs, clock, protocol, advance)
        for subject in subjects:
            _examine(loaded, subject, inputs, clock)
    common = {
        "version": VERSION,
        "kind": "latency",
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
        "clock": getattr(clock, "name", type(clock).__name__),
        "frames": frames,
        "batch": batch,
        "text_tokens": TEXT_BEFORE + TEXT_AFTER,
        "new_tokens": protocol.new_tokens,
        "repeats": protocol.repeats,
        "warmup": protocol.warmup,
        "content": similarity.describe() if similarity is not None else {"how": "the tower's own features"},
        "pixels": "frames of the video file" if pixels is not None else "normal noise",
        "host_stages": {"seconds": host, "how": host_note},
        "state": state | {"gpu_after": gpu_state() if loaded.device.type == "cuda" else None},
        "provenance": provenance(),
        "code": code_fingerprint(),
    }
    return [common | _record(loaded, subject, protocol, batch, frames) for subject in subjects]


def _is_full(reduction: Reduction) -> bool:
    return reduction.outer is None and not reduction.inner and reduction.decode is None


def _repeat(
    loaded: Loaded,
    subjects: Sequence[_Subject],
    inputs: Inputs,
    clock: Clock,
    protocol: Protocol,
    advance: Callable[[int], None],
) -> None:
    for subject in subjects:
        _guarded(
            loaded, subject, lambda s=subject: [run_pass(loaded, s.run, inputs, clock) for _ in range(protocol.warmup)]
        )
        advance(protocol.warmup)
    for repeat in range(protocol.repeats):
        turn = repeat % len(subjects)  # nobody is always first
        for subject in [*subjects[turn:], *subjects[:turn]]:
            new = protocol.new_tokens if repeat < protocol.decode_repeats else 0

            def both(s: _Subject = subject, new: int = new) -> None:
                bare = run_pass(loaded, s.run, inputs, clock, new_tokens=new)
                staged = run_pass(loaded, s.run, inputs, clock, staged=True)
                if s.run is not None and not _is_full(s.run):
                    bare.stats.check_acted() if new > 1 or s.run.decode is None else None
                s.bare.append(bare)
                s.staged.append(staged)
                if new:
                    s.decode.append(bare.decode)

            _guarded(loaded, subject, both)
            advance(2)


def _guarded(loaded: Loaded, subject: _Subject, call: Callable[[], Any]) -> Any:
    """Run ``call`` unless this setting has failed before; what fails becomes its outcome."""
    if subject.outcome != "measured":
        return None
    try:
        return call()
    except torch.OutOfMemoryError as error:
        subject.outcome, subject.reason = "out of memory", _first_line(error)
        release(loaded)
    except KitError as error:
        subject.outcome, subject.reason = "unsupported", str(error)
    return None


def _examine(loaded: Loaded, subject: _Subject, inputs: Inputs, clock: Clock) -> None:
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
            from holitom.bench import peak_bytes

            above = peak_bytes(once)
            whole = loaded.weight_bytes + above
            subject.memory = {"peak_bytes": whole, "above_bytes": above, "how": "storages alive at once, one prefill"}
            if subject.run is not None and subject.outcome == "measured":
                subject.syncs = count_crossings(loaded, subject.run, inputs).describe(HOW_PRETEND)
        else:
            subject.memory = {"peak_bytes": None, "above_bytes": None, "how": "not measured on a CPU at this size"}

    _guarded(loaded, subject, look)


def count_crossings(loaded: Loaded, reduction: Reduction, inputs: Inputs) -> Any:
    """Crossings between host and device in one prefill of one video, on the CPU stand-in (``Crossings``)."""
    from holitom.attach import reduce_tokens

    with pretended_device(loaded.model) as seen:
        ids, pixels = put(inputs.ids[:1], seen), put(inputs.pixels[:1], seen)
        with reduce_tokens(loaded.model, reduction=reduction) as run:
            features = run.encode(pixels)
            if inputs.features:
                features = [_pretending(inputs.features[0], seen)]
            run.provide(features)
            loaded.model(input_ids=ids, use_cache=True, logits_to_keep=1)
    return seen


def _pretending(video: Any, seen: Any) -> Any:
    names = ("tokens", "saliency", "keys", "frame_embed")
    return replace(video, **{n: put(getattr(video, n), seen) for n in names if getattr(video, n) is not None})


def _record(loaded: Loaded, subject: _Subject, protocol: Protocol, batch: int, frames: int) -> Record:
    samples: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    if subject.outcome == "measured":
        samples = {
            "ttft": [one.ttft for one in subject.bare],
            "staged_ttft": [one.ttft for one in subject.staged],
            "stages": {name: [one.stages[name] for one in subject.staged] for name in STAGES},
            "decode": subject.decode,
        }
        summary = summarise(samples, batch, protocol.new_tokens)
        if (full := extrapolated(summary, loaded.layers, loaded.full_layers)) is not None:
            summary["extrapolated"] = full
    last = subject.bare[-1] if subject.bare else None
    stats = last.stats if last is not None else None
    return {
        "row": subject.reduction.name,
        "at": subject.at,
        "method": subject.reduction.describe(),
        "path": "stock transformers" if subject.run is None else "reduce_tokens",
        "outcome": subject.outcome,
        "reason": subject.reason,
        **_tokens(loaded, stats, subject, frames),
        "calls": dict(stats.calls) if stats is not None else {},
        "samples": samples,
        "summary": summary,
        "memory": {
            "weight_bytes": loaded.weight_bytes,
            **subject.memory,
            "kv_bytes_per_layer": list(last.kv_bytes) if last is not None else [],
        },
        "host_syncs": subject.syncs,
    }


def _tokens(loaded: Loaded, stats: Any, subject: _Subject, frames: int) -> dict[str, Any]:
    """Visual tokens per video asked for, kept (mean over the batch), and entering each layer (mean)."""
    if stats is None or not stats.samples:
        full = _visual_tokens(loaded, frames) if subject.bare else None
        layers = [full] * loaded.layers if full else []
        return {"requested_tokens": full, "realised_tokens": full, "tokens_per_layer": layers}
    batch = stats.samples
    return {
        "requested_tokens": sum(s.requested for s in batch) / len(batch),
        "realised_tokens": sum(s.kept for s in batch) / len(batch),
        "tokens_per_layer": [sum(layer) / len(batch) for layer in zip(*(s.per_layer for s in batch), strict=True)],
    }


def _visual_tokens(loaded: Loaded, frames: int) -> int:
    from holitom.models.llava_onevision import pooled_grid

    rows, columns = pooled_grid(loaded.config)
    return frames * rows * columns


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def full_row() -> tuple[str, Reduction]:
    """The setting of the unreduced model."""
    return "all tokens", Reduction(FULL)
