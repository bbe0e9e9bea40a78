"""A dress rehearsal of the paper tier: every row of every experiment, with the papers' layers and ratios, on a random
model as deep as theirs, through lmms-eval's own task. What it answers is noise; that it answers is the point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rehearsal import rows
from standin_data import COLORS, lettered, make
from transformers import AutoConfig, LlavaOnevisionForConditionalGeneration, SiglipVisionConfig, SiglipVisionModel

pytestmark = pytest.mark.slow


def deep(folder: Path, layers: int = 28) -> Path:
    """The tiny model's processor with random weights of as many layers as the paper's, and a pooling head beside it."""
    lettered(folder, COLORS)
    config = AutoConfig.from_pretrained(folder)
    config.text_config.num_hidden_layers = layers
    config.text_config.layer_types = ["full_attention"] * layers
    torch.manual_seed(0)
    LlavaOnevisionForConditionalGeneration(config).save_pretrained(folder)
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    SiglipVisionModel(SiglipVisionConfig(**{**vision, "vision_use_head": True})).save_pretrained(folder / "head")
    return folder


def test_every_row_of_the_paper_tier_can_be_measured(tmp_path: Path) -> None:
    data, model = make(tmp_path / "all", videos=1), deep(tmp_path / "deep")
    words = [Path(__file__).with_name("rehearsal.py"), tmp_path / "runs", data.tasks, model]
    environment = {**os.environ, **data.environment()}
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "FAILED" not in done.stdout, done.stdout
    assert len(rows("x")) > 50
    assert f"DONE {len(rows('x'))}" in done.stdout
