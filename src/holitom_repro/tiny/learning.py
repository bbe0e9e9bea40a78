"""What the tiny models learn from: batches drawn from the world, and a loss for each of the two stages.

Stage 1: the tower and the projector learn from single frames with dense labels (which shape, colour, scene and place a
cell shows) and captions, by SigLIP's sigmoid loss on the mean of a frame's tokens. A tower without that loss is the
adverse control: from dense labels alone, attention goes to the background. Stage 2: the language model learns to answer
questions about clips. On most batches a random share of the video tokens is dropped, so that the model never relies on
the raster index of a token. No loss mentions attention or similarity. Shapes: F frames, B clips of T frames, Q
questions of L words, width D.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holitom_repro.tiny import vocabulary
from holitom_repro.tiny.model import CELLS, GRID, TEXT_DIM, VISION_DIM, normalise, project, tower_states
from holitom_repro.tiny.vocabulary import PROMPT_HEAD, PROMPT_TAIL, QUESTION_TYPES, VOCABULARY_SIZE, WORD_ID
from holitom_repro.tiny.world import KINDS, RADIUS, SIZE, add_noise, background, make_clip, stamp

LOOKS = 30  # five shapes (the needle is one of them) in six colours
QUESTION_LENGTH = 11  # words of the longest question with its tail, and the answer
KIND_SHARES = {"actions": 0.2, "ego": 0.15, "long": 0.2, "general": 0.45}
MOST_DROPPED, DROP_CHANCE = 0.8, 0.6
Head = Literal["mean", "none"]
Measured = tuple[Tensor, dict[str, float]]
"""A loss, and its parts for the progress bar."""


@dataclass(frozen=True)
class Batch:
    """Tensors that are moved together."""

    def to(self, device: str | torch.device):
        return type(self)(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Frames(Batch):
    """pixels [F, 3, 32, 32]; looks [F, 16, 30] multi-hot; scene [F]; captions [F, 5, 3] word ids (0: no object)."""

    pixels: Tensor
    looks: Tensor
    scene: Tensor
    captions: Tensor


def cell_looks(labels: np.ndarray) -> np.ndarray:
    """Label maps [F, 32, 32] -> [F, 16, 30] bool: at least 6 pixels of that shape and colour in the cell."""
    frames, side = len(labels), SIZE // GRID
    cells = labels.reshape(frames, GRID, side, GRID, side).transpose(0, 1, 3, 2, 4).reshape(frames * CELLS, -1)
    offset = np.arange(frames * CELLS)[:, None] * (LOOKS + 1)
    counts = np.bincount((cells.astype(np.int64) + offset).ravel(), minlength=frames * CELLS * (LOOKS + 1))
    return counts.reshape(frames, CELLS, LOOKS + 1)[..., 1:] >= 6


def draw_frames(rng: np.random.Generator, count: int) -> Frames:
    """Single frames with 0 to 4 shapes, sometimes a needle, anywhere on any scene."""
    pixels = np.empty((count, SIZE, SIZE, 3), np.float32)
    labels = np.zeros((count, SIZE, SIZE), np.uint8)
    scene = rng.integers(0, len(vocabulary.SCENES), count)
    captions = np.zeros((count, 5, 3), np.int64)
    for i in range(count):
        pixels[i] = background(int(scene[i]), rng)
        shapes = list(rng.permutation(len(vocabulary.SHAPES))[: rng.choice(5, p=[0.1, 0.3, 0.3, 0.2, 0.1])])
        if rng.random() < 0.3:
            shapes.append(len(vocabulary.SHAPES))
        for j, shape in enumerate(shapes):
            color, x, y = int(rng.integers(len(vocabulary.COLORS))), *map(int, rng.integers(RADIUS, SIZE - RADIUS, 2))
            stamp(pixels[i], labels[i], int(shape), color, x, y)
            place = vocabulary.PLACES[(x >= SIZE // 2) + 2 * (y >= SIZE // 2)]
            phrase = vocabulary.COLORS[color], (*vocabulary.SHAPES, vocabulary.NEEDLE)[shape], place
            captions[i, j] = [WORD_ID[word] for word in phrase]
    looks = torch.from_numpy(cell_looks(labels)).float()
    return Frames(normalise(add_noise(pixels, rng)), looks, torch.from_numpy(scene), torch.from_numpy(captions))


class DenseLabels(nn.Module):
    """The loss of plain dense labels on the pooled, projected tokens [F, 16, D]: looks [F, 16, 30], scene [F], and the
    place of cells that show an object."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = nn.Linear(TEXT_DIM, LOOKS)
        self.scene = nn.Linear(TEXT_DIM, len(vocabulary.SCENES))
        self.place = nn.Linear(TEXT_DIM, CELLS)
        nn.init.constant_(self.looks.bias, -4.0)

    def forward(self, tokens: Tensor, looks: Tensor, scene: Tensor) -> Tensor:
        x = F.layer_norm(tokens.float(), tokens.shape[-1:])
        shown = looks.any(-1).flatten().float()
        look = F.binary_cross_entropy_with_logits(self.looks(x), looks, reduction="none").sum(-1).mean()
        where = torch.arange(CELLS, device=x.device).repeat(len(x))
        place = F.cross_entropy(self.place(x).flatten(0, 1), where, reduction="none")
        place = (place * shown).sum() / shown.sum().clamp(min=1)
        return look + 0.3 * F.cross_entropy(self.scene(x).flatten(0, 1), scene.repeat_interleave(CELLS)) + 0.3 * place


class CaptionMatch(nn.Module):
    """SigLIP's sigmoid loss between frames, each the mean of its tower states [F, 64, D], and bags of phrases
    [F, 5, 3] with their scene [F]."""

    def __init__(self) -> None:
        super().__init__()
        d = VISION_DIM
        self.norm, self.image = nn.LayerNorm(d), nn.Linear(d, d, bias=False)
        self.words, self.scenes = nn.Embedding(VOCABULARY_SIZE, d), nn.Embedding(len(vocabulary.SCENES), d)
        self.phrase = nn.Sequential(nn.Linear(3 * d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.text = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, d))
        self.scale, self.bias = nn.Parameter(torch.tensor(math.log(10.0))), nn.Parameter(torch.tensor(-10.0))

    def forward(self, states: Tensor, captions: Tensor, scene: Tensor) -> Tensor:
        image = F.normalize(self.image(self.norm(states).mean(1)).float(), dim=-1)
        said = (captions[..., 0] > 0).float()[..., None]
        text = (self.phrase(self.words(captions).flatten(-2)) * said).sum(1) + self.scenes(scene)
        text = F.normalize(self.text(text).float(), dim=-1)
        digits = torch.tensor([VOCABULARY_SIZE**2, VOCABULARY_SIZE, 1], device=captions.device)
        phrases = (captions * digits).sum(-1).sort(1).values
        same = (phrases[:, None] == phrases[None]).all(-1) & (scene[:, None] == scene[None])
        sign = same.float() * 2 - 1
        return -F.logsigmoid(sign * (self.scale.exp() * image @ text.T + self.bias)).sum() / len(sign)


class VisionTraining(nn.Module):
    """Stage 1's loss over a batch of frames: dense labels + 0.3 caption matching (head "mean"), or the former alone."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.dense, self.match = DenseLabels(), CaptionMatch() if head == "mean" else None

    def forward(self, model, batch: Frames) -> Measured:
        features, last = tower_states(model, batch.pixels)
        dense = self.dense(project(model, features), batch.looks, batch.scene)
        if self.match is None:
            return dense, {"dense": dense.item()}
        match = self.match(last, batch.captions, batch.scene)
        return dense + 0.3 * match, {"dense": dense.item(), "match": match.item()}


@dataclass(frozen=True)
class Clips(Batch):
    """pixels [B, T, 3, 32, 32]; looks [B * T, 16, 30]; scene [B * T]; words [B, Q, L] question, tail and answer;
    answer_at [B, Q] index of the last tail word; answer [B, Q] word id, -100 where nothing is asked; type [B, Q]."""

    pixels: Tensor
    looks: Tensor
    scene: Tensor
    words: Tensor
    answer_at: Tensor
    answer: Tensor
    type: Tensor


def draw_clips(rng: np.random.Generator, clips: int, frames: int, questions: int) -> Clips:
    """Clips of every kind, each with up to so many of its questions, in random order."""
    drawn, asked = [], (clips, questions)
    words, at = np.zeros((*asked, QUESTION_LENGTH), np.int64), np.zeros(asked, np.int64)
    answer, types = np.full(asked, -100), np.full(asked, -1)
    for i in range(clips):
        kind = KINDS[rng.choice(len(KINDS), p=[KIND_SHARES[k] for k in KINDS])]
        drawn.append(make_clip(rng, frames, kind))
        for j, k in enumerate(rng.permutation(len(drawn[i].questions))[:questions]):
            question = drawn[i].questions[k]
            ids = [WORD_ID[w] for w in (*question.text.split(), *PROMPT_TAIL, question.answer)]
            words[i, j, : len(ids)] = ids
            at[i, j], answer[i, j], types[i, j] = len(ids) - 2, ids[-1], QUESTION_TYPES.index(question.type)
    looks = np.concatenate([cell_looks(clip.labels) for clip in drawn]).astype(np.float32)
    scene = np.concatenate([clip.scenes for clip in drawn]).astype(np.int64)
    pixels = normalise(np.stack([clip.frames for clip in drawn]))
    return Clips(pixels, *map(torch.from_numpy, (looks, scene, words, at, answer, types)))


def random_kept(rng: np.random.Generator, clips: int, tokens: int, kept: int, shared: bool) -> Tensor:
    """Random token ids [B, kept], ascending; ``shared``: the same ones in every clip (row newlines need one layout per
    batch)."""
    scores = rng.random((1 if shared else clips, tokens))
    return torch.from_numpy(np.sort(np.argsort(scores, 1)[:, :kept], 1)).expand(clips, -1)


def video_rows(tokens: Tensor, kept: Tensor | None, newline: Tensor, rows: bool) -> Tensor:
    """The video as the language model sees it: of tokens [B, T * 16, D] those kept [B, K], then one newline [D], or one
    after every row that is not empty."""
    clips, count, dim = tokens.shape
    kept = torch.arange(count).expand(clips, -1) if kept is None else kept
    kept = kept.to(tokens.device)
    chosen = tokens.gather(1, kept[..., None].expand(-1, -1, dim))
    chosen = torch.cat([chosen, newline.to(tokens.dtype)[None, None].expand(clips, 1, -1)], 1)
    if not rows:
        return chosen
    row = kept[0] // GRID
    ends = torch.cat([row[1:] != row[:-1], torch.ones(1, dtype=torch.bool, device=row.device)])
    number = torch.arange(len(row), device=row.device)
    index = torch.full((len(row) + int(ends.sum()),), len(row), device=row.device)
    return chosen[:, index.scatter(0, number + ends.cumsum(0) - ends.long(), number)]


def question_states(model, video: Tensor, words: Tensor) -> Tensor:
    """Final states [B, Q, L, D] of questions [B, Q, L] in one packed pass: each sees the prompt head, the video
    [B, R, D] and itself, at the positions it would have alone, so that the logits are those of the plain forward."""
    lm = model.model.language_model
    clips, questions, length = words.shape
    head = lm.embed_tokens(torch.tensor([WORD_ID[w] for w in PROMPT_HEAD], device=video.device)).to(video.dtype)
    x = torch.cat([head.expand(clips, -1, -1), video, lm.embed_tokens(words.flatten(1)).to(video.dtype)], 1)
    prefix = len(head) + video.shape[1]
    index = torch.arange(x.shape[1], device=video.device)
    question = torch.where(index < prefix, -1, (index - prefix) // length)
    seen = (index <= index[:, None]) & ((question == -1) | (question == question[:, None]))
    places = torch.where(index < prefix, index, prefix + (index - prefix) % length)[None]
    states = lm(inputs_embeds=x, attention_mask=seen[None, None], position_ids=places, use_cache=False)
    return states.last_hidden_state[:, prefix:].unflatten(1, (questions, length))


def at(states: Tensor, index: Tensor) -> Tensor:
    """Of states [B, Q, L, D] those of the words ``index`` [B, Q]."""
    return states.gather(2, index[:, :, None, None].expand(-1, -1, 1, states.shape[-1]))[:, :, 0]


def answering_loss(
    model, dense: DenseLabels, batch: Clips, rng: np.random.Generator, rows: bool, stressed: str | None = None
) -> Measured:
    """Stage 2's loss: answer word + 0.1 end token + 0.3 dense labels (which keep training the projector); the tower is
    frozen. The answers to questions of the type ``stressed`` count four times."""
    clips, frames = batch.pixels.shape[:2]
    with torch.no_grad():
        features, _ = tower_states(model, batch.pixels.flatten(0, 1))
    tokens = project(model, features)
    labels = dense(tokens, batch.looks, batch.scene)
    tokens, kept = tokens.float().reshape(clips, frames * CELLS, -1), None
    if rng.random() < DROP_CHANCE:
        count = max(8, int(frames * CELLS * (1 - rng.random() * MOST_DROPPED)))
        kept = random_kept(rng, clips, frames * CELLS, count, shared=rows)
    states = question_states(model, video_rows(tokens, kept, model.model.image_newline, rows), batch.words)
    logits = model.lm_head(at(states, batch.answer_at)).float()
    ending = model.lm_head(at(states, batch.answer_at + 1)).float()
    asked = batch.answer >= 0
    weight = asked.float()
    if stressed is not None:
        weight = weight * (1 + 3 * (batch.type == QUESTION_TYPES.index(stressed)))
    answer = F.cross_entropy(logits.flatten(0, 1), batch.answer.flatten(), ignore_index=-100, reduction="none")
    answer = (answer * weight.flatten()).sum() / weight.sum()
    last = torch.where(asked, WORD_ID[vocabulary.END], -100)
    end = F.cross_entropy(ending.flatten(0, 1), last.flatten(), ignore_index=-100)
    right = (logits.argmax(-1) == batch.answer)[asked].float().mean()
    return answer + 0.1 * end + 0.3 * labels, {"answer": answer.item(), "right": right.item()}


@torch.no_grad()
def accuracy(model, rng: np.random.Generator, clips: int, frames: int, rows: bool, keep=1.0) -> dict[str, float]:
    """Share of right answers over each type's own choices, on freshly drawn clips; "all" is over every question."""
    right, asked = np.zeros(len(QUESTION_TYPES)), np.zeros(len(QUESTION_TYPES))
    device, count = next(model.parameters()).device, frames * CELLS
    for start in range(0, clips, 16):
        batch = draw_clips(rng, min(16, clips - start), frames, 16)
        few = random_kept(rng, len(batch.words), count, max(1, int(keep * count)), shared=rows) if keep < 1 else None
        pixels, words, answer_at = (x.to(device) for x in (batch.pixels, batch.words, batch.answer_at))
        tokens = project(model, tower_states(model, pixels.flatten(0, 1))[0]).reshape(len(words), count, -1)
        states = question_states(model, video_rows(tokens, few, model.model.image_newline, rows), words)
        logits = model.lm_head(at(states, answer_at)).cpu()
        for k, kind in enumerate(QUESTION_TYPES):
            options, chosen = torch.tensor([WORD_ID[w] for w in vocabulary.CHOICES[kind]]), batch.type == k
            best = options[logits[chosen][:, options].argmax(-1)]
            right[k] += (best == batch.answer[chosen]).sum().item()
            asked[k] += int(chosen.sum())
    scores = {kind: float(right[k] / asked[k]) for k, kind in enumerate(QUESTION_TYPES) if asked[k]}
    return scores | {"all": float(right.sum() / asked.sum())}
