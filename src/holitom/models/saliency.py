"""What a vision tower says about a video beyond its features: the attention each patch receives, and its keys.

Queries and keys are taken from what the projections of one attention put out while the tower runs: the tower computes
nothing twice, runs whatever attention kernel it likes, and may lie on another device, in memory or on disk."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 2**25
"""Numbers of one float32 block of attention maps [frames, heads, queries, patches]: bounds the memory to 128 MB."""


@contextmanager
def probing(attention: nn.Module | None, *names: str) -> Iterator[dict[str, Any]]:
    """While the block lasts: what these children of an attention put out, by name, and the arguments that the attention
    was called with; nothing without an attention. A compiled tower runs uncompiled meanwhile, because compiled code
    calls no hooks. The hooks are removed when the block ends, also after an exception."""
    seen: dict[str, Any] = {}
    if attention is None:
        yield seen
        return
    thread = threading.get_ident()

    def keep(values: dict[str, Any]) -> None:
        if threading.get_ident() == thread:  # another may call the tower meanwhile
            seen.update(values)

    def keeping(name: str) -> Any:
        return lambda module, args, output: keep({name: output})

    handles = [getattr(attention, name).register_forward_hook(keeping(name)) for name in names]
    handles.append(attention.register_forward_pre_hook(lambda _, __, kwargs: keep(kwargs), with_kwargs=True))
    try:
        with torch.compiler.set_stance("force_eager"):
            yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def received_attention(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """query [F, Q, heads, width], key [F, P, heads, width] -> [F, P]: the mean over heads and queries of
    softmax(scale q k^T). Every row sums to 1. In float32, whatever comes in, and under autocast too.

    With all patches as queries it is the column mean of the attention map that HoliTom's release writes out
    (siglip_encoder.py); here at most BLOCK numbers of it are held at a time.
    """
    frames, queries, heads, _ = query.shape
    patches = key.shape[1]
    total = key.new_zeros(frames, patches, dtype=torch.float32)
    step = max(1, BLOCK // (heads * queries * patches))
    rows = max(1, BLOCK // (heads * patches))  # where a single frame is larger than a block
    with torch.autocast(query.device.type, enabled=False):
        for first in range(0, frames, step):
            q = query[first : first + step].transpose(1, 2).float() * scale
            k = key[first : first + step].permute(0, 2, 3, 1).float()
            total[first : first + step] = sum((part @ k).softmax(-1).sum((1, 2)) for part in q.split(rows, dim=2))
    return total / (heads * queries)


def mean_keys(key: Tensor) -> Tensor:
    """[F, P, heads, width] -> [F, P, width], the mean over heads: what ToMe and VisionZip compare tokens by."""
    return key.mean(-2)
