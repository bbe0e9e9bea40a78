"""Building blocks of the seam tests: a tiny model, prompts, and stages that do exactly what a test needs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config, SiglipVisionConfig

from holitom.types import TokenSet

IMAGE, VIDEO, PAD = 298, 299, 0
CELLS, FRAMES, LAYERS = 16, 4, 5


def tiny_model(attention="sdpa", text=None, dtype=torch.float32, **extra):
    """4 x 4 cells per frame from 8 x 8 patches, 5 decoder layers; weights of deviation 0.15 instead of 0.02."""
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=112, patch_size=14,
        vision_use_head=False,
    )  # fmt: skip
    text = text or Qwen2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=300, max_position_embeddings=2048, pad_token_id=PAD, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, video_token_index=VIDEO,
        image_grid_pinpoints=[[112, 112]], tie_word_embeddings=False, **extra,
    )  # fmt: skip
    config._attn_implementation = attention
    generator = torch.Generator().manual_seed(0)
    model = LlavaOnevisionForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if "norm" not in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.15)
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.to(dtype).eval()


def pixels(samples=1, frames=FRAMES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scene = torch.randn(samples, 1, 3, 112, 112, generator=generator)
    return scene + 0.4 * torch.randn(samples, frames, 3, 112, 112, generator=generator)


def prompt(before, after, placeholders=FRAMES * CELLS + 1, seed=0):
    """Words, one run of video ids, words: [S]."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(3, 290, (before + after,), generator=generator)
    return torch.cat([words[:before], torch.full((placeholders,), VIDEO), words[before:]])


def batch(*rows):
    """Left-padded input_ids and attention_mask."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width, dtype=torch.long)
    for b, row in enumerate(rows):
        ids[b, width - len(row) :] = row
        mask[b, width - len(row) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


@dataclass(frozen=True)
class KeepEvery:
    """Keeps the visual tokens whose index, plus a number that depends on the video, is divisible by ``step``."""

    step: int = 3
    positions: str = "contiguous"
    requires: frozenset = frozenset()
    fidelity: str = "control"

    def __call__(self, video, budget):
        flat = torch.arange(video.frames * video.cells, device=video.tokens.device)
        offset = int(video.tokens[0, 0, 0] > 0)
        flat = flat[(flat + offset) % (self.step + offset) == 0]
        return TokenSet(video.tokens.flatten(0, 1)[flat], flat // video.cells, flat % video.cells)


@dataclass(frozen=True)
class All(KeepEvery):
    """The identity, through the whole machinery."""

    def __call__(self, video, budget):
        flat = torch.arange(video.frames * video.cells, device=video.tokens.device)
        return TokenSet(video.tokens.flatten(0, 1), flat // video.cells, flat % video.cells)


@dataclass(frozen=True)
class Drop:
    """Drops the visual tokens of lowest score, keeping ``round(share * alive)``; remembers what it saw."""

    layer: int
    share: float = 0.5
    score: str = "prev"
    query: str = "last"
    positions: str = "original"
    prune_past: bool = False
    causal: bool = True
    include_newlines: bool = False
    fidelity: str = "control"
    seen: list = field(default_factory=list, compare=False)

    def __call__(self, hidden, score, visual, n0):
        rank = score.amax((0, 1)) if self.query == "text" else score
        count = round(self.share * len(visual))
        kept = visual[rank[visual].topk(count).indices]
        keep = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
        keep[visual] = False
        keep[kept] = True
        ids = keep.nonzero().flatten()
        self.seen.append({"score": score, "visual": visual, "n0": n0, "keep": ids, "hidden": hidden})
        return ids, hidden[ids]
