"""The tiny model in the explorer: its features of a clip, and its answer to a question before and after reduction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from holitom_repro import paths
from holitom.errors import CannotRun
from holitom.types import Reduction, VideoFeatures

MODEL = ("tiny", "onevision")  # below data/
TINY_FRAMES = 32  # the number of frames it was trained on
_FIELDS = frozenset({"saliency", "keys", "frame_embed"})


@dataclass(frozen=True)
class Answer:
    """The word that the model says first, how sure it is (softmax over its whole vocabulary), and the visual tokens it
    read, mean over its layers. flops: of its prefill, exact, text and newlines included."""

    word: str
    probability: float
    tokens: float
    flops: float


@dataclass(frozen=True, eq=False)
class TinyModel:
    """The shipped model with its processor."""

    model: Any
    processor: Any

    @property
    def layers(self) -> int:
        return len(self.model.model.language_model.layers)

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray) -> VideoFeatures:
        """Frames [T, H, W, 3] uint8 -> features with everything that any method reads."""
        from holitom.models import adapter_for

        found = adapter_for(self.model).encode([self.processor.pixels(pixels)], _FIELDS).videos[0]
        # Out of inference mode, because holitom_repro.explorer.sources differentiates.
        fields = ("tokens", "saliency", "keys", "frame_embed")
        return VideoFeatures(grid=found.grid, **{name: _plain(getattr(found, name)) for name in fields})

    @torch.no_grad()
    def ask(self, video: VideoFeatures, question: str, reduction: Reduction | None = None) -> Answer:
        """One prefill; ``reduction`` None: with every token."""
        from holitom.attach import reduce_tokens

        with reduce_tokens(self.model, reduction=reduction or Reduction("all tokens")) as run:
            run.provide([video])
            logits = self.model(**self.processor.prompts([question])).logits[0, -1]
            last = run.stats.last
        chance = logits.float().softmax(-1)
        best = int(chance.argmax())
        word = str(self.processor.tokenizer.decode([best], skip_special_tokens=True)).strip()
        return Answer(word, float(chance[best]), float(np.mean(last.per_layer)), last.flops_exact)


@cache
def tiny_model(folder: Path | None = None) -> TinyModel:
    """The shipped model, loaded once. CannotRun when it is not there."""
    from holitom.models.processing import VideoProcessor, load_model

    folder = folder or paths.data(*MODEL)
    if not (folder / "config.json").is_file():
        raise CannotRun(
            f"the tiny model is missing from {folder}",
            fix="restore it (git checkout -- data/tiny), train it (./reproduce.sh train-tiny), or choose another clip",
        )
    with _without_progress_bar():
        return TinyModel(load_model(folder, torch.float32, "cpu"), VideoProcessor.from_pretrained(folder))


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Transformers shows one even for a model that loads in a blink."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _plain(value: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.from_numpy(value.float().numpy().copy())
