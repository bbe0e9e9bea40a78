"""``./reproduce.sh train-tiny``: rebuild every shipped tiny model from its seed, on CPU or GPU, resumable.

Steps, not minutes, define a recipe. Every step draws its own batch from (seed, stage, step), so a run that was stopped
and continued sees the same data as one that was not.
"""

import argparse
import ctypes
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from holitom.errors import CannotRun
from holitom_repro import machine, paths
from holitom_repro.records import write_atomic
from holitom_repro.tiny import card, learning
from holitom_repro.tiny.model import build, export
from holitom_repro.tiny.world import training_rng

FRAMES_PER_STEP, QUESTIONS_PER_CLIP, SAVE_SECONDS = 256, 10, 60.0
M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD = (-4, 0), (-1, 2**31 - 1), (-2, 2**28)  # of glibc's mallopt, with values


@dataclass(frozen=True)
class Lessons:
    """One pass of question answering: peak learning rate; phases: (from this share of the steps on, frames of a clip,
    clips of a batch); stressed: the question type whose loss counts four times, if any."""

    name: str
    steps: int
    rate: float
    phases: tuple[tuple[float, int, int], ...]
    stressed: str | None = None


GRADUAL = Lessons("text", 1700, 1.5e-3, ((0, 4, 64), (0.18, 8, 48), (0.42, 12, 32), (0.6, 16, 32), (0.85, 32, 16)))
LONG_CLIPS = Lessons("long", 400, 1e-3, ((0, 16, 32), (0.4, 32, 16)))
SHAPES = Lessons("shapes", 250, 1.5e-3, ((0, 8, 48), (0.4, 16, 32), (0.8, 32, 16)), stressed="shape")
ROWS = Lessons("rows", 450, 7.5e-4, ((0, 8, 32), (0.3, 16, 24), (0.6, 32, 12), (0.8, 64, 6)))
LONGEST = Lessons("longest", 220, 7e-4, ((0, 32, 16), (0.25, 64, 8)))


@dataclass(frozen=True)
class Recipe:
    """How one folder of data/tiny is made: a vision stage, then passes of lessons. ``parent``: the folder that it
    continues, after that one's last pass."""

    seed: int
    head: learning.Head = "mean"
    vision_steps: int = 1100
    vision_rate: float = 2e-3
    lessons: tuple[Lessons, ...] = (GRADUAL, LONG_CLIPS, SHAPES)
    row_newlines: bool = False
    feature_layer: int = -2
    parent: str | None = None


RECIPES = {
    "onevision": Recipe(seed=0),
    "onevision-seed1": Recipe(seed=1),
    "video": Recipe(2, vision_steps=0, lessons=(ROWS, LONGEST), row_newlines=True, parent="onevision-seed1"),
    "control_tower": Recipe(3, head="none", vision_steps=300, lessons=(), feature_layer=-1),
}


def rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, flat to the half, then linear to 2 % of the peak."""
    done = step / steps
    return peak * min(1.0, (step + 1) / warmup) * (1.0 if done <= 0.5 else max(0.02, (1 - done) / 0.5))


class Training:
    """One folder of data/tiny in the making: its model, the heads of the losses, and the curves of its stages. Every
    stage has a file in ``work``; one of another length is another stage, with other learning rates and clips."""

    def __init__(self, name: str, work: Path, device: str) -> None:
        self.name, self.work, self.device, self.recipe = name, work, device, RECIPES[name]
        torch.manual_seed(self.recipe.seed)
        self.model = build(self.recipe.row_newlines, self.recipe.feature_layer).to(device)
        self.heads = learning.VisionTraining(self.recipe.head).to(device)
        self.curves: dict[str, list[dict]] = {}

    def file(self, name: str, stage: str, steps: int) -> Path:
        return self.work / name / f"{stage}-{steps}.pt"

    def continue_parent(self, name: str) -> None:
        """Begin with the weights of another folder. CannotRun before that one is trained."""
        last = RECIPES[name].lessons[-1]
        file, state = self.file(name, last.name, last.steps), {"step": 0}
        if file.exists():
            state = torch.load(file, map_location=self.device, weights_only=False)
        if state["step"] < last.steps:
            told = f"{self.name} continues {name}, which is not trained to step {last.steps} yet"
            raise CannotRun(told, fix=f"train {name} first")
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])

    def vision(self) -> None:
        recipe, model = self.recipe, self.model.model
        parts = nn.ModuleList([model.vision_tower, model.multi_modal_projector, self.heads])
        optimiser = torch.optim.AdamW(parts.parameters(), weight_decay=0.02, betas=(0.9, 0.98))

        def loss(step: int) -> learning.Measured:
            batch = learning.draw_frames(training_rng(recipe.seed, 1, step), FRAMES_PER_STEP)
            return self.heads(self.model, batch.to(self.device))

        self.run("vision", recipe.vision_steps, recipe.vision_rate, 50, optimiser, loss)

    def lessons(self, number: int) -> None:
        recipe, lessons = self.recipe, self.recipe.lessons[number]
        self.model.model.vision_tower.requires_grad_(False)
        weights = [p for p in (*self.model.parameters(), *self.heads.dense.parameters()) if p.requires_grad]
        matrices, vectors = [p for p in weights if p.ndim > 1], [p for p in weights if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]

        def loss(step: int) -> learning.Measured:
            rng, dropping = (training_rng(recipe.seed, stream + 2 * number, step) for stream in (2, 3))
            _, frames, clips = [phase for phase in lessons.phases if step / lessons.steps >= phase[0]][-1]
            if frames > 4 and rng.random() < 0.25:  # any length up to the present one
                shorter = int(rng.integers(4, frames + 1))
                frames, clips = shorter, min(64, clips * frames // shorter)
            batch = learning.draw_clips(rng, clips, frames, QUESTIONS_PER_CLIP).to(self.device)
            rows, stressed = recipe.row_newlines, lessons.stressed
            return learning.answering_loss(self.model, self.heads.dense, batch, dropping, rows, stressed)

        self.run(lessons.name, lessons.steps, lessons.rate, 100, torch.optim.AdamW(groups, betas=(0.9, 0.98)), loss)

    def run(
        self, stage: str, steps: int, peak: float, warmup: int, optimiser: Any, loss_at: Callable[[int], Any]
    ) -> None:
        """Train to the last step, saving about once a minute; a stage that was begun is taken up where it is."""
        file, state = self.file(self.name, stage, steps), {"step": 0, "seconds": 0.0, "curve": []}
        file.parent.mkdir(parents=True, exist_ok=True)
        parts = {"model": self.model, "heads": self.heads, "optimiser": optimiser}
        if file.exists():
            state = torch.load(file, map_location=self.device, weights_only=False)
            for name, part in parts.items():
                part.load_state_dict(state[name])
        curve, weights = state["curve"], [p for group in optimiser.param_groups for p in group["params"]]
        saved, start = time.monotonic(), time.monotonic() - state["seconds"]
        todo, label = range(state["step"], steps), f"{self.name} {stage}"
        bar = tqdm(todo, label, steps, initial=state["step"], unit="step", mininterval=5)
        for step in bar:
            for group in optimiser.param_groups:
                group["lr"] = rate(step, steps, peak, warmup)
            with torch.autocast(self.device, torch.bfloat16):
                loss, measured = loss_at(step)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            bar.set_postfix({k: f"{v:.3f}" for k, v in measured.items()}, refresh=False)
            done, seconds = step + 1, time.monotonic() - start
            if done % max(1, steps // 10) == 0 or done == steps:
                curve.append({"step": done, "seconds": round(seconds)} | {k: round(v, 4) for k, v in measured.items()})
            if done == steps or time.monotonic() - saved > SAVE_SECONDS:
                state = {name: part.state_dict() for name, part in parts.items()}
                with file.with_suffix(".part").open("wb") as stream:  # by path, torch would not name a full disk
                    torch.save(state | {"step": done, "seconds": seconds, "curve": curve}, stream)
                os.replace(file.with_suffix(".part"), file)
                saved = time.monotonic()
        self.curves[stage] = curve


def train(name: str, out: Path, work: Path, device: str) -> None:
    """Make one shipped folder: vision stage, passes of lessons, export. CannotRun before its parent is trained."""
    training, recipe = Training(name, work, device), RECIPES[name]
    if recipe.parent:
        training.continue_parent(recipe.parent)
    if recipe.vision_steps:
        training.vision()
    for number in range(len(recipe.lessons)):
        training.lessons(number)
    export(training.model, out / name, tower_only=not recipe.lessons)
    log = {"recipe": asdict(recipe), "device": device, "threads": torch.get_num_threads(), "curves": training.curves}
    write_atomic(out / name / "training.json", json.dumps(log, indent=1) + "\n")


def keep_memory() -> None:
    """glibc gives large buffers back to the system at once; where page faults are dear, keeping them makes the vision
    stage 3 to 5 times faster. Other C libraries are left as they are."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD:
            mallopt(parameter, value)


def main(argv: list[str]) -> int:
    about = "Rebuild the tiny models from their seeds. Ctrl-C loses a minute at most: the same command continues."
    parser = argparse.ArgumentParser(prog="./reproduce.sh train-tiny", description=about)
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=RECIPES, help="default: all, in this order")
    parser.add_argument("--out", type=Path, default=paths.data("tiny"), help="for the models (default: data/tiny)")
    args = parser.parse_args(argv)
    keep_memory()
    torch.set_num_threads(machine.cores())
    for name in args.only:
        train(name, args.out, paths.runs("train"), "cuda" if torch.cuda.is_available() else "cpu")
    for name in args.only:
        card.measure(args.out / name)
    return 0
