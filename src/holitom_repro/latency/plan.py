"""What is timed in which order: the sizes of each tier, most valuable first, each with the seconds it should take.

Tiers: "speed" (the papers' shapes on a GPU), "tiny" (the shipped model on a CPU) and "cpu" (the paper's main shape on a
CPU: few repeats, more than an hour).

Parts: "aims" (full tokens against HoliTom at 10 %, with every way of decoding), "rows" (the paper's figure, at its own
budgets and at one), "batches" (a server's load), "frames", "video-7b", "72b" (20 of 80 layers), "budgets". What takes
longest of a sweep comes last of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from holitom_repro import paths
from holitom.errors import BadUsage
from holitom.flops import LLM_SHAPES, projector_flops, vision_flops
from holitom_repro.latency.decoding import WAYS
from holitom_repro.latency.measuring import Protocol
from holitom_repro.latency.settings import BESIDE, FULL, PRINTED, printed_setting, setting
from holitom_repro.latency.shapes import SHAPES
from holitom_repro.suggestions import nearest
from holitom.types import Reduction

EQUAL = 0.10
SWEPT = ("HoliTom (w/o M)", "HoliTom")
AT_ONE = (*(row for row, _ in PRINTED if row != FULL), *BESIDE, "HieraVid")
"""Every method that can go as low as EQUAL: DyCoke keeps a frame in four."""
PARTS = ("aims", "rows", "batches", "frames", "video-7b", "72b", "budgets")
TIERS = ("speed", "tiny", "cpu")
TOWER_FLOPS, DECODER_FLOPS = 350e12, 450e12  # per second: what one H200 is assumed to reach in bfloat16
LAUNCHES = 0.45e-3  # seconds of launches per decoder layer of a prefill; per token and way below
STEP = {"eager": 0.8e-3, "static": 0.6e-3, "graph": 0.15e-3}
LOADING = 20.0  # seconds per model


@dataclass(frozen=True)
class Size:
    """One run of ``measure``. rows: beside the full model, each at every budget; printed: also the figure's rows at
    their own; layers: None for all; untried: attention backends that are left out, each with the reason; device: for
    which it is meant."""

    part: str
    model: str
    dtype: str
    frames: int
    protocol: Protocol
    batch: int = 1
    rows: tuple[str, ...] = SWEPT
    budgets: tuple[float, ...] = (EQUAL,)
    printed: bool = False
    layers: int | None = None
    untried: tuple[tuple[str, str], ...] = ()
    device: str = "cuda"

    @property
    def depth(self) -> int:
        """Decoder layers that run."""
        from holitom_repro.tiny.model import LAYERS

        return self.layers or (SHAPES[self.model].layers if self.model in SHAPES else LAYERS)

    def settings(self) -> list[tuple[str, Reduction]]:
        """The full model first. A budget that a row cannot reach in so few layers is left out where the printed row
        stands beside it."""
        preset = SHAPES[self.model].preset if self.model in SHAPES else "ov-7b"
        made: list[tuple[str, Reduction]] = [("all tokens", Reduction(FULL))]
        if self.printed:
            made += [("printed", printed_setting(row, self.depth)) for row, _ in PRINTED if row != FULL]
        for budget in self.budgets:
            for row in self.rows:
                try:
                    made.append((f"{budget:.0%}", setting(row, budget, preset, self.depth)))
                except BadUsage:
                    if not self.printed:
                        raise
        return made

    @property
    def passes(self) -> int:
        """Prefills of all settings together."""
        return self.protocol.passes * len(self.settings())

    def seconds(self) -> float | None:
        """What it is expected to take on an H200: a calculation, made before any measurement. None on a CPU."""
        if self.device == "cpu":
            return None
        made = self.settings()
        shares = [1.0 if at == "all tokens" else _share(at, reduction) for at, reduction in made]
        prefills = [self._prefill(share) for share in shares]
        tries = 8 * prefills[0]  # two backends, four passes each; eager is slower, and soon runs out of memory
        tokens = self.protocol.new_tokens * min(self.protocol.decode_repeats, self.protocol.repeats)
        decoding = tokens * len(made) * self.depth * sum(STEP[way] for way in self.protocol.ways)
        drawing = 0.05 * self.batch * self.frames / 32
        return self.protocol.passes * sum(prefills) + tries + decoding + drawing + 5

    def _prefill(self, share: float) -> float:
        shape = LLM_SHAPES[SHAPES[self.model].preset]
        cells = 13 * 13 if SHAPES[self.model].row_newlines else 14 * 14
        visual = share * self.frames * cells
        whole = shape.exact([visual] * shape.layers, 40) * self.depth / shape.layers
        tower = (vision_flops(self.frames) + projector_flops(self.frames, shape.hidden_size)) / TOWER_FLOPS
        decoder = max(self.batch * whole / DECODER_FLOPS, LAUNCHES * self.depth)
        return self.batch * (tower + 0.005) + decoder


def sizes(tier: str, parts: Sequence[str] | None = None, limit: int | None = None) -> list[Size]:
    """The sizes of a tier in the order in which they are measured. parts: only these; limit: a trial with so many
    repeats and the shortest sweeps. BadUsage for unknown tiers and parts."""
    if tier not in TIERS:
        raise BadUsage(f"no latency is measured in the {tier} tier", fix=f"use {' or '.join(TIERS)}")
    for part in parts or ():
        if part not in PARTS:
            raise BadUsage(f"no part {part}{nearest(part, PARTS)}", fix=f"use {', '.join(PARTS)}")
    made = {"speed": _speed, "tiny": _tiny, "cpu": _cpu}[tier]()
    chosen = [size for size in made if not parts or size.part in parts]
    return chosen if limit is None else list(_trial(chosen, limit))


def _speed() -> Iterator[Size]:
    video = paths.data("videos", "three_shots.mp4")
    whole = Protocol(20, 5, 100, 3, video=video)
    sweep = Protocol(20, 2, 0, 0, staged_repeats=5)
    other = Protocol(20, 3, 100, 1, staged_repeats=5)
    model, dtype, frames = "ov-7b", "bfloat16", 32

    def batch(number: int) -> Size:
        return Size("batches", model, dtype, frames, sweep, number, ("HoliTom",), (0.25, EQUAL))

    yield Size("aims", model, dtype, frames, replace(whole, ways=WAYS, saliency_ways=True))
    yield Size("rows", model, dtype, frames, whole, rows=AT_ONE, printed=True)
    yield from (batch(number) for number in (1, 2, 4, 8))
    yield from (Size("frames", model, dtype, count, sweep) for count in (8, 16, 32, 64, 128))
    beside = ("HoliTom (w/o M)", "HoliTom", "FastV", "VisionZip")
    yield Size("video-7b", "video-7b", dtype, 64, other, rows=beside, budgets=(0.15,))
    yield Size("72b", "ov-72b-shape", dtype, frames, other, budgets=(0.15,), layers=20)
    yield Size("budgets", model, dtype, frames, sweep, budgets=(0.25, 0.20, 0.15, 0.10, 0.05))
    yield from (batch(number) for number in (16, 32))
    yield Size("frames", model, dtype, 256, sweep)


def _tiny() -> Iterator[Size]:
    """The same parts on a CPU, but for the other models: that the measurement works."""
    video = paths.data("videos", "three_shots.mp4")
    whole = Protocol(7, 2, 16, 7, video=video)
    sweep = Protocol(7, 2, 16, 7, staged_repeats=5)
    size = partial(Size, model="tiny", dtype="float32", device="cpu")
    yield size("aims", frames=32, protocol=replace(whole, ways=WAYS))
    yield size("rows", frames=32, protocol=whole, rows=AT_ONE, printed=True)
    yield from (size("frames", frames=count, protocol=sweep) for count in (8, 16, 32, 64))
    yield size("budgets", frames=32, protocol=sweep, budgets=(0.25, 0.15, 0.10))
    batches = partial(size, "batches", frames=32, protocol=sweep, budgets=(0.25, EQUAL))
    yield from (batches(batch=number) for number in (1, 2, 4))


def _cpu() -> Iterator[Size]:
    """OneVision-7B's shape: 16 GB of weights in bfloat16, minutes for a pass, so no warm-up and three repeats."""
    protocol = Protocol(3, 0, 8, 1, staged_repeats=1, video=paths.data("videos", "three_shots.mp4"))
    maps = "not tried: a layer's float32 attention map has 4.4 GB"
    yield Size("aims", "ov-7b", "bfloat16", 32, protocol, untried=(("eager", maps),), device="cpu")


def _trial(chosen: Sequence[Size], limit: int) -> Iterator[Size]:
    """So many repeats, two sizes of each sweep and two budgets, short videos where the frames are not the question."""
    seen: dict[str, int] = {}
    for size in chosen:
        seen[size.part] = seen.get(size.part, 0) + 1
        if seen[size.part] > 2:
            continue
        protocol = replace(
            size.protocol,
            repeats=limit,
            warmup=1,
            new_tokens=4,
            decode_repeats=1,
            staged_repeats=None if size.protocol.staged_repeats is None else min(5, limit),
        )
        frames = size.frames if size.part == "frames" else min(size.frames, 8)
        yield replace(size, protocol=protocol, frames=frames, budgets=size.budgets[:2])


def _share(at: str, reduction: Reduction) -> Any:
    """About which share of the visual tokens the decoder sees."""
    return reduction.budget if reduction.outer is not None else 0.35 if at == "printed" else 0.15
