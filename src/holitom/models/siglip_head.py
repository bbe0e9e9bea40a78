"""SigLIP's attention-pooling head, which LLaVA-OneVision's checkpoints leave out and FastVID compares frames by.

The head and the layer norm before it are 15 million numbers of a checkpoint of 0.9 billion; they are read from a local
folder or from the hub (which is downloaded once)."""

import json
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead
from transformers.utils import cached_file

from holitom.errors import CannotRun, UnsupportedModel, first_line

HUB = "google/siglip-so400m-patch14-384"
HUB_WIDTH = 1152


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
