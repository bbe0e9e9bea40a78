"""``./reproduce.sh train-tiny``: rebuild every shipped tiny model from its seed, on CPU or GPU, resumable.

Steps, not minutes, define a recipe. Every step draws its own batch from (seed, stage, step), so a run that was stopped
and continued sees the same data as one that was not.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn
from tqdm import tqdm

from holitom.errors import BadUsage, CannotRun
from holitom_repro import machine, paths
from holitom_repro.records import write_atomic
from holitom_repro.tiny import card, learning
from holitom_repro.tiny.model import build, export
from holitom_repro.tiny.world import training_rng

FRAMES_PER_STEP, QUESTIONS_PER_CLIP, SAVE_SECONDS = 256, 10, 60.0
MALLOC = {
    "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "268435456",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}  # fmt: skip
"""glibc gives large buffers back to the system at once; keeping them makes the vision stage 3 to 5 times faster."""


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


class Stage(NamedTuple):
    """One loop: a batch for each step, and its loss."""

    name: str
    steps: int
    peak: float
    warmup: int
    draw: Callable[[int], Any]
    loss: Callable[[Any, int], learning.Measured]


def vision_stage(recipe: Recipe, steps: int, model, training: learning.VisionTraining) -> Stage:
    def draw(step: int) -> learning.Frames:
        return learning.draw_frames(training_rng(recipe.seed, 1, step), FRAMES_PER_STEP)

    return Stage("vision", steps, recipe.vision_rate, 50, draw, lambda batch, step: training(model, batch))


def text_stage(recipe: Recipe, number: int, steps: int, model, dense: learning.DenseLabels) -> Stage:
    lessons = recipe.lessons[number]

    def draw(step: int) -> learning.Clips:
        rng = training_rng(recipe.seed, 2 + 2 * number, step)
        _, frames, clips = [phase for phase in lessons.phases if step / steps >= phase[0]][-1]
        if frames > 4 and rng.random() < 0.25:  # any length up to the present one
            shorter = int(rng.integers(4, frames + 1))
            frames, clips = shorter, min(64, clips * frames // shorter)
        return learning.draw_clips(rng, clips, frames, QUESTIONS_PER_CLIP)

    def loss(batch: learning.Clips, step: int) -> learning.Measured:
        rng = training_rng(recipe.seed, 3 + 2 * number, step)
        return learning.answering_loss(model, dense, batch, rng, recipe.row_newlines, lessons.stressed)

    return Stage(lessons.name, steps, lessons.rate, 100, draw, loss)


def scaled(steps: int, scale: float) -> int:
    """Steps of a trial run."""
    return max(2, int(steps * scale))


def rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, flat to the half, then linear to 2 % of the peak."""
    done = step / steps
    return peak * min(1.0, (step + 1) / warmup) * (1.0 if done <= 0.5 else max(0.02, (1 - done) / 0.5))


def run_stage(stage: Stage, model, heads: nn.Module, optimiser, folder: Path, device: str) -> list[dict]:
    """Train to the last step, saving about once a minute; a stage that was begun is taken up where it is. Returns its
    curve. CannotRun for one of another length: its learning rates and clips were others."""
    file, step, seconds, curve = folder / f"{stage.name}.pt", 0, 0.0, []
    parts = {"model": model, "heads": heads, "optimiser": optimiser}
    if file.exists():
        state = torch.load(file, map_location=device, weights_only=False)
        if state["steps"] != stage.steps:
            told = f"{file} is of a training of {state['steps']} steps, not of {stage.steps}"
            raise CannotRun(told, fix=f"give another --work, or delete {folder}")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        step, seconds, curve = state["step"], state["seconds"], state["curve"]
    label = f"{folder.name} {stage.name}"
    saved = last = time.monotonic()
    with tqdm(total=stage.steps, initial=step, desc=label, unit="step", mininterval=5) as bar:
        while step < stage.steps:
            for group in optimiser.param_groups:
                group["lr"] = rate(step, stage.steps, stage.peak, stage.warmup)
            batch = stage.draw(step)
            batch = type(batch)(**{name: value.to(device) for name, value in vars(batch).items()})
            with torch.autocast(device, torch.bfloat16):
                loss, measured = stage.loss(batch, step)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
            optimiser.step()
            step, now = step + 1, time.monotonic()
            seconds, last = seconds + now - last, now
            bar.update()
            bar.set_postfix({k: f"{v:.3f}" for k, v in measured.items()}, refresh=False)
            if step % max(1, stage.steps // 10) == 0 or step == stage.steps:
                curve.append({"step": step, "seconds": round(seconds)} | {k: round(v, 4) for k, v in measured.items()})
            if step == stage.steps or now - saved > SAVE_SECONDS:
                done = {"step": step, "steps": stage.steps, "seconds": seconds, "curve": curve}
                with file.with_suffix(".part").open("wb") as stream:  # by path, torch would not name a full disk
                    torch.save({name: part.state_dict() for name, part in parts.items()} | done, stream)
                os.replace(file.with_suffix(".part"), file)
                saved = last = time.monotonic()
    return curve


def train(name: str, out: Path, work: Path, device: str, scale: float) -> None:
    """Make one shipped folder: vision stage, passes of lessons, export. CannotRun before its parent is trained."""
    recipe, folder = RECIPES[name], work / name
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    model = build(recipe.row_newlines, recipe.feature_layer).to(device)
    training = learning.VisionTraining(recipe.head).to(device)
    curves = {}
    if recipe.parent:
        last = RECIPES[recipe.parent].lessons[-1]
        source, steps = work / recipe.parent / f"{last.name}.pt", scaled(last.steps, scale)
        state = torch.load(source, map_location=device, weights_only=False) if source.exists() else {}
        if not state.get("step") == state.get("steps") == steps:
            told = f"{name} continues {recipe.parent}, which is not trained to step {steps} yet"
            raise CannotRun(told, fix=f"train {recipe.parent} first")
        model.load_state_dict(state["model"])
        training.dense.load_state_dict(state["heads"])
    if recipe.vision_steps:
        parts = nn.ModuleList([model.model.vision_tower, model.model.multi_modal_projector, training])
        optimiser = torch.optim.AdamW(parts.parameters(), weight_decay=0.02, betas=(0.9, 0.98))
        stage = vision_stage(recipe, scaled(recipe.vision_steps, scale), model, training)
        curves[stage.name] = run_stage(stage, model, training, optimiser, folder, device)
    for number, lessons in enumerate(recipe.lessons):
        model.model.vision_tower.requires_grad_(False)
        learning.use_block_attention(model.model.language_model)
        weights = [p for p in (*model.parameters(), *training.dense.parameters()) if p.requires_grad]
        matrices, vectors = [p for p in weights if p.ndim > 1], [p for p in weights if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        stage = text_stage(recipe, number, scaled(lessons.steps, scale), model, training.dense)
        curves[stage.name] = run_stage(stage, model, training.dense, optimiser, folder, device)
    model.model.language_model.set_attn_implementation("sdpa")
    try:
        export(model, out / name, tower_only=not recipe.lessons)
    except SafetensorError as error:
        fix = "free some space and run the same command again: nothing is trained twice"
        raise CannotRun(f"{out / name} cannot be written ({error})", fix=fix) from error
    log = {"recipe": asdict(recipe), "scale": scale, "device": device, "threads": torch.get_num_threads()}
    write_atomic(out / name / "training.json", json.dumps(log | {"curves": curves}, indent=1) + "\n")


def _arguments(argv: list[str]) -> argparse.Namespace:
    about = "Rebuild the tiny models from their seeds. Ctrl-C loses a minute at most: the same command continues."
    p = argparse.ArgumentParser(prog="./reproduce.sh train-tiny", description=about)
    p.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES), help="default: all, in this order")
    p.add_argument("--out", help="where the finished models go (default: data/tiny; a trial: --work)")
    p.add_argument("--work", help="where unfinished training is kept (default: runs/train; a trial below)")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--steps", type=float, default=1.0, metavar="SHARE", help="share of the steps, for a trial run")
    args = p.parse_args(argv)
    if not 0 < args.steps < float("inf"):
        raise BadUsage(f"--steps {args.steps}", fix="give a number above 0")
    trial = [] if args.steps == 1 else [f"steps-{args.steps:g}"]
    args.work = Path(args.work or paths.runs("train", *trial))
    args.out = Path(args.out or (args.work / "models" if trial else paths.data("tiny")))
    return args


def main(argv: list[str]) -> int:
    args = _arguments(argv)
    for folder in (root / name for root in (args.out, args.work) for name in args.only):
        try:  # told now, not after hours of training
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise CannotRun(f"{folder} cannot be written ({error.strerror})", fix="name other folders") from error
    if args.device == "cpu" and not MALLOC.items() <= os.environ.items():
        # glibc reads these when a process starts; through the command line, which puts errors and ctrl-C into words
        debug = ["--debug"] if "--debug" in sys.argv else []
        command = [sys.executable, "-P", "-m", "holitom_repro", "train-tiny", *argv, *debug]
        sys.stdout.flush()
        os.execve(sys.executable, command, os.environ | MALLOC)
    torch.set_num_threads(machine.cores())
    for name in args.only:
        train(name, args.out, args.work, args.device, args.steps)
    for name in args.only:
        card.measure(args.out / name)
    return 0
