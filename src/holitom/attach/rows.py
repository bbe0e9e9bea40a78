"""What the decoder's hooks read and give: rows of an attention map, attention masks, and the cache."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import cache_utils

from holitom.errors import BadUsage, UnsupportedModel
from holitom.models import device_of


def rotation_of(attention: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """The rotary function of the library module that defines this attention; UnsupportedModel without one."""
    rotate = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    if rotate is None or not all(hasattr(attention, part) for part in ("q_proj", "k_proj", "head_dim", "scaling")):
        what = f"the decoder's {type(attention).__name__} has no q_proj, k_proj, head_dim, scaling and rotary function"
        raise UnsupportedModel(what, fix="use an outer stage only, or a Qwen2- or Llama-like decoder")
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
    rotate, where = rotation_of(attention), device_of(attention.q_proj, hidden)
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


def _heads(attention: nn.Module, part: str, x: Tensor) -> Tensor:
    """[S, D] -> [1, heads, S, width], with the per-head norm that Qwen3-like models have."""
    states = getattr(attention, f"{part}_proj")(x).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{part}_norm", None)
    return (norm(states) if norm is not None else states).transpose(0, 1)[None]


def attention_mask(config: Any, hidden: Tensor, real: Tensor, causal: bool = True) -> Tensor | None:
    """What eager, SDPA and flash attention take for queries hidden [B, Q, D] that are the last of the columns; real
    [B, columns], on the host: what may be attended to. None where the attention needs no mask."""
    kind, (queries, columns), whole = config._attn_implementation, (hidden.shape[1], real.shape[1]), bool(real.all())
    bare = not causal or queries == 1 or (kind == "sdpa" and queries == columns)
    if whole and (bare or kind.startswith("flash_attention")):
        return None
    real = real.to(hidden.device)
    if kind.startswith("flash_attention"):
        return real
    place = torch.arange(columns, device=hidden.device)
    last = place[columns - queries :] if causal else place[-1:].expand(queries)
    allowed = (place <= last[:, None]) & real[:, None]
    allowed = (allowed | ~allowed.any(-1, keepdim=True))[:, None]  # rows of padding see all: none may be empty
    if kind == "sdpa":
        return allowed
    return torch.zeros_like(allowed, dtype=hidden.dtype).masked_fill(~allowed, torch.finfo(hidden.dtype).min)


def cache_of(kwargs: Mapping[str, Any]) -> Any:
    """The KV cache among the arguments of a call, None without one. Its name is another in transformers from 5.24 on,
    and in layers of 4.51, which the original llava package needs."""
    found = map(kwargs.get, ("cache", "past_key_values", "past_key_value"))
    return next((cache for cache in found if cache is not None), None)


def keys_of(cache: Any, index: int) -> Tensor:
    """The keys [B, kv heads, columns, width] of one layer; transformers 4.51 keeps them in a list."""
    return cache.layers[index].keys if hasattr(cache, "layers") else cache.key_cache[index]


class ReducedCache(cache_utils.DynamicCache):
    """What a cache becomes when a reduced ``prompt`` enters it: outside of its block, the model would misread it."""

    prompt: Any

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.prompt.ended():
            what = "this cache holds a prompt that was reduced in a reduce_tokens block, and the block has ended"
            raise BadUsage(what, fix="go on inside the block, or begin with a new cache")
        return super().update(*args, **kwargs)


def check_cache(cache: Any, *, inside: bool) -> None:
    """Only plain caches grow with a reduced prompt; stages inside the decoder also read and shorten them."""
    kinds = {type(layer).__name__ for layer in getattr(cache, "layers", ())}
    plain = {"DynamicLayer"} if inside else {"DynamicLayer", "DynamicSlidingWindowLayer"}
    dynamic = type(cache) in (cache_utils.DynamicCache, ReducedCache) and not getattr(cache, "offloading", False)
    if cache is not None and not (dynamic and kinds <= plain):
        what = f"a {type(cache).__name__} of {', '.join(sorted(kinds)) or 'no'} layers, fixed, offloaded or quantised"
        raise UnsupportedModel(what, fix="use DynamicCache() without options")
