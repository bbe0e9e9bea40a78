"""What a vision tower says about a video beyond its features: the attention each patch receives, its keys, and what
SigLIP's pooling head makes of a frame.

Queries and keys are taken from what the projections of one attention put out while the tower runs: the tower computes
nothing twice, runs whatever attention kernel it likes, and may lie on another device, in memory or on disk. The pooling
head, by which FastVID compares frames, is left out of LLaVA-OneVision's checkpoints: it and the layer norm before it,
15 million numbers of SigLIP's 0.9 billion, are read from a local folder or from the hub (which is downloaded once)."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead
from transformers.utils import cached_file

from holitom.errors import CannotRun, UnsupportedModel, first_line

HUB = "google/siglip-so400m-patch14-384"
HUB_WIDTH = 1152
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


class PoolingHead(nn.Module):
    """Layer norm, one learned query attending to a frame's patches, and an MLP with a residual (Zhai et al. 2023)."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = SiglipMultiheadAttentionPoolingHead(config)

    @torch.no_grad()
    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """The tower's last states before its own last norm [F, P, C] -> frame embeddings [F, C], and the attention that
        each patch receives from the query, mean over heads [F, P] (rows sum to 1). Both in float32."""
        with torch.autocast(patches.device.type, enabled=False):
            states = self.post_layernorm(patches.float())
            query = self.head.probe.expand(len(states), -1, -1)
            pooled, received = self.head.attention(query, states, states, need_weights=True)
            pooled = pooled + self.head.mlp(self.head.layernorm(pooled))
        return pooled[:, 0], received[:, 0]


@lru_cache(maxsize=4)
def load_pooling_head(source: str | Path = HUB, width: int | None = None) -> PoolingHead:
    """The head of a SigLIP checkpoint (a folder or a hub id, weights in one file), in float32 and eval mode; read once.
    Raises CannotRun where the source cannot be read or has no whole head, and UnsupportedModel where the default source
    is asked for a tower of another ``width`` than its own."""
    other = (
        "set LlavaOnevision.head_source to the SigLIP checkpoint that the tower comes from, or compare frames without "
        "it: FastVID(head='substitute')"
    )
    if source == HUB and width not in (None, HUB_WIDTH):
        raise UnsupportedModel(f"{HUB} pools {HUB_WIDTH} numbers a patch, and this tower gives {width}", fix=other)
    try:
        settings = json.loads(Path(cached_file(str(source), "config.json")).read_text(encoding="utf-8"))
        head, tensors = PoolingHead(SiglipVisionConfig(**settings.get("vision_config", settings))), {}
        with safe_open(cached_file(str(source), "model.safetensors"), "pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                own = name.rpartition("vision_model.")[2]  # a text model has a head too
                if own.startswith(("head.", "post_layernorm.")):
                    tensors[own] = stored.get_tensor(name).float()
        head.load_state_dict(tensors)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        what = f"SigLIP's pooling head cannot be read from {source} ({first_line(error)})"
        raise CannotRun(what, fix=f"go online once, or {other}") from error
    return head.eval()
