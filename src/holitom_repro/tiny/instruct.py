"""Stage 2: the language model learns to answer questions about clips, several questions per clip in one sequence.

Each question block sees the prompt head, the video and itself, at the positions it would have alone: one packed pass
gives the logits of the ordinary forward. On most batches a random share of the video tokens is dropped, so that the
model never relies on the raster index of a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from holitom_repro.tiny.model import CELLS, GRID, normalise, project, tower_states
from holitom_repro.tiny.pretrain import DenseLabels, cell_looks
from holitom_repro.tiny.vocabulary import CHOICES, END, PROMPT_HEAD, PROMPT_TAIL, QUESTION_TYPES, WORD_ID
from holitom_repro.tiny.world import KINDS, make_clip

QUESTION_LENGTH = 11  # words of the longest question with its tail, and the answer
KIND_SHARES = {"actions": 0.2, "ego": 0.15, "long": 0.2, "general": 0.45}
MOST_DROPPED, DROP_CHANCE = 0.8, 0.6


@dataclass(frozen=True)
class Lessons:
    """pixels [B, T, 3, 32, 32]; looks [B * T, 16, 30]; scene [B * T]; words [B, Q, L] question, tail and answer;
    answer_at [B, Q] index of the last tail word; answer [B, Q] word id, -100 where nothing is asked; type [B, Q]."""

    pixels: Tensor
    looks: Tensor
    scene: Tensor
    words: Tensor
    answer_at: Tensor
    answer: Tensor
    type: Tensor


def draw_lessons(rng: np.random.Generator, clips: int, frames: int, questions: int) -> Lessons:
    pixels, looks, scene = [], [], []
    words = np.zeros((clips, questions, QUESTION_LENGTH), np.int64)
    at, answer, types = (
        np.zeros((clips, questions), np.int64),
        np.full((clips, questions), -100),
        np.full((clips, questions), -1),
    )
    for i in range(clips):
        kind = KINDS[rng.choice(len(KINDS), p=[KIND_SHARES[k] for k in KINDS])]
        clip = make_clip(rng, frames, kind)
        pixels.append(clip.frames)
        looks.append(cell_looks(clip.labels))
        scene.append(clip.scenes)
        for j, k in enumerate(rng.permutation(len(clip.questions))[:questions]):
            question = clip.questions[k]
            ids = [WORD_ID[w] for w in (*question.text.split(), *PROMPT_TAIL, question.answer)]
            words[i, j, : len(ids)] = ids
            at[i, j], answer[i, j], types[i, j] = len(ids) - 2, ids[-1], QUESTION_TYPES.index(question.type)
    looks_, scene_ = np.concatenate(looks).astype(np.float32), np.concatenate(scene).astype(np.int64)
    return Lessons(normalise(np.stack(pixels)), *map(torch.from_numpy, (looks_, scene_, words, at, answer, types)))


def random_kept(
    rng: np.random.Generator, clips: int, tokens: int, kept: int, shared: bool
) -> Int[Tensor, "clips kept"]:
    """Random token ids, ascending; ``shared``: the same ones in every clip (row newlines need one layout per batch)."""
    scores = rng.random((1 if shared else clips, tokens))
    return torch.from_numpy(np.sort(np.argsort(scores, 1)[:, :kept], 1)).expand(clips, -1)


def video_rows(
    tokens: Float[Tensor, "clips tokens dim"],
    kept: Int[Tensor, "clips kept"] | None,
    newline: Float[Tensor, " dim"],
    rows: bool,
) -> Float[Tensor, "clips rows dim"]:
    """The video as the language model sees it: kept tokens, then one newline, or one after every non-empty row."""
    clips, count, dim = tokens.shape
    if kept is None:
        kept = torch.arange(count, device=tokens.device).expand(clips, -1)
    kept = kept.to(tokens.device)
    chosen = tokens.gather(1, kept[..., None].expand(-1, -1, dim))
    line = newline.to(tokens.dtype)[None, None].expand(clips, 1, -1)
    if not rows:
        return torch.cat([chosen, line], 1)
    row = kept[0] // GRID
    ends = torch.cat([row[1:] != row[:-1], torch.ones(1, dtype=torch.bool, device=row.device)])
    place = torch.arange(len(row), device=row.device) + ends.cumsum(0) - ends.long()
    total = len(row) + int(ends.sum())
    index = torch.full((total,), len(row), device=row.device).scatter(
        0, place, torch.arange(len(row), device=row.device)
    )
    return torch.cat([chosen, line], 1)[:, index]


def answer_states(
    model, video: Float[Tensor, "clips rows dim"], words: Int[Tensor, "clips questions length"]
) -> Tensor:
    """Final states [B, Q, L, D] of every question block, in one packed pass (see ``packing``)."""
    lm = model.model.language_model
    clips, questions, length = words.shape
    device = video.device
    head = lm.embed_tokens(torch.tensor([WORD_ID[w] for w in PROMPT_HEAD], device=device)).to(video.dtype)
    x = torch.cat([head.expand(clips, -1, -1), video, lm.embed_tokens(words.flatten(1)).to(video.dtype)], 1)
    prefix = len(head) + video.shape[1]
    positions = torch.cat([torch.arange(prefix), prefix + torch.arange(length).repeat(questions)]).to(device)[None]
    states = lm(
        inputs_embeds=x, position_ids=positions, attention_mask=None, use_cache=False, prefix=prefix, block=length
    ).last_hidden_state
    return states[:, prefix:].unflatten(1, (questions, length))


def at_position(states: Tensor, index: Int[Tensor, "clips questions"]) -> Tensor:
    return states.gather(2, index[:, :, None, None].expand(-1, -1, 1, states.shape[-1]))[:, :, 0]


def answering_loss(
    model, dense: DenseLabels, batch: Lessons, rng: np.random.Generator, rows: bool, stressed: str | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Answer word + 0.1 end token + 0.3 dense labels (which keep training the projector); the tower is frozen. The
    answers to questions of the type ``stressed`` count four times."""
    clips, frames = batch.pixels.shape[:2]
    with torch.no_grad():
        features, _ = tower_states(model, batch.pixels.flatten(0, 1))
    tokens = project(model, features)
    labels = dense(tokens, batch.looks, batch.scene)
    tokens = tokens.float().reshape(clips, frames * CELLS, -1)
    kept = None
    if rng.random() < DROP_CHANCE:
        count = max(8, int(frames * CELLS * (1 - rng.random() * MOST_DROPPED)))
        kept = random_kept(rng, clips, frames * CELLS, count, shared=rows)
    states = answer_states(model, video_rows(tokens, kept, model.model.image_newline, rows), batch.words)
    logits = model.lm_head(at_position(states, batch.answer_at)).float()
    ending = model.lm_head(at_position(states, batch.answer_at + 1)).float()
    asked = batch.answer >= 0
    weight = asked.float()
    if stressed is not None:
        weight = weight * (1 + 3 * (batch.type == QUESTION_TYPES.index(stressed)))
    answer = F.cross_entropy(logits.flatten(0, 1), batch.answer.flatten(), ignore_index=-100, reduction="none")
    answer = (answer * weight.flatten()).sum() / weight.sum()
    end = F.cross_entropy(ending.flatten(0, 1), torch.where(asked, WORD_ID[END], -100).flatten(), ignore_index=-100)
    right = (logits.argmax(-1) == batch.answer)[asked].float().mean()
    return answer + 0.1 * end + 0.3 * labels, {"answer": answer.item(), "right": right.item()}


@torch.no_grad()
def accuracy(
    model, rng: np.random.Generator, clips: int, frames: int, rows: bool, keep: float = 1.0
) -> dict[str, float]:
    """Share of right answers over each type's own choices, on freshly drawn clips; "all" is over every question."""
    right, asked = np.zeros(len(QUESTION_TYPES)), np.zeros(len(QUESTION_TYPES))
    device = next(model.parameters()).device
    choices = [torch.tensor([WORD_ID[w] for w in CHOICES[t]], device=device) for t in QUESTION_TYPES]
    for start in range(0, clips, 16):
        n = min(16, clips - start)
        batch = draw_lessons(rng, n, frames, 16)
        tokens = project(model, tower_states(model, batch.pixels.flatten(0, 1).to(device))[0]).reshape(
            n, frames * CELLS, -1
        )
        kept = (
            random_kept(rng, n, frames * CELLS, max(1, int(keep * frames * CELLS)), shared=rows) if keep < 1 else None
        )
        states = answer_states(model, video_rows(tokens, kept, model.model.image_newline, rows), batch.words.to(device))
        logits = model.lm_head(at_position(states, batch.answer_at.to(device)))
        for k, options in enumerate(choices):
            chosen = batch.type == k
            if chosen.any():
                best = options[logits[chosen.to(device)][:, options].argmax(-1)].cpu()
                right[k] += (best == batch.answer[chosen]).sum().item()
                asked[k] += int(chosen.sum())
    scores = {t: float(right[k] / asked[k]) for k, t in enumerate(QUESTION_TYPES) if asked[k]}
    return scores | {"all": float(right.sum() / asked.sum())}
