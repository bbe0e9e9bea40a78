"""Rows of an attention map inside the decoder: a few queries against all keys, never the whole S x S map."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from holitom.errors import UnsupportedModel


def rotation_of(attention: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """The rotary function of the library module that defines this attention class."""
    name = type(attention).__module__
    rotate = getattr(sys.modules[name], "apply_rotary_pos_emb", None)
    if rotate is None or not all(hasattr(attention, part) for part in ("q_proj", "k_proj", "head_dim", "scaling")):
        raise UnsupportedModel(
            f"the decoder's {type(attention).__name__} has no q_proj, k_proj, head_dim, scaling and rotary function",
            fix="use an outer stage only, or a Qwen2- or Llama-like decoder",
        )
    return rotate


def attention_rows(
    attention: nn.Module,
    hidden: Float[Tensor, "seq dim"],
    cos: Float[Tensor, "seq width"],
    sin: Float[Tensor, "seq width"],
    rows: Int[Tensor, " rows"],
    *,
    keys: Float[Tensor, "kv keys width"] | None = None,
    causal: bool = True,
    seen: Bool[Tensor, " keys"] | None = None,
) -> Float[Tensor, "heads rows keys"]:
    """softmax(q k^T * scaling) for some query rows of one sample, in float32.

    hidden: the normed states that enter the attention; cos, sin: their rotary embedding; rows: the queries, as ids into
    hidden; keys: rotated keys of the whole sequence from the cache, of which hidden holds the last ones (None: computed
    here from hidden). causal: query row i of hidden sees the keys up to its own. seen: keys that may be attended to.
    """
    rotate = rotation_of(attention)
    where = attention.q_proj.weight.device
    where = hidden.device if where.type == "meta" else where  # weights that accelerate holds back until they are used
    hidden, cos, sin, rows = (t.to(where) for t in (hidden, cos, sin, rows))
    query = _heads(attention, "q", hidden[rows])
    query = rotate(query, query, cos[rows][None], sin[rows][None])[0]
    if keys is None:
        keys = _heads(attention, "k", hidden)
        keys = rotate(keys, keys, cos[None], sin[None])[0][0]
    keys = keys.to(where).float()
    # query heads that share a key head are rows of one product, so that shared keys are not repeated
    shared = query[0].float().reshape(len(keys), -1, query.shape[-1]) @ keys.transpose(-1, -2)
    scores = shared.reshape(query.shape[1], len(rows), -1) * attention.scaling
    if causal:
        last_seen = rows + (keys.shape[1] - len(hidden))
        ahead = torch.arange(keys.shape[1], device=where) > last_seen[:, None]
        scores = scores.masked_fill(ahead, float("-inf"))
    if seen is not None:
        scores = scores.masked_fill(~seen.to(where), float("-inf"))
    return scores.softmax(-1)


def _heads(attention: nn.Module, part: str, x: Tensor) -> Tensor:
    """[S, D] -> [1, heads, S, width], with the per-head norm that Qwen3-like models have."""
    states = getattr(attention, f"{part}_proj")(x).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{part}_norm", None)
    return (norm(states) if norm is not None else states).transpose(0, 1)[None]
