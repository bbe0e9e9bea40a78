"""Rows of an attention map inside the decoder: a few queries against all keys, never the whole map."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from holitom.errors import UnsupportedModel


def rotation_of(attention: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """The rotary function of the library module that defines this attention; UnsupportedModel without one."""
    rotate = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    if rotate is None or not all(hasattr(attention, part) for part in ("q_proj", "k_proj", "head_dim", "scaling")):
        raise UnsupportedModel(
            f"the decoder's {type(attention).__name__} has no q_proj, k_proj, head_dim, scaling and rotary function",
            fix="use an outer stage only, or a Qwen2- or Llama-like decoder",
        )
    return rotate


def attention_rows(
    attention: nn.Module,
    hidden: Tensor,
    rotary: tuple[Tensor, Tensor],
    first: int,
    *,
    keys: Tensor | None = None,
    causal: bool = True,
) -> Tensor:
    """softmax(q k^T * scaling) of one sample's queries from ``first`` on: [heads, rows, keys] in float32.

    hidden [S, D]: the normed states that enter the attention; rotary: their cos and sin [S, width]; keys [kv heads,
    keys, width]: rotated ones of the whole sequence from the cache, of which hidden holds the last (None: made from
    hidden). causal: a query sees the keys up to its own.
    """
    rotate, where = rotation_of(attention), weights_on(attention.q_proj, hidden.device)
    hidden, cos, sin = (x.to(where) for x in (hidden, *rotary))
    query = _heads(attention, "q", hidden[first:])
    query = rotate(query, query, cos[first:][None], sin[first:][None])[0][0].float()
    if keys is None:
        keys = _heads(attention, "k", hidden)
        keys = rotate(keys, keys, cos[None], sin[None])[0][0]
    keys = keys.to(where).float()
    # query heads that share a key head are rows of one product, so that shared keys are not repeated
    shared = query.reshape(len(keys), -1, query.shape[-1]) @ keys.transpose(-1, -2)
    scores = shared.reshape(query.shape[0], query.shape[1], -1) * attention.scaling
    if causal:
        place = torch.arange(keys.shape[1], device=where)
        scores = scores.masked_fill(place > place[-query.shape[1] :, None], float("-inf"))
    return scores.softmax(-1)


def weights_on(module: nn.Module, otherwise: torch.device) -> torch.device:
    """Where the module computes; ``otherwise`` for weights that accelerate holds back until they are used."""
    weight = getattr(module, "weight", None)  # quantised layers have a method of this name
    device = weight.device if isinstance(weight, Tensor) else otherwise
    return otherwise if device.type == "meta" else device


def _heads(attention: nn.Module, part: str, x: Tensor) -> Tensor:
    """[S, D] -> [1, heads, S, width], with the per-head norm that Qwen3-like models have."""
    states = getattr(attention, f"{part}_proj")(x).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{part}_norm", None)
    return (norm(states) if norm is not None else states).transpose(0, 1)[None]
