"""Measure the shipped tiny models on clips that nothing was chosen on, and write their model card.

``python -m holitom_repro.tiny.card`` measures again; ``train-tiny`` does it after training. The card's clips come from a
stream of their own; training and development never draw from it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from holitom_repro.records import provenance
from holitom_repro.records import write_atomic
from holitom_repro.tiny import benchmarks, instruct
from holitom_repro.tiny.inspection import attention_statistics, leak, similarity_statistics
from holitom_repro.tiny.model import normalise, project, tower_states
from holitom_repro.tiny.packing import use_block_attention
from holitom_repro.tiny.vocabulary import PROMPT_TAIL, WORD_ID, WORDS
from holitom_repro.tiny.world import SIZE, benchmark_rng
from holitom.video import load_frames, sample_index

CLIPS = 240
FILES = 40  # videos of each benchmark that are answered both as drawn and as decoded
KEPT = (0.5, 0.25, 0.1)
FILE_FRAMES = {"one_token": 32, "grid": 64}


def load(folder: Path):
    """A shipped folder in float32, ready for packed questions."""
    from transformers import LlavaOnevisionForConditionalGeneration

    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    use_block_attention(model.model.language_model)
    return model


def measure(folder: Path) -> dict[str, Any]:
    """Everything the card says about one folder; written to ``evaluation/`` beside the folders, so that measuring a
    model does not change what identifies it."""
    if not (folder / "tokenizer.json").exists():  # a tower alone
        found: dict[str, Any] = {"attention": attention_statistics(_around(folder), benchmark_rng("card-frames", 0))}
    else:
        model = load(folder)
        rows = getattr(model.config, "mm_newline_position", "one_token") == "grid"
        frames = FILE_FRAMES["grid" if rows else "one_token"]
        found = {"frames": frames, "clips": CLIPS}
        found["accuracy"] = instruct.accuracy(model, benchmark_rng("second-card-answers", 0), CLIPS, frames, rows)
        found["random_kept"] = {
            str(k): instruct.accuracy(model, benchmark_rng("second-card-answers", 1), CLIPS // 4, frames, rows, keep=k)[
                "all"
            ]
            for k in KEPT
        }
        found["files"] = through_files(model, frames, rows)
        found["attention"] = attention_statistics(model, benchmark_rng("card-frames", 0))
        found["similarity"] = similarity_statistics(model, lambda i: benchmark_rng("card-clips", i))
        found["leak_r2"] = leak(model, benchmark_rng("card-frames", 1))
    found["provenance"] = provenance()
    write_atomic(folder.parent / "evaluation" / f"{folder.name}.json", json.dumps(found, indent=1) + "\n")
    return found


def _around(folder: Path):
    """A tower-only folder inside an otherwise empty model, so that the same statistics apply."""
    from transformers import SiglipVisionModel

    from holitom_repro.tiny.model import build

    model = build()
    model.model.vision_tower.load_state_dict(
        SiglipVisionModel.from_pretrained(folder, dtype=torch.float32).state_dict()
    )
    return model.eval()


@torch.no_grad()
def through_files(model, frames: int, rows: bool) -> dict[str, dict[str, float]]:
    """Share of right answers on the first videos of each benchmark: from the frames as drawn, and as decoded."""
    benchmarks.prepare(FILES * benchmarks.QUESTIONS_PER_VIDEO)
    scores = {}
    for name in benchmarks.BENCHMARKS:
        right = {"drawn": 0, "decoded": 0}
        asked = changed = 0
        for video in tqdm(range(FILES), desc=f"{name} through files", unit="video"):
            clip, questions = benchmarks.draw(name, video)
            drawn = clip.frames[sample_index(len(clip.frames), frames)]
            decoded = _shrink(load_frames(benchmarks.video_path(name, f"{video:03d}.mp4"), frames).pixels)
            answers = {k: _answers(model, v, questions, rows) for k, v in (("drawn", drawn), ("decoded", decoded))}
            for k, given in answers.items():
                right[k] += sum(a == q.answer for a, q in zip(given, questions, strict=True))
            changed += sum(a != b for a, b in zip(*answers.values(), strict=True))
            asked += len(questions)
        scores[name] = {k: v / asked for k, v in right.items()} | {"answers_changed": changed / asked}
    return scores


def _shrink(pixels: np.ndarray) -> np.ndarray:
    """The box filter of the preprocessing: uint8 [T, 4 * 32, 4 * 32, 3] -> float32 [T, 32, 32, 3] in 0..1."""
    side = pixels.shape[1] // SIZE
    means = pixels.reshape(len(pixels), SIZE, side, SIZE, side, 3).astype(np.float32).mean((2, 4))
    return np.round(means) / 255


def _answers(model, frames: np.ndarray, questions, rows: bool) -> list[str]:
    """The most likely next word of the whole vocabulary, for every question of one clip."""
    words = np.zeros((1, len(questions), instruct.QUESTION_LENGTH), np.int64)
    ends = np.zeros((1, len(questions)), np.int64)
    for j, question in enumerate(questions):
        ids = [WORD_ID[w] for w in (*question.text.split(), *PROMPT_TAIL)]
        words[0, j, : len(ids)], ends[0, j] = ids, len(ids) - 1
    tokens = project(model, tower_states(model, normalise(frames))[0]).flatten(0, 1)[None]
    video = instruct.video_rows(tokens, None, model.model.image_newline, rows)
    states = instruct.answer_states(model, video, torch.from_numpy(words))
    best = model.lm_head(instruct.at_position(states, torch.from_numpy(ends))).argmax(-1)[0]
    return [WORDS[i] if i < len(WORDS) else "" for i in best.tolist()]


def main(argv: list[str]) -> int:
    from holitom_repro import paths
    from holitom_repro.tiny.card_text import write_card

    root = paths.data("tiny")
    for folder in sorted(p.parent for p in root.glob("*/training.json") if not argv or p.parent.name in argv):
        measure(folder)
    write_card(root)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
