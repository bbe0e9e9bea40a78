"""A synthetic video world with exact answers: scenes with cuts or a gliding camera, shapes that appear, move and change
colour, and a star that shines for an instant.

A clip is drawn at its own frame rate. Durations scale with the number of frames, so that 32 uniform samples of a clip
of 64 or 128 frames look like a clip of 32: whatever is asked about is visible in at least one of 32 samples.
"""

import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from holitom_repro.tiny.vocabulary import CHOICES, COLORS, DIRECTIONS, NEEDLE, NUMBERS, PLACES, SCENES, SHAPES

SIZE = 32  # pixels, height and width
RADIUS = 4  # a sprite spans 9 x 9 pixels
NOISE = 0.02
Kind = Literal["actions", "ego", "long", "general"]
KINDS: tuple[Kind, ...] = ("actions", "ego", "long", "general")

RGB = np.array(
    [[0.95, 0.1, 0.1], [0.1, 0.9, 0.15], [0.15, 0.3, 1.0], [0.95, 0.9, 0.1], [0.97, 0.97, 0.97], [0.85, 0.15, 0.9]],
    np.float32,
)


@dataclass(frozen=True)
class Question:
    """One question about a clip; ``choices`` are the answers that its type admits."""

    type: str
    text: str
    answer: str

    @property
    def choices(self) -> tuple[str, ...]:
        return CHOICES[self.type]


@dataclass(frozen=True)
class Clip:
    """frames [T, 32, 32, 3] float32 in 0..1; labels [T, 32, 32] uint8: 0 background, else 1 + 6 * shape + colour (the
    needle is shape 4); scenes [T]: index into SCENES."""

    frames: np.ndarray
    labels: np.ndarray
    scenes: np.ndarray
    questions: list[Question]


_y, _x = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1].astype(np.float32)
SPRITES = [  # rows and columns of the five shapes, the needle last
    np.nonzero(_x * _x + _y * _y <= RADIUS * RADIUS + 1),
    np.nonzero((abs(_x) <= 3) & (abs(_y) <= 3) & ~((abs(_x) <= 1) & (abs(_y) <= 1))),
    np.nonzero((_y <= 3) & (abs(_x) <= (_y + RADIUS) / 2 + 0.3)),
    np.nonzero((abs(_x) <= 1) | (abs(_y) <= 1)),
    np.nonzero(abs(abs(_x) - abs(_y)) <= 0.9),
]


def stamp(frame: np.ndarray, label: np.ndarray, shape: int, color: int, x: int, y: int) -> None:
    """Draw one sprite centred at (x, y) into a frame [32, 32, 3] and its label map."""
    rows, columns = SPRITES[shape]
    rows, columns = rows + y - RADIUS, columns + x - RADIUS
    frame[rows, columns] = RGB[color]
    label[rows, columns] = 1 + shape * 6 + color


def background(scene: int, rng: np.random.Generator, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """A textured scene [height, width, 3], float32, with its own phase and a slight colour cast."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    phase = rng.random() * 8
    cast = (rng.random(3) - 0.5) * 0.06
    if scene == 0:
        base, texture = (0.08, 0.28, 0.10), 0.07 * np.sin((x + phase) * 2 * np.pi / 5)
    elif scene == 1:
        base, texture = (0.08, 0.16, 0.36), 0.07 * np.sin((y + phase) * 2 * np.pi / 5)
    elif scene == 2:
        base, texture = (0.46, 0.36, 0.20), 0.05 * np.sin((x + y + phase) * 2 * np.pi / 9)
    elif scene == 3:
        base, texture = (0.04, 0.04, 0.08), 0.25 * (rng.random((height, width)) > 0.97)
    else:
        base, texture = (0.34, 0.15, 0.11), 0.08 * ((((x + phase) // 4 + y // 4) % 2) - 0.5)
    return ((np.array(base) + cast)[None, None] + texture[..., None]).astype(np.float32)


def add_noise(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flicker of each frame and noise of each pixel, in place; [T, 32, 32, 3] -> the same array, clipped to 0..1."""
    frames *= (1 + rng.normal(0, NOISE, (len(frames), 1, 1, 1))).astype(np.float32)
    frames += rng.standard_normal(frames.shape, dtype=np.float32) * NOISE
    return np.clip(frames, 0, 1, out=frames)


def visible(frames: int) -> int:
    """The least number of consecutive frames that 32 uniform samples cannot step over."""
    return 1 if frames <= 32 else -(-frames // 32) + 1


_SETTINGS = {  # most scenes, chance of motion, chance of a colour change, chance of a needle
    "actions": (2, 0.75, 0.5, 0.3),
    "ego": (1, 0.0, 0.45, 0.6),
    "long": (4, 0.35, 0.25, 1.0),
    "general": (3, 0.55, 0.35, 0.7),
}


def make_clip(rng: np.random.Generator, frames: int, kind: Kind = "general") -> Clip:
    """Draw one clip of ``frames`` >= 4 frames and every question that has one answer about it."""
    most_scenes, motion, change, needle = _SETTINGS[kind]
    starts, scenes = _scenes(rng, frames, most_scenes, least=min(3, most_scenes) if kind == "long" else 1)
    glide = _glide(rng, frames) if kind == "ego" else np.zeros((frames, 2), int)
    pixels = np.empty((frames, SIZE, SIZE, 3), np.float32)
    labels = np.zeros((frames, SIZE, SIZE), np.uint8)
    for s, scene in enumerate(scenes):
        reach = glide.max(0)
        texture = background(int(scene), rng, SIZE + int(reach[1]), SIZE + int(reach[0]))
        for t in range(starts[s], starts[s + 1]):
            dx, dy = glide[t]
            pixels[t] = texture[reach[1] - dy : reach[1] - dy + SIZE, reach[0] - dx : reach[0] - dx + SIZE]
    objects = _objects(rng, frames, starts, motion, change, glide)
    for o in objects:
        for i, (x, y, color) in enumerate(zip(o["x"], o["y"], o["colors"], strict=True)):
            stamp(pixels[o["begin"] + i], labels[o["begin"] + i], o["shape"], int(color), int(x), int(y))
    star = None
    if rng.random() < needle:
        length = visible(frames)
        begin, color = int(rng.integers(frames - length + 1)), int(rng.integers(6))
        scene = int(np.searchsorted(starts, begin, side="right")) - 1
        begin = min(begin, int(starts[scene + 1]) - length)  # the whole instant lies inside one scene
        x, y = map(int, rng.integers(RADIUS, SIZE - RADIUS, 2))
        for t in range(begin, begin + length):
            stamp(pixels[t], labels[t], len(SHAPES), color, x, y)
        star = {"color": color, "scene": scene}
    add_noise(pixels, rng)
    questions = _questions(frames, kind, scenes, objects, star)
    return Clip(pixels, labels, np.repeat(scenes, np.diff(starts)), questions)


def _scenes(rng: np.random.Generator, frames: int, most: int, least: int) -> tuple[np.ndarray, np.ndarray]:
    allowed = 1 if frames < 5 else 2 if frames < 9 else 3 if frames < 16 else 4
    most = min(most, allowed)
    count = int(rng.integers(min(least, most), most + 1))
    shortest = max(2, int(0.6 * frames / count))
    inner = np.sort(rng.integers(0, frames - count * shortest + 1, count - 1)) + shortest * np.arange(1, count)
    return np.concatenate([[0], inner, [frames]]).astype(int), rng.permutation(len(SCENES))[:count]


def _glide(rng: np.random.Generator, frames: int) -> np.ndarray:
    """The camera's path [T, 2] in whole pixels (x, y), starting or ending at 0."""
    reach = rng.integers(3, 11, 2)
    path = np.round(np.linspace(0, 1, frames)[:, None] * reach).astype(int)
    flip = rng.random(2) < 0.5
    path[:, flip] = reach[flip] - path[:, flip]
    return path


def _objects(rng, frames, starts, motion, change, glide) -> list[dict[str, Any]]:
    seen, reach = visible(frames), glide.max(0)
    count = int(rng.integers(1, 5))
    shapes, colors, quadrants = rng.permutation(4)[:count], rng.permutation(6)[:count], rng.permutation(4)
    objects = []
    for shape, color, quadrant in zip(shapes, colors, quadrants, strict=False):
        scene = int(rng.integers(len(starts) - 1))
        begin, end = int(starts[scene]), int(starts[scene + 1])
        length = int(rng.integers(min(end - begin, max(3 * seen, frames // 5)), end - begin + 1))
        begin += int(rng.integers(0, end - begin - length + 1))
        direction = -1
        if length >= 3 * seen and rng.random() < motion:
            direction = int(rng.integers(4))
            way = int(np.clip((min(length, 32) - 1) * rng.integers(3, 6), 8, 14))
            steps = np.round(np.linspace(0, way, length)).astype(int)
            along = int(rng.integers(RADIUS, SIZE - RADIUS - way)) + (way - steps if direction in (0, 2) else steps)
            across = np.full(length, int(rng.integers(RADIUS, SIZE - RADIUS)))
            x, y = (along, across) if direction < 2 else (across, along)
        elif reach.any():  # at rest in a world that glides past the camera
            here = glide[begin : begin + length]
            x = int(rng.integers(RADIUS, SIZE - RADIUS - reach[0])) + here[:, 0]
            y = int(rng.integers(RADIUS, SIZE - RADIUS - reach[1])) + here[:, 1]
        else:
            x = np.full(length, (8 if quadrant % 2 == 0 else 23) + int(rng.integers(-3, 4)))
            y = np.full(length, (8 if quadrant < 2 else 23) + int(rng.integers(-3, 4)))
        paint, later = np.full(length, color), -1
        if length >= 4 * seen and rng.random() < change:
            later = int(rng.choice([c for c in range(6) if c not in colors]))
            paint[int(rng.integers(2 * seen, length - seen)) :] = later
        what = {"shape": int(shape), "color": int(color), "later": later}
        where = {"scene": scene, "begin": begin, "direction": direction, "quadrant": int(quadrant)}
        objects.append(what | where | {"x": x, "y": y, "colors": paint})
    return objects


def _questions(frames: int, kind: str, scenes: np.ndarray, objects: list[dict], star: dict | None) -> list[Question]:
    asked: list[Question] = []

    def ask(*question: str) -> None:
        asked.append(Question(*question))

    several = len(scenes) > 1
    for o in objects:
        name = SHAPES[o["shape"]]
        if o["later"] < 0:
            ask("color", f"what color is the {name} ?", COLORS[o["color"]])
            ask("shape", f"what shape is {COLORS[o['color']]} ?", name)
        else:
            ask("change", f"what color does the {name} become ?", COLORS[o["later"]])
        if o["direction"] >= 0:
            ask("motion", f"which way does the {name} move ?", DIRECTIONS[o["direction"]])
        elif kind != "ego":
            ask("where", f"where is the {name} ?", PLACES[o["quadrant"]])
        if several:
            ask("scene_of", f"in which scene is the {name} ?", SCENES[scenes[o["scene"]]])
    by_start = sorted(objects, key=lambda o: o["begin"])
    if len(objects) > 1:
        if by_start[1]["begin"] - by_start[0]["begin"] >= visible(frames):
            ask("order", "which shape appeared first ?", SHAPES[by_start[0]["shape"]])
        if by_start[-1]["begin"] - by_start[-2]["begin"] >= visible(frames):
            ask("order", "which shape appeared last ?", SHAPES[by_start[-1]["shape"]])
    ask("count", "how many shapes ?", NUMBERS[len(objects) - 1])
    if frames >= 5 and kind != "ego":
        ask("scenes", "how many scenes ?", NUMBERS[len(scenes) - 1])
    if star:
        ask("needle", f"what color is the {NEEDLE} ?", COLORS[star["color"]])
        if several:
            ask("needle_scene", f"in which scene is the {NEEDLE} ?", SCENES[scenes[star["scene"]]])
    return asked


_TRAINING, _BENCHMARK, _DEVELOPMENT = 1, 2, 3  # first word of every seed: the three streams never meet


def training_rng(seed: int, stage: int, step: int) -> np.random.Generator:
    """The stream of one training step: resuming at a step draws the clips that an unbroken run would have drawn."""
    return np.random.default_rng([_TRAINING, seed, stage, step])


def benchmark_rng(name: str, video: int, seed: int = 2026) -> np.random.Generator:
    """The stream of one benchmark video; it does not depend on how many videos there are."""
    return np.random.default_rng([_BENCHMARK, seed, zlib.crc32(name.encode()), video])


def development_rng(seed: int) -> np.random.Generator:
    """For looking at a model while it is made; never used for a reported score."""
    return np.random.default_rng([_DEVELOPMENT, seed])
