"""Measure the tiny models on clips that nothing was chosen on, and write the tables of their card.

``python -m holitom_repro.tiny.card`` measures again; ``train-tiny`` does it after training. The clips come from streams
of their own; training and development never draw from them. Where the tower's attention goes decides how
methods fare on a model; it was not trained for.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from holitom_repro import paths
from holitom_repro.machine import provenance
from holitom_repro.records import write_atomic
from holitom_repro.tiny import learning
from holitom_repro.tiny.model import CELLS, GRID, build
from holitom_repro.tiny.vocabulary import CHANCE, QUESTION_TYPES
from holitom_repro.tiny.world import benchmark_rng

CLIPS = 240
KEPT = (0.5, 0.25, 0.1)
_GENERATED = "## Training\n"  # of the card, everything below


def load(folder: Path):
    """A shipped folder in float32, ready for packed questions; a tower alone stands in an otherwise empty model."""
    from transformers import LlavaOnevisionForConditionalGeneration, SiglipVisionModel

    if not (folder / "tokenizer.json").exists():
        model, tower = build(), SiglipVisionModel.from_pretrained(folder, dtype=torch.float32)
        model.model.vision_tower.load_state_dict(tower.state_dict())
        return model.eval()
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    learning.use_block_attention(model.model.language_model)
    return model


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
    ranks = torch.empty_like(score, dtype=torch.float64)
    ranks[score.argsort()] = torch.arange(1, len(score) + 1, dtype=torch.float64)
    ones = int(positive.sum())
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * (len(score) - ones)))


@torch.no_grad()
def attention(model, frames: int = 2000) -> dict[str, float]:
    """How the attention received in the last tower layer tells cells with an object from background cells."""
    drawn = learning.draw_frames(benchmark_rng("card-frames", 0), frames)
    received = torch.cat([_received(model, part) for part in drawn.pixels.split(256)])
    shown = drawn.looks.any(-1)
    top = torch.zeros_like(shown).scatter(1, received.topk(CELLS // 4, 1).indices, True)
    return {
        "object_over_background": round(float(received[shown].mean() / received[~shown].mean()), 2),
        "auc": round(rank_auc(received.flatten(), shown.flatten()), 3),
        "objects_in_top_quarter": round(float((top & shown).sum() / shown.sum()), 3),
    }


def _received(model, pixels: Tensor) -> Tensor:
    """Attention [F, 16] that each cell receives in the last tower layer, the mean of its four patches."""
    tower = model.model.vision_tower
    layer = getattr(tower, "vision_model", tower).encoder.layers[-1]
    x = layer.layer_norm1(tower(pixels, output_hidden_states=True).hidden_states[-2])
    query, key = (
        p(x).unflatten(2, (layer.self_attn.num_heads, -1)).transpose(1, 2)
        for p in (layer.self_attn.q_proj, layer.self_attn.k_proj)
    )
    received = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1).mean((1, 2))
    return F.avg_pool2d(received.view(-1, 1, 2 * GRID, 2 * GRID), 2).flatten(1)


def write_card(root: Path) -> Path:
    """Write README.md below ``root``: the shipped one's words, and tables of what is measured there."""
    words = paths.data("tiny", "README.md").read_text(encoding="utf-8").partition(_GENERATED)[0]
    found = {}
    for file in sorted((root / "evaluation").glob("*.json")):
        made = json.loads((root / file.stem / "training.json").read_text(encoding="utf-8"))
        found[f"`{file.stem}`"] = made, json.loads(file.read_text(encoding="utf-8"))
    models = {name: measured for name, (_, measured) in found.items() if "accuracy" in measured}
    tables = [_training(found), _accuracy(models), _tower(found)]
    return write_atomic(root / "README.md", words + "\n".join(tables))


def _table(title: str, text: str, head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join([f"## {title}\n\n{text}\n", *lines, ""])


def _training(found: dict[str, Any]) -> str:
    rows = []
    for name, (made, measured) in found.items():
        parent = made["recipe"]["parent"]
        start = f"`{parent if isinstance(parent, str) else parent[0]}`" if parent else "scratch"
        stages = [f"{k}: {c[-1]['step']} steps, {c[-1]['seconds'] / 60:.0f} min" for k, c in made["curves"].items()]
        machine = f"{made['threads']} x {measured['provenance']['cpu']}" if made["device"] == "cpu" else "GPU"
        rows.append([name, str(made["recipe"]["seed"]), start, "; ".join(stages), machine])
    text = "The recipe is `RECIPES` in `src/holitom_repro/tiny/train.py`."
    return _table("Training", text, ["folder", "seed", "starts from", "stages", "threads"], rows)


def _accuracy(models: dict[str, Any]) -> str:
    right = {kind: [m["accuracy"][kind] for m in models.values()] for kind in (*QUESTION_TYPES, "all")}
    right |= {f"all, random {k:.0%} of the tokens": [m["random_kept"][str(k)] for m in models.values()] for k in KEPT}
    mean = sum(CHANCE.values()) / len(CHANCE)
    rows = [[kind, *(f"{100 * x:.1f}" for x in (CHANCE.get(kind, mean), *row))] for kind, row in right.items()]
    text = f"Per cent right on {CLIPS} clips that nothing was chosen on (the last rows: on a quarter as many)."
    return _table("Accuracy", text, ["question", "chance", *models], rows)


def _tower(found: dict[str, Any]) -> str:
    rows = [[name, *(f"{x:.2f}" for x in one["attention"].values())] for name, (_, one) in found.items()]
    head = ["model", "object over background", "AUC", "objects in top quarter (chance 0.25)"]
    return _table("Tower statistics", "Attention received in the last layer.", head, rows)


def main(argv: list[str]) -> int:
    root = paths.data("tiny")
    for file in sorted(root.glob("*/training.json")):
        if not argv or file.parent.name in argv:
            measure(file.parent)
    write_card(root)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
