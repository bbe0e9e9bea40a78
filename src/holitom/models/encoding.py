"""What a vision tower says about a video beyond its features: the attention each patch receives, read from q and k."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import time

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from holitom.types import VideoFeatures

CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 2**30}
"""Size of one float32 block of attention maps [frames, heads, patches, patches]; bounds the memory of a saliency pass.
On a GPU 30 frames of SigLIP's 729 patches fit, so that there are few launches."""



def clock(device: torch.device) -> float:
    """Seconds."""
    return time.perf_counter()


Reading = tuple[Tensor | None, Tensor | None]
"""Saliency and keys, as read from one call of an attention."""


@dataclass
class EncodedVideos(BaseModelOutputWithPooling):
    """The features of every video of a call, in order, instead of the pooled tensor a stock model would pass on.

    It travels through ``generate`` as ``mm_encoder_outputs["video"]``. pooler_output stays None, so that beam search
    does not try to repeat it; the prompt's hook repeats the videos itself. The core then gets another one, whose
    pooler_output is what the family's core reads."""

    pooler_output: Any = None
    videos: tuple[VideoFeatures, ...] | None = None
    seconds: dict[str, Any] | None = None


@dataclass
class Probe:
    """What ``probe_attention`` has read after the tower ran: saliency [F, P] float32, keys [F, P, head_dim]."""

    saliency: Tensor | None = None
    keys: Tensor | None = None
    seconds: float = 0.0
    _chunks: list[Reading] = field(default_factory=list)


@contextmanager
def probe_attention(attention: nn.Module, *, saliency: bool, keys: bool) -> Iterator[Probe]:
    """While the tower runs inside the block, read q and k of ``attention`` from its input; the tower is not changed.

    attention: a SigLIP attention (``q_proj``, ``k_proj``, ``num_heads``, ``head_dim``, ``scale``). The hook is removed
    when the block ends, also after an exception.
    """

    def read(module: nn.Module, hidden: Tensor, _: Any) -> Reading:
        received = received_attention(module, hidden) if saliency else None
        return received, mean_keys(module, hidden) if keys else None

    with probing(attention, read) as probe:
        yield probe


@contextmanager
def probing(attention: nn.Module, read: Callable[[Any, Tensor, dict[str, Any]], Reading]) -> Iterator[Probe]:
    """``read(attention, hidden_states, kwargs)`` -> (saliency, keys) at every call of the attention inside the block;
    the parts are put together when it ends."""
    probe = Probe()

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        start = clock(hidden.device)
        probe._chunks.append(read(module, hidden, kwargs))
        probe.seconds += clock(hidden.device) - start

    handle = attention.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield probe
    finally:
        handle.remove()
        received, keys = zip(*probe._chunks, strict=True) if probe._chunks else ((None,), (None,))
        probe.saliency = None if received[0] is None else torch.cat(received)
        probe.keys = None if keys[0] is None else torch.cat(keys)


def map_bytes(states: Tensor) -> int:
    """CHUNK_BYTES on the device of these states."""
    return CHUNK_BYTES.get(states.device.type, CHUNK_BYTES["cpu"])


def received_attention(
    attention: nn.Module, hidden: Float[Tensor, "frames patches dim"], chunk_bytes: int | None = None
) -> Float[Tensor, "frames patches"]:
    """Mean over heads and queries of softmax(q k^T * scale): each frame's row sums to 1, in float32.

    Equal to the column mean of the released code's [F, heads, P, P] attention map (HoliTom's siglip_encoder), which is
    never held here: frames are processed in blocks of at most chunk_bytes of scores (None: CHUNK_BYTES).
    """
    frames, patches, _ = hidden.shape
    heads, width, scale = attention.num_heads, attention.head_dim, attention.scale
    out = hidden.new_empty(frames, patches, dtype=torch.float32)
    step = max(1, (chunk_bytes or map_bytes(hidden)) // (4 * heads * patches * patches))
    for start in range(0, frames, step):
        x = hidden[start : start + step]
        q = attention.q_proj(x).unflatten(-1, (heads, width)).transpose(1, 2).float() * scale
        k = attention.k_proj(x).unflatten(-1, (heads, width)).transpose(1, 2).float()
        out[start : start + step] = (q @ k.transpose(-1, -2)).softmax(-1).mean(dim=(1, 2))
    return out


def mean_keys(attention: nn.Module, hidden: Float[Tensor, "frames patches dim"]) -> Float[Tensor, "frames patches key"]:
    """The keys of every patch, mean over heads (the similarity metric of ToMe and VisionZip)."""
    return attention.k_proj(hidden).unflatten(-1, (attention.num_heads, attention.head_dim)).mean(-2)
