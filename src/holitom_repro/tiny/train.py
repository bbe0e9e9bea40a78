"""``./reproduce.sh train-tiny``: rebuild every shipped tiny model from its seed, on CPU or GPU, resumable.

Steps, not minutes, define the recipe. Every step draws its own batch from (seed, stage, step), so a run that was
stopped and continued sees the same data as one that was not.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from holitom_repro import paths
from holitom.errors import BadUsage, CannotRun
from holitom_repro.refusals import at_least_one, folder_to_write, given, present
from holitom_repro.tiny import instruct, pretrain
from holitom_repro.tiny.loop import Stage, decayed, length_of, run_stage
from holitom_repro.tiny.model import build
from holitom_repro.tiny.packing import use_block_attention
from holitom_repro.tiny.recipes import FRAMES_PER_STEP, QUESTIONS_PER_CLIP, RECIPES, Recipe
from holitom_repro.tiny.world import development_rng, training_rng
from holitom_repro.usage import Parser

# glibc gives every large buffer back to the system by default; keeping them makes the vision stage 3 to 5 times faster
MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def vision_stage(recipe: Recipe, steps: int, model, training: pretrain.VisionTraining) -> Stage:
    return Stage(
        name="vision",
        steps=steps,
        peak=recipe.vision_rate,
        warmup=50,
        draw=lambda step: pretrain.draw_frames(training_rng(recipe.seed, 1, step), FRAMES_PER_STEP),
        loss=lambda batch, step: training(model, batch),
    )


def text_stage(recipe: Recipe, number: int, scale: float, model, dense: pretrain.DenseLabels) -> Stage:
    name, lessons = recipe.lessons[number]
    steps = _scaled(lessons.steps, scale)
    longest = max(p.frames for p in lessons.phases)
    clips_stream, drops_stream = 2 + 2 * number, 3 + 2 * number

    def draw(step: int) -> instruct.Lessons:
        rng = training_rng(recipe.seed, clips_stream, step)
        phase = [p for p in lessons.phases if step / steps >= p.start][-1]
        frames, clips = phase.frames, phase.clips
        if frames > 4 and rng.random() < 0.25:  # any length up to the present one
            shorter = int(rng.integers(4, frames + 1))
            frames, clips = shorter, min(64, clips * frames // shorter)
        return instruct.draw_lessons(rng, clips, frames, QUESTIONS_PER_CLIP)

    return Stage(
        name=name,
        steps=steps,
        peak=lessons.rate,
        warmup=100,
        draw=draw,
        loss=lambda batch, step: instruct.answering_loss(
            model, dense, batch, training_rng(recipe.seed, drops_stream, step), recipe.row_newlines, lessons.stressed
        ),
        check=lambda: instruct.accuracy(model, development_rng(0), 32, longest, recipe.row_newlines),
    )


def _scaled(steps: int, scale: float) -> int:
    return max(2, int(steps * scale))


def train(name: str, out: Path, work: Path, device: str, workers: int, scale: float) -> None:
    """Make one shipped folder: vision stage, text stage, export."""
    from holitom_repro.tiny.export import export

    recipe, folder = RECIPES[name], work / name
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    model = build(recipe.row_newlines, recipe.feature_layer).to(device)
    training = pretrain.VisionTraining(recipe.head).to(device)
    curves: dict[str, list] = {}
    if recipe.parent:
        parent, last = recipe.parent
        source = work / parent / f"{last}.pt"
        state = torch.load(source, map_location=device, weights_only=False) if source.exists() else {"step": 0}
        steps = _scaled(dict(RECIPES[parent].lessons)[last].steps, scale)
        if not steps == length_of(state) == state["step"]:
            raise CannotRun(
                f"{name} continues {parent}, which is not trained to step {steps} yet", fix=f"train {parent} first"
            )
        model.load_state_dict(state["model"])
        training.dense.load_state_dict(state["heads"])
    if recipe.vision_steps:
        parts = nn.ModuleList([model.model.vision_tower, model.model.multi_modal_projector, training])
        optimiser = torch.optim.AdamW(parts.parameters(), weight_decay=0.02, betas=(0.9, 0.98))
        stage = vision_stage(recipe, _scaled(recipe.vision_steps, scale), model, training)
        curves["vision"] = run_stage(stage, model, training, optimiser, folder, device, workers)
    for number, (stage_name, _) in enumerate(recipe.lessons):
        model.model.vision_tower.requires_grad_(False)
        use_block_attention(model.model.language_model)
        groups = decayed([*model.parameters(), *training.dense.parameters()], 0.05)
        optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        stage = text_stage(recipe, number, scale, model, training.dense)
        curves[stage_name] = run_stage(stage, model, training.dense, optimiser, folder, device, workers)
    model.model.language_model.set_attn_implementation("sdpa")
    export(model, out / name, tower_only=not recipe.lessons)
    log = {
        "recipe": asdict(recipe),
        "scale": scale,
        "device": device,
        "threads": torch.get_num_threads(),
        "curves": curves,
    }
    (out / name / "training.json").write_text(json.dumps(log, indent=1) + "\n")


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 (1: all steps of the recipe)")
    return share


def _count(text: str) -> int:
    return 0 if text.strip() == "0" else at_least_one(text)


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="./reproduce.sh train-tiny", description="Rebuild the tiny models from their seeds (resumable).")
    p.add_argument(
        "--only", nargs="+", metavar="NAME", help=f"one or more of: {', '.join(RECIPES)} (default: all, in order)"
    )
    p.add_argument("--out", type=given, help="where the finished models go (default: data/tiny; a trial: --work)")
    p.add_argument("--work", type=given, help="where unfinished training is kept (default: runs/train; a trial below)")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--threads", type=at_least_one, default=os.cpu_count(), help="CPU threads (default: all cores)")
    p.add_argument("--workers", type=_count, default=0, help="processes that draw clips ahead (useful with a GPU)")
    p.add_argument(
        "--steps", type=_share, default=1.0, metavar="SHARE", help="share of the recipe's steps, for a trial run"
    )
    return p


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    names = args.only or list(RECIPES)
    if unknown := [n for n in names if n not in RECIPES]:
        raise BadUsage(f"no tiny model is called {unknown[0]!r}", fix=f"choose from {', '.join(RECIPES)}")
    present(args.device)
    trial = [] if args.steps == 1 else [f"steps-{args.steps:g}"]
    work = folder_to_write(args.work or paths.runs("train", *trial), "--work")
    out = folder_to_write(args.out or (work / "models" if trial else paths.data("tiny")), "--out")
    for name in names:  # found now, not after hours of training
        folder_to_write(out / name, "--out")
        folder_to_write(work / name, "--work")
    if args.device == "cpu" and any(os.environ.get(k) != v for k, v in MALLOC.items()):
        # glibc reads these when a process starts; through the command line, which puts errors and ctrl-C into words
        debug = ["--debug"] if "--debug" in sys.argv else []
        command = [sys.executable, "-P", "-m", "holitom_repro", "train-tiny", *argv, *debug]
        sys.stdout.flush()
        os.execve(sys.executable, command, os.environ | MALLOC)
    from holitom_repro.tiny.card import measure
    from holitom_repro.tiny.card_text import write_card

    torch.set_num_threads(args.threads)
    try:
        for name in names:
            train(name, out, work, args.device, args.workers, args.steps)
    except KeyboardInterrupt as stop:
        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()  # or the message stands in the bar's line, and the bar is drawn again below it
        raise KeyboardInterrupt("stopped; the last minute at most is lost; run the same command to continue") from stop
    for name in names:
        measure(out / name)
    write_card(out)
    return 0
