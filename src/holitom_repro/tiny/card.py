"""Measure the tiny models on clips that nothing was chosen on: the numbers of their card, data/tiny/README.md.

``python -m holitom_repro.tiny.card`` measures again; ``train-tiny`` does it after training. The clips come from streams
of their own; training and development never draw from them. Where the tower's attention goes decides how
methods fare on a model; it was not trained for.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holitom.models import adapter_for
from holitom_repro import paths
from holitom_repro.machine import provenance
from holitom_repro.records import write_atomic
from holitom_repro.tiny import learning
from holitom_repro.tiny.model import CELLS, build
from holitom_repro.tiny.world import benchmark_rng

CLIPS = 240
KEPT = (0.5, 0.25, 0.1)


def load(folder: Path):
    """A shipped folder in float32, ready for packed questions; a tower alone stands in an otherwise empty model."""
    from transformers import LlavaOnevisionForConditionalGeneration, SiglipVisionModel

    if not (folder / "tokenizer.json").exists():
        model, tower = build(), SiglipVisionModel.from_pretrained(folder, dtype=torch.float32)
        model.model.vision_tower.load_state_dict(tower.state_dict())
        return model.eval()
    return LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def measure(folder: Path) -> dict[str, Any]:
    """Everything the card says about one folder; written to ``evaluation/`` beside the folders, so that measuring a
    model does not change what identifies it."""
    model, found = load(folder), {}
    if (folder / "tokenizer.json").exists():
        rows = getattr(model.config, "mm_newline_position", "one_token") == "grid"
        frames = 64 if rows else 32

        def right(stream: int, clips: int, keep: float = 1.0) -> dict[str, float]:
            return learning.accuracy(model, benchmark_rng("second-card-answers", stream), clips, frames, rows, keep)

        found = {"frames": frames, "clips": CLIPS, "accuracy": right(0, CLIPS)}
        found["random_kept"] = {str(keep): right(1, CLIPS // 4, keep)["all"] for keep in KEPT}
    found |= {"attention": attention(model), "provenance": provenance()}
    write_atomic(folder.parent / "evaluation" / f"{folder.name}.json", json.dumps(found, indent=1) + "\n")
    return found


def rank_auc(score: Tensor, positive: Tensor) -> float:
    """Chance that a positive scores above a negative; 0.5 says that the score knows nothing. Both [n]."""
    ranks, ones = score.argsort().argsort() + 1, int(positive.sum())
    return (int(ranks[positive].sum()) - ones * (ones + 1) / 2) / (ones * (len(score) - ones))


@torch.no_grad()
def attention(model, frames: int = 2000) -> dict[str, float]:
    """How the attention received in the last tower layer tells cells with an object from background cells."""
    drawn = learning.draw_frames(benchmark_rng("card-frames", 0), frames)
    parts = [adapter_for(model).encode([part], frozenset({"saliency"}))[0] for part in drawn.pixels.split(256)]
    received = torch.cat([part.saliency for part in parts])
    shown = drawn.looks.any(-1)
    top = torch.zeros_like(shown).scatter(1, received.topk(CELLS // 4, 1).indices, True)
    return {
        "object_over_background": round(float(received[shown].mean() / received[~shown].mean()), 2),
        "auc": round(rank_auc(received.flatten(), shown.flatten()), 3),
        "objects_in_top_quarter": round(float((top & shown).sum() / shown.sum()), 3),
    }


if __name__ == "__main__":
    for log in sorted(paths.data("tiny").glob("*/training.json")):
        measure(log.parent)
