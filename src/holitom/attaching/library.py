"""What differs between the releases of transformers that the decoder's hooks meet: caches, masks, and their names.

Since 5.x a cache has ``layers`` and masks come from ``masking_utils``. The original llava package needs 4.51, where a
cache has two lists, layers call it ``past_key_value``, and masks are made here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import cache_utils

try:
    from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
except ImportError:
    create_bidirectional_mask = create_causal_mask = None


class _NoLayer:
    """Stands for a class that this release does not have; nothing is an instance of it."""


DynamicLayer: Any = getattr(cache_utils, "DynamicLayer", _NoLayer)


def cache_of(kwargs: Mapping[str, Any]) -> Any:
    """The KV cache among the arguments of a layer or an attention, None without one."""
    return kwargs.get("past_key_values", kwargs.get("past_key_value"))


def held(cache: Any, index: int) -> tuple[Tensor, Tensor]:
    """Keys and values [B, kv heads, columns, width] of one layer."""
    if hasattr(cache, "layers"):
        return cache.layers[index].keys, cache.layers[index].values
    return cache.key_cache[index], cache.value_cache[index]


def set_held(cache: Any, index: int, keys: Tensor, values: Tensor) -> None:
    """Replace what one layer holds."""
    if hasattr(cache, "layers"):
        cache.layers[index].keys, cache.layers[index].values = keys, values
    else:
        cache.key_cache[index], cache.value_cache[index] = keys, values


def causal_mask(config: Any, hidden: Tensor, real: Tensor | None, cache: Any, index: int | None) -> Any:
    """A causal mask in the form the model's attention implementation wants; real [B, columns]: what may be attended to,
    None where everything may; cache None: prefill."""
    if create_causal_mask is not None:
        return create_causal_mask(
            config=config, inputs_embeds=hidden, attention_mask=real, past_key_values=cache, layer_idx=index
        )
    queries = hidden.shape[1]
    if config._attn_implementation == "flash_attention_2" or (
        real is None and (queries == 1 or (cache is None and config._attn_implementation == "sdpa"))
    ):
        return real
    columns = queries if cache is None else held(cache, index)[0].shape[2] + queries
    place = torch.arange(columns, device=hidden.device)
    allowed = (place <= place[columns - queries :, None])[None]
    if real is not None:
        allowed = allowed & real.bool().to(hidden.device)[:, None]
    return _additive(allowed, hidden)


def bidirectional_mask(config: Any, hidden: Tensor, real: Tensor | None) -> Any:
    """A mask without order; None where there is no padding either."""
    if create_bidirectional_mask is not None:
        return create_bidirectional_mask(config, hidden, real)
    if real is None or config._attn_implementation == "flash_attention_2":
        return real
    return _additive(real.bool()[:, None].expand(-1, hidden.shape[1], -1), hidden)


def _additive(allowed: Tensor, hidden: Tensor) -> Tensor:
    """[B, queries, columns] bool -> [B, 1, queries, columns], 0 or the lowest number; rows without any column (of
    padding) see all."""
    allowed = allowed | ~allowed.any(-1, keepdim=True)
    lowest = torch.finfo(hidden.dtype).min
    return torch.zeros(allowed.shape, dtype=hidden.dtype, device=hidden.device).masked_fill(~allowed, lowest)[:, None]
