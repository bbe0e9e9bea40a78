"""SigLIP's attention-pooling head, which LLaVA-OneVision's checkpoints leave out and FastVID compares frames by.

The head and the layer norm before it are 15 million numbers of a checkpoint of 0.9 billion: only their bytes are read,
from a local folder, from the hub's cache, or with range requests to the hub. Where none of these answers, the mean of a
frame's tokens stands in, and the record says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from huggingface_hub import HfFileSystem, hf_hub_download, try_to_load_from_cache
from jaxtyping import Float
from torch import Tensor, nn
from transformers import SiglipVisionConfig
from transformers.activations import ACT2FN

from holitom.errors import CannotRun, KitError, UnsupportedModel

try:
    from httpx import HTTPError
except ImportError:  # huggingface_hub before 1.0 asks with requests, whose errors are OSErrors
    HTTPError = OSError

HUB = "google/siglip-so400m-patch14-384"
HUB_WIDTH = 1152
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_HEADER = 100_000_000  # bytes; the format allows no longer header
_UNREACHABLE = (OSError, ValueError, HTTPError)  # no network, no such file, offline mode, not safetensors


@dataclass(frozen=True)
class HeadRecord:
    """What frames are compared by: SigLIP's own head, or the mean of a frame's tokens in its place; where the head
    came from, or why there is none."""

    used: Literal["siglip", "substitute"]
    source: str
    reason: str = ""


class PoolingHead(nn.Module):
    """Layer norm, one learned query attending to a frame's patches, and an MLP with a residual (Zhai et al. 2023)."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.post_layernorm = nn.LayerNorm(width, eps=eps)
        self.probe = nn.Parameter(torch.zeros(1, 1, width))
        self.attention = nn.MultiheadAttention(width, config.num_attention_heads, batch_first=True)
        self.layernorm = nn.LayerNorm(width, eps=eps)
        self.fc1, self.fc2 = nn.Linear(width, config.intermediate_size), nn.Linear(config.intermediate_size, width)
        self.activation = ACT2FN[config.hidden_act]

    @torch.no_grad()
    def forward(
        self, patches: Float[Tensor, "frames patches dim"]
    ) -> tuple[Float[Tensor, "frames dim"], Float[Tensor, "frames patches"]]:
        """The tower's last states before its own last norm -> frame embeddings, and the attention that each patch
        receives from the query, mean over heads (rows sum to 1). Both in float32."""
        states = self.post_layernorm(patches.float())
        query = self.probe.expand(len(states), -1, -1)
        pooled, received = self.attention(query, states, states, need_weights=True)
        pooled = pooled + self.fc2(self.activation(self.fc1(self.layernorm(pooled))))
        return pooled[:, 0], received[:, 0]


def find_pooling_head(width: int, source: str | Path = HUB) -> tuple[PoolingHead | None, HeadRecord]:
    """The head for a tower of this width, or None where there is none to be had; and which of the two it is.

    The default source is not asked for a tower of another width than its own.
    """
    if source == HUB and width != HUB_WIDTH:
        return None, HeadRecord("substitute", str(source), f"it pools {HUB_WIDTH} numbers a patch, not {width}")
    try:
        return load_pooling_head(source, width), HeadRecord("siglip", str(source))
    except KitError as error:
        return None, HeadRecord("substitute", str(source), str(error))


def load_pooling_head(source: str | Path = HUB, width: int | None = None) -> PoolingHead:
    """The head of a SigLIP checkpoint (a folder or a hub id), in float32 and eval mode.

    Raises CannotRun where the source cannot be read, UnsupportedModel where it has no head or one of another width.
    """
    try:
        settings = _json(source, "config.json")
        config = SiglipVisionConfig(**settings.get("vision_config", settings))
        tensors = _read_head(source)
    except _UNREACHABLE as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CannotRun(
            f"SigLIP's pooling head cannot be read from {source} ({lines[0][:160]})",
            fix="go online once, give a checkpoint's folder, or use FastVID(head='substitute')",
        ) from error
    if not tensors or (width is not None and config.hidden_size != width):
        found = f"pools {config.hidden_size} numbers a patch, not {width}" if tensors else "has no pooling head"
        raise UnsupportedModel(f"{source} {found}", fix="give the SigLIP checkpoint that the model's tower comes from")
    head = PoolingHead(config)
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        raise UnsupportedModel(f"{source}: {error}", fix="give a complete SigLIP checkpoint") from error
    return head.eval()


def read_tensors(open_file: Callable[[], BinaryIO], wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """The wanted tensors of one safetensors file, and no other bytes than theirs and the header's."""
    with open_file() as file:
        size = int.from_bytes(file.read(8), "little")
        if size > _HEADER:
            raise ValueError("not a safetensors file")
        header = json.loads(file.read(size))
        found = {}
        for name in filter(wanted, header):
            begin, end = header[name]["data_offsets"]
            file.seek(8 + size + begin)
            values = torch.frombuffer(bytearray(file.read(end - begin)), dtype=_DTYPES[header[name]["dtype"]])
            found[name] = values.reshape(header[name]["shape"]).float()
    return found


def _read_head(source: str | Path) -> dict[str, Tensor]:
    """The head's tensors under the names of :class:`PoolingHead`; empty where the checkpoint has none."""
    tensors: dict[str, Tensor] = {}
    for name in _files(source):
        tensors |= read_tensors(lambda name=name: _open(source, name), _is_head)
    short = {}
    for name, value in tensors.items():
        _, dot, rest = name.rpartition("head." if "head." in name else "post_layernorm.")
        short[rest.removeprefix("mlp.") if "head." in name else dot + rest] = value
    return short if "probe" in short else {}


def _is_head(name: str) -> bool:
    path = name.split(".")
    return "text_model" not in path and ("head" in path or "post_layernorm" in path)


def _files(source: str | Path) -> Iterable[str]:
    """The safetensors files that hold parts of the head."""
    try:
        index = _json(source, "model.safetensors.index.json")
    except _UNREACHABLE:
        return ["model.safetensors"]
    return sorted({file for name, file in index["weight_map"].items() if _is_head(name)})


def _json(source: str | Path, name: str) -> dict[str, Any]:
    folder = Path(source)
    path = folder / name if folder.is_dir() else Path(hf_hub_download(str(source), name))
    return json.loads(path.read_text())


def _open(source: str | Path, name: str) -> BinaryIO:
    if Path(source).is_dir():
        return (Path(source) / name).open("rb")
    cached = try_to_load_from_cache(str(source), name)
    return open(cached, "rb") if isinstance(cached, str) else HfFileSystem().open(f"{source}/{name}", "rb")
