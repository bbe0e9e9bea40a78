"""How much a prefill computes: as the papers count it, and with the true shapes.

The papers' formula and the exact count differ on purpose; docstrings say in what. Terms: n tokens, d hidden size, m
intermediate size, one multiply-accumulate (MAC) = 2 FLOPs. Only matrix products and convolutions are counted (norms,
rotary embedding, softmax and activations are below 1 % at these sizes), as torch's FlopCounterMode does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holitom.errors import BadUsage

Count = int | float
"""A number or share of tokens: exact, or a mean over videos."""


def paper_flops(tokens_per_layer: Sequence[Count], hidden_size: int, intermediate_size: int) -> float:
    """Prefill cost as the papers print it under "FLOPs": sum over layers of 4 n d^2 + 2 n^2 d + 2 n d m.

    tokens_per_layer: visual tokens entering each layer, text and newline tokens excluded. These are
    multiply-accumulates, not FLOPs; k and v projections are counted at full width although the models share them
    among heads (GQA), two of the three SwiGLU matrices are counted, the score matrix is not halved for causality,
    and the vision tower, the projector and the reduction itself are left out. Source: HoliTom's protocol as
    EarlyTom (CVPR 2026) quotes it; it yields every FLOPs cell of HoliTom's Tables 1 and 2 to the printed digit.
    """
    d, m = hidden_size, intermediate_size
    return float(sum(4 * n * d**2 + 2 * n**2 * d + 2 * n * d * m for n in tokens_per_layer))


def exact_flops(
    tokens_per_layer: Sequence[Count],
    hidden_size: int,
    intermediate_size: int,
    *,
    num_heads: int,
    num_key_value_heads: int,
    head_dim: int | None = None,
    text_tokens: int = 0,
    vocab_size: int = 0,
    causal: bool = True,
) -> float:
    """Prefill FLOPs of a Qwen2-like decoder with its true shapes, 2 per multiply-accumulate, batch 1.

    tokens_per_layer: visual tokens entering each layer; text_tokens: every other prompt token (words, newlines),
    present in all layers. Counted: q and o projections at full width, k and v at num_key_value_heads, scores and
    weighted sum of every query head, gate, up and down matrices, and lm_head for the last position (vocab_size 0
    leaves it out). causal=True counts the n (n + 1) / 2 pairs that causality needs; False counts the full n x n
    matrix, which is what a kernel without a causal shortcut, and torch's counter, does.
    """
    d, m, each = hidden_size, intermediate_size, head_dim or hidden_size // num_heads
    wide, narrow = num_heads * each, num_key_value_heads * each
    macs = float(d * vocab_size)
    for visual in tokens_per_layer:
        n = visual + text_tokens
        pairs = n * (n + 1) / 2 if causal else n * n
        macs += 2 * n * d * wide + 2 * n * d * narrow + 2 * pairs * wide + 3 * n * d * m
    return 2.0 * macs


@dataclass(frozen=True)
class LLMShape:
    """The sizes of a language model that its cost depends on."""

    name: str
    hidden_size: int
    intermediate_size: int
    layers: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int = 0

    @classmethod
    def from_config(cls, config: Any) -> LLMShape:
        """From a transformers config: of a language model, or of a model that has one as its ``text_config``."""
        c = getattr(config, "text_config", config)
        return cls(
            name=c.model_type,
            hidden_size=c.hidden_size,
            intermediate_size=c.intermediate_size,
            layers=c.num_hidden_layers,
            num_heads=c.num_attention_heads,
            num_key_value_heads=c.num_key_value_heads or c.num_attention_heads,
            head_dim=getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
            vocab_size=c.vocab_size,
        )

    def paper(self, tokens_per_layer: Sequence[Count]) -> float:
        """``paper_flops`` of this model; BadUsage unless there is one entry per layer."""
        return paper_flops(_checked(tokens_per_layer, self.layers), self.hidden_size, self.intermediate_size)

    def exact(
        self, tokens_per_layer: Sequence[Count], text_tokens: int = 0, *, causal: bool = True, lm_head: bool = True
    ) -> float:
        """``exact_flops`` of this model; BadUsage unless there is one entry per layer."""
        names = ("hidden_size", "intermediate_size", "num_heads", "num_key_value_heads", "head_dim")
        sizes = {name: getattr(self, name) for name in names} | {"vocab_size": self.vocab_size if lm_head else 0}
        return exact_flops(_checked(tokens_per_layer, self.layers), text_tokens=text_tokens, causal=causal, **sizes)


def _checked(counts: Sequence[Count], layers: int) -> Sequence[Count]:
    if len(counts) != layers:
        what = f"the model has {layers} layers, but {len(counts)} counts were given"
        raise BadUsage(what, fix="give one count per layer, for instance tokens_per_layer(n, layers)")
    return counts


_QWEN2_7B = (3584, 18944, 28, 28, 4, 128, 152064)
LLM_SHAPES: Mapping[str, LLMShape] = {
    "ov-7b": LLMShape("ov-7b", *_QWEN2_7B),
    "video-7b": LLMShape("video-7b", *_QWEN2_7B),
    "ov-72b": LLMShape("ov-72b", 8192, 29568, 80, 64, 8, 128, 152064),
    "ov-0.5b": LLMShape("ov-0.5b", 896, 4864, 24, 14, 2, 64, 151936),
}
"""Qwen2-7B, -72B and -0.5B (their published configs): the language models of LLaVA-OneVision and LLaVA-Video."""


@dataclass(frozen=True)
class VisionShape:
    """The sizes of a SigLIP-like tower: plain (not gated) MLP, full attention inside each frame, no class token. Every
    layer counts, for every layer runs, also where the features are taken one layer earlier."""

    name: str
    hidden_size: int
    intermediate_size: int
    layers: int
    patches: int
    patch_size: int
    channels: int = 3


SIGLIP_384 = VisionShape("siglip-so400m-384", 1152, 4304, 26, 729, 14)
"""The tower of all LLaVA-OneVision and LLaVA-Video models: 26 of its 27 layers are kept, the pooling head is not."""


def vision_flops(frames: int | Sequence[int], shape: VisionShape = SIGLIP_384) -> float:
    """FLOPs (2 per MAC) of the tower on ``frames`` frames: patch embedding, then per layer 4 n d^2 + 2 n^2 d + 2 n
    d m with n the patches of ONE frame, because frames do not attend to each other. With a tower stage give the frames
    that enter each layer (``SampleStats.tower_frames``); its similarities are left out, being below 0.01 %."""
    counts = _checked(frames if isinstance(frames, Sequence) else [frames] * shape.layers, shape.layers)
    n, d, m = shape.patches, shape.hidden_size, shape.intermediate_size
    embed = n * d * shape.channels * shape.patch_size**2
    return 2.0 * (counts[0] * embed + sum(counts) * (4 * n * d**2 + 2 * n**2 * d + 2 * n * d * m))


def projector_flops(frames: int, hidden_size: int, shape: VisionShape = SIGLIP_384) -> float:
    """FLOPs (2 per MAC) of the two-layer projector, which LLaVA-OneVision applies to every patch, before pooling."""
    return 2.0 * frames * shape.patches * (shape.hidden_size * hidden_size + hidden_size**2)


def tokens_per_layer(n: int, layers: int, stages: Sequence[tuple[int, Count]] = ()) -> list[int]:
    """Visual tokens entering each layer: ``n`` at first, floor(n * share) from each stage's layer on.

    stages: (0-based first layer that sees the shorter sequence, share of the original n), layers ascending. FastV:
    [(2, .2)]; PyramidDrop: [(2, .5), (7, .25), (14, .125)]; HoliTom: [(18, .5)]. BadUsage for what does not fit.
    """
    firsts = [first for first, _ in stages]
    ascending = firsts == sorted(set(firsts)) and set(firsts) <= set(range(layers))
    if not ascending or any(not 0 <= share <= 1 for _, share in stages):
        fix = f"give ascending layers from 0 to {layers - 1}, each with the share that is kept, 0 to 1"
        raise BadUsage(f"the stages {list(stages)} do not fit", fix=fix)
    counts = [n] * layers
    for first, share in stages:
        counts[first:] = [math.floor(n * share + 1e-9)] * (layers - first)
    return counts
