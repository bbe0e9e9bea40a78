"""Attention for a prefix (prompt head and video) followed by question blocks that do not see one another.

The prefix attends causally to itself; a block attends to the whole prefix and causally to itself. Doing the two parts
apart never builds the mask of the whole sequence and is about twice as fast as masked attention on a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "question_blocks"


def block_attention(
    module, query: Tensor, key: Tensor, value: Tensor, attention_mask, scaling: float, prefix: int, block: int, **_
) -> tuple[Tensor, None]:
    """query [B, H, S, d], key and value [B, G, S, d] -> [B, S, H, d]; S = prefix + blocks * block."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    head = F.scaled_dot_product_attention(
        query[:, :, :prefix], key[:, :, :prefix], value[:, :, :prefix], is_causal=True, scale=scaling
    )
    asked = query[:, :, prefix:].unflatten(2, (-1, block))
    blocks = asked.shape[2]
    to_prefix = (query[:, :, prefix:] @ key[:, :, :prefix].mT).unflatten(2, (blocks, block))
    own = asked @ key[:, :, prefix:].unflatten(2, (blocks, block)).mT
    later = torch.ones(block, block, dtype=torch.bool, device=query.device).triu(1)
    scores = torch.cat([to_prefix, own.masked_fill(later, float("-inf"))], -1).mul(scaling)
    weights = scores.float().softmax(-1).to(query.dtype)
    tail = (weights[..., :prefix].flatten(2, 3) @ value[:, :, :prefix]).unflatten(2, (blocks, block))
    tail = tail + weights[..., prefix:] @ value[:, :, prefix:].unflatten(2, (blocks, block))
    return torch.cat([head, tail.flatten(2, 3)], 2).transpose(1, 2).contiguous(), None


def use_block_attention(language_model) -> None:
    """Let this language model run on packed question blocks, and on nothing else, until another one is set."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, block_attention)
    language_model.set_attn_implementation(NAME)
