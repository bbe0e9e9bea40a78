"""Write a tiny model as a Hugging Face folder: bfloat16 weights, tokenizer with chat template, image preprocessing."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch

from holitom_repro.tiny.vocabulary import tokenizer
from holitom_repro.tiny.world import SIZE

BOX = 4  # PIL's box filter: the exact inverse of nearest-neighbour enlargement

PREPROCESSOR = {
    "image_processor_type": "SiglipImageProcessor",
    "do_resize": True,
    "size": {"height": SIZE, "width": SIZE},
    "resample": BOX,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def export(model, folder: Path, tower_only: bool = False) -> None:
    """Save to ``folder``; ``tower_only`` keeps the vision tower alone, as a SiglipVisionModel."""
    folder.mkdir(parents=True, exist_ok=True)
    part = model.model.vision_tower if tower_only else model
    copy.deepcopy(part).to("cpu", torch.bfloat16).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")
    if not tower_only:
        tokenizer().save_pretrained(folder)
