"""How each shipped folder of ``data/tiny`` is made: seeds, stages, steps, rates and clip lengths."""

from __future__ import annotations

from dataclasses import dataclass

from holitom_repro.tiny.pretrain import Head


@dataclass(frozen=True)
class Phase:
    """From this share of the steps on: clips of ``frames`` frames in batches of ``clips``."""

    start: float
    frames: int
    clips: int


@dataclass(frozen=True)
class Lessons:
    """One pass of question answering: its steps, peak learning rate, clip lengths, and the question type whose loss
    counts four times, if any."""

    steps: int
    rate: float
    phases: tuple[Phase, ...]
    stressed: str | None = None


GRADUAL = Lessons(
    steps=1700,
    rate=1.5e-3,
    phases=(Phase(0.0, 4, 64), Phase(0.18, 8, 48), Phase(0.42, 12, 32), Phase(0.6, 16, 32), Phase(0.85, 32, 16)),
)
LONG_CLIPS = Lessons(steps=400, rate=1e-3, phases=(Phase(0.0, 16, 32), Phase(0.4, 32, 16)))
SHAPES = Lessons(
    steps=250,
    rate=1.5e-3,
    phases=(Phase(0.0, 8, 48), Phase(0.4, 16, 32), Phase(0.8, 32, 16)),
    stressed="shape",
)
ROWS = Lessons(
    steps=450,
    rate=7.5e-4,
    phases=(Phase(0.0, 8, 32), Phase(0.3, 16, 24), Phase(0.6, 32, 12), Phase(0.8, 64, 6)),
)
LONGEST = Lessons(steps=220, rate=7e-4, phases=(Phase(0.0, 32, 16), Phase(0.25, 64, 8)))


@dataclass(frozen=True)
class Recipe:
    """How one shipped folder is made: a vision stage of ``vision_steps``, then the passes of ``lessons`` by name.

    ``parent`` names the folder and the pass that it continues from.
    """

    seed: int
    head: Head = "mean"
    vision_steps: int = 1100
    vision_rate: float = 2e-3
    lessons: tuple[tuple[str, Lessons], ...] = (("text", GRADUAL), ("long", LONG_CLIPS), ("shapes", SHAPES))
    row_newlines: bool = False
    feature_layer: int = -2
    parent: tuple[str, str] | None = None


RECIPES: dict[str, Recipe] = {
    "onevision": Recipe(seed=0),
    "onevision-seed1": Recipe(seed=1),
    "video": Recipe(
        seed=2,
        vision_steps=0,
        lessons=(("rows", ROWS), ("longest", LONGEST)),
        row_newlines=True,
        parent=("onevision-seed1", "shapes"),
    ),
    "control_tower": Recipe(seed=3, head="none", vision_steps=300, lessons=(), feature_layer=-1),
}
FRAMES_PER_STEP, QUESTIONS_PER_CLIP = 256, 10
