"""What differs between the releases of transformers that the decoder's hooks meet: caches and masks.

Since 5.16 a mask can be made for one layer. The original llava package needs 4.51, where a cache has two lists, layers
call it ``past_key_value``, and masks are made here.
"""

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

DynamicLayer: Any = getattr(cache_utils, "DynamicLayer", object)


def cache_of(kwargs: Mapping[str, Any]) -> Any:
    """The KV cache among the arguments of a layer or an attention, None without one."""
    return kwargs.get("past_key_values", kwargs.get("past_key_value"))


def keys_of(cache: Any, index: int) -> Tensor:
    """The keys [B, kv heads, columns, width] of one layer."""
    return cache.layers[index].keys if hasattr(cache, "layers") else cache.key_cache[index]


def keep_columns(cache: Any, index: int, pick: Any) -> None:
    """Replace the keys and values of one layer by ``pick`` of them."""
    if hasattr(cache, "layers"):
        layer = cache.layers[index]
        layer.keys, layer.values = pick(layer.keys), pick(layer.values)
    else:
        cache.key_cache[index], cache.value_cache[index] = pick(cache.key_cache[index]), pick(cache.value_cache[index])


def causal_mask(config: Any, hidden: Tensor, real: Tensor | None, cache: Any, index: int) -> Any:
    """A causal mask in the form that the model's attention implementation wants; real [B, columns]: what may be attended
    to (None: everything); cache: None in prefill."""
    real = None if real is None else real.to(hidden.device)
    if create_causal_mask is not None:
        return create_causal_mask(
            config=config, inputs_embeds=hidden, attention_mask=real, past_key_values=cache, layer_idx=index
        )
    queries, attention = hidden.shape[1], config._attn_implementation
    if attention == "flash_attention_2" or (
        real is None and (queries == 1 or (cache is None and attention == "sdpa"))
    ):
        return real
    columns = queries if cache is None else keys_of(cache, index).shape[2] + queries
    place = torch.arange(columns, device=hidden.device)
    allowed = (place <= place[columns - queries :, None])[None]
    return _additive(allowed if real is None else allowed & real.bool()[:, None], hidden)


def bidirectional_mask(config: Any, hidden: Tensor, real: Tensor | None) -> Any:
    """A mask without order; None where there is no padding either."""
    real = None if real is None else real.to(hidden.device)
    if create_bidirectional_mask is not None:
        return create_bidirectional_mask(config, hidden, real)
    if real is None or config._attn_implementation == "flash_attention_2":
        return real
    return _additive(real.bool()[:, None].expand(-1, hidden.shape[1], -1), hidden)


def _additive(allowed: Tensor, hidden: Tensor) -> Tensor:
    """[B, queries, columns] bool -> [B, 1, queries, columns], 0 or the lowest number; rows of padding see all."""
    allowed = allowed | ~allowed.any(-1, keepdim=True)
    empty = torch.zeros(allowed.shape, dtype=hidden.dtype, device=hidden.device)
    return empty.masked_fill(~allowed, torch.finfo(hidden.dtype).min)[:, None]
