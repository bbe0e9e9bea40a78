"""SigLIP's attention-pooling head, which LLaVA-OneVision's checkpoints leave out and FastVID compares frames by.

The head and the layer norm before it are 15 million numbers of a checkpoint of 0.9 billion; they are read from a local
folder or from the hub (which is downloaded once), and kept with the tower that they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead
from transformers.utils import cached_file

from holitom.errors import CannotRun, UnsupportedModel

HUB = "google/siglip-so400m-patch14-384"
HUB_WIDTH = 1152
WITHOUT = "or compare frames without it: FastVID(head='substitute')"
_KEPT: WeakKeyDictionary[nn.Module, tuple[str, PoolingHead]] = WeakKeyDictionary()


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


def head_of(tower: nn.Module, source: str | Path = HUB) -> PoolingHead:
    """The head for a tower, read from ``source`` the first time. Raises as ``load_pooling_head`` does."""
    kept = _KEPT.get(tower)
    if kept is None or kept[0] != str(source):
        config = next(module.config for module in tower.modules() if hasattr(module, "config"))  # may be wrapped
        kept = _KEPT[tower] = (str(source), load_pooling_head(source, config.hidden_size))
    return kept[1]


def load_pooling_head(source: str | Path = HUB, width: int | None = None) -> PoolingHead:
    """The head of a SigLIP checkpoint (a folder or a hub id), in float32 and eval mode.

    Raises CannotRun where the source cannot be read, UnsupportedModel where it has no head or not one of ``width``; the
    default source is not asked for another width than its own.
    """
    other = f"set LlavaOnevision.head_source to the SigLIP checkpoint that the tower comes from, {WITHOUT}"
    if source == HUB and width not in (None, HUB_WIDTH):
        raise UnsupportedModel(f"{HUB} pools {HUB_WIDTH} numbers a patch, and this tower gives {width}", fix=other)
    try:
        settings = json.loads(Path(cached_file(str(source), "config.json")).read_text(encoding="utf-8"))
        config = SiglipVisionConfig(**settings.get("vision_config", settings))
        head, tensors = PoolingHead(config), _read(source)
    except (OSError, ValueError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        what = f"SigLIP's pooling head cannot be read from {source} ({lines[0][:160]})"
        raise CannotRun(what, fix=f"go online once, or {other}") from error
    if width not in (None, config.hidden_size):
        raise UnsupportedModel(f"{source} pools {config.hidden_size} numbers a patch, not {width}", fix=other)
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        raise UnsupportedModel(f"{source} has no whole pooling head", fix=other) from error
    return head.eval()


def _read(source: str | Path) -> dict[str, Tensor]:
    """The head's tensors, under the names that they have in :class:`PoolingHead`."""
    found, files = {}, sorted(Path(source).glob("*.safetensors"))
    for file in files or [cached_file(str(source), "model.safetensors")]:
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                own = name.rpartition("vision_model.")[2]  # a text model has a head too
                if own.startswith(("head.", "post_layernorm.")):
                    found[own] = stored.get_tensor(name).float()
    return found
