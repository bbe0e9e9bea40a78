"""The training loop that both stages share: batches by step number, progress, and a file to continue from."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from holitom.errors import CannotRun

SAVE_SECONDS = 60.0


class Batches(Dataset):
    """Item i is the batch of step i and the generator to draw on for that step."""

    def __init__(self, draw: Callable, steps: int) -> None:
        self.draw, self.steps = draw, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int):
        return self.draw(step)


def batches(draw: Callable, first: int, steps: int, workers: int) -> Iterator:
    loader = DataLoader(Batches(draw, steps), batch_size=None, sampler=range(first, steps), num_workers=workers)
    return iter(loader)


def rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, flat to the half, then linear to 2 % of the peak."""
    done = step / steps
    return peak * min(1.0, (step + 1) / warmup) * (1.0 if done <= 0.5 else max(0.02, (1 - done) / 0.5))


def to(batch, device):
    return type(batch)(**{k: v.to(device) for k, v in vars(batch).items()})


@dataclass
class Stage:
    """One loop: what to train, with which batches and loss."""

    name: str
    steps: int
    peak: float
    warmup: int
    draw: Callable
    loss: Callable
    check: Callable | None = None


def run_stage(stage: Stage, model, heads: nn.Module, optimiser, folder: Path, device: str, workers: int) -> list[dict]:
    """Train to the last step, saving about once a minute; a finished or half-finished stage is taken up where it is.
    CannotRun for one of another length: its learning rates and clips were others."""
    file = folder / f"{stage.name}.pt"
    step, seconds, curve = 0, 0.0, []
    if file.exists():
        state = torch.load(file, map_location=device, weights_only=False)
        if (length := length_of(state)) != stage.steps:
            raise CannotRun(
                f"{file} is of a training of {length} steps, not of {stage.steps}",
                fix=f"give another --work, or delete {folder}",
            )
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimiser.load_state_dict(state["optimiser"])
        step, seconds, curve = state["step"], state["seconds"], state["curve"]

    def save() -> None:
        state = {"model": model.state_dict(), "heads": heads.state_dict(), "optimiser": optimiser.state_dict()}
        part = file.with_suffix(".part")
        with part.open("wb") as stream:  # a full disk is named as such; by path, torch would say "unexpected pos"
            torch.save(state | {"step": step, "steps": stage.steps, "seconds": seconds, "curve": curve}, stream)
        os.replace(part, file)

    source = batches(stage.draw, step, stage.steps, workers)
    bar = tqdm(total=stage.steps, initial=step, desc=f"{folder.name} {stage.name}", unit="step", mininterval=5)
    saved = last = time.monotonic()
    while step < stage.steps:
        for group in optimiser.param_groups:
            group["lr"] = rate(step, stage.steps, stage.peak, stage.warmup)
        with torch.autocast(device, torch.bfloat16):
            loss, parts = stage.loss(to(next(source), device), step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for g in optimiser.param_groups for p in g["params"]], 1.0)
        optimiser.step()
        step += 1
        now = time.monotonic()
        seconds, last = seconds + now - last, now
        bar.update()
        bar.set_postfix({k: f"{v:.3f}" for k, v in parts.items()}, refresh=False)
        if stage.check and step % max(1, stage.steps // 10) == 0:
            scores = stage.check()
            curve.append({"step": step, "seconds": round(seconds), **{k: round(v, 4) for k, v in scores.items()}})
            bar.write(
                f"{folder.name} {stage.name} {step}/{stage.steps}: {scores['all']:.3f} of development questions right"
            )
            last = time.monotonic()
        if step == stage.steps or now - saved > SAVE_SECONDS:
            save()
            saved = last = time.monotonic()
    bar.close()
    return [*curve, {"step": step, "seconds": round(seconds), "end": True}]


def length_of(state: Mapping[str, Any]) -> int:
    """The steps of a saved stage's whole training. Older files do not say it: then those that were done, which is right
    for a finished one."""
    return state.get("steps", state["step"])


def decayed(parameters, decay: float) -> list[dict]:
    """Weight decay for matrices only."""
    wanted = [p for p in parameters if p.requires_grad]
    matrices, vectors = [p for p in wanted if p.ndim > 1], [p for p in wanted if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
