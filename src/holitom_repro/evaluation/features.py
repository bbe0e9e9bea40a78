"""The features of benchmark videos, computed once per video and kept while memory allows, and the saliency control.

Several questions are asked about a video, and many settings are tried on it; the vision tower sees it once.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from holitom.errors import CannotRun
from holitom_repro.evaluation.cells import Saliency
from holitom.models import Adapter
from holitom.models.encoding import probe_attention
from holitom.types import VideoFeatures
from holitom.video import Frames, load_frames


class FeatureStore:
    """VideoFeatures by file, the least recently used dropped when ``max_bytes`` are exceeded.

    requires: optional fields to compute whenever a video is encoded; a field that was not foreseen costs a second pass.
    control: folder of a SigLIP tower (``SiglipVisionModel``) for saliency "control".
    """

    def __init__(
        self,
        adapter: Adapter,
        pixels: Callable[[Any], Tensor],
        *,
        requires: frozenset[str] = frozenset(),
        control: Path | None = None,
        max_bytes: int = 2 * 2**30,
        decode: Callable[[str, int], Frames] = load_frames,
    ) -> None:
        self.adapter = adapter
        self.pixels = pixels
        self.requires = requires
        self.control = control
        self.max_bytes = max_bytes
        self.decode = decode
        self.notes: dict[tuple[str, int], tuple[str, ...]] = {}  # what the decoder had to say, by file and frames
        self._tower: torch.nn.Module | None = None
        self._kept: OrderedDict[tuple[str, int, str], VideoFeatures | Tensor] = OrderedDict()
        self._bytes = 0

    def get(
        self, path: str, frames: int, *, requires: frozenset[str] = frozenset(), saliency: Saliency = "own"
    ) -> VideoFeatures:
        """The features of ``frames`` uniformly sampled frames of a video, with the fields in ``requires``."""
        own = requires - {"saliency"} if saliency != "own" else requires
        features = self._recall((path, frames, "features"))
        if features is None or any(getattr(features, name) is None for name in own):
            features = self._encode(path, frames, own)
            self._keep((path, frames, "features"), features)
        if saliency == "own" or "saliency" not in requires:
            return features
        return dataclasses.replace(features, saliency=self._swapped(path, frames, features, saliency))

    def clear(self) -> None:
        """Forget every video."""
        self._kept.clear()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @torch.inference_mode()
    def _encode(self, path: str, frames: int, requires: frozenset[str]) -> VideoFeatures:
        return self.adapter.encode([self._decode(path, frames)], self.requires | requires).videos[0]

    def _decode(self, path: str, frames: int) -> Tensor:
        decoded = self.decode(path, frames)
        self.notes[path, frames] = decoded.notes
        return self.pixels(decoded.pixels)

    def _swapped(
        self, path: str, frames: int, features: VideoFeatures, saliency: Saliency
    ) -> Float[Tensor, "frames cells"]:
        device = features.tokens.device
        if saliency == "random":
            seed = zlib.crc32("/".join(Path(path).parts[-2:]).encode())  # the video, wherever the file lies
            shape = features.tokens.shape[:2]
            return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(device)
        kept = self._recall((path, frames, "control"))
        if kept is None:
            kept = self._control_saliency(path, frames)
            self._keep((path, frames, "control"), kept)
        return kept.to(device)

    @torch.inference_mode()
    def _control_saliency(self, path: str, frames: int) -> Float[Tensor, "frames cells"]:
        """As ``Adapter.encode`` computes saliency, with the q and k of the control tower's last layer."""
        pixels = self._decode(path, frames)
        tower = self._control_tower(pixels)
        with probe_attention(_last_attention(tower), saliency=True, keys=False) as probe:
            tower(pixels.to(next(tower.parameters())))
        return self.adapter.pool(probe.saliency[..., None]).squeeze(-1)

    def _control_tower(self, pixels: Tensor) -> torch.nn.Module:
        if self._tower is None:
            if self.control is None or not (self.control / "config.json").is_file():
                where = "no control tower was named" if self.control is None else f"there is no tower in {self.control}"
                raise CannotRun(
                    f'saliency "control" was asked, but {where}',
                    fix="give the folder of a SiglipVisionModel (control=...)",
                )
            from transformers import SiglipVisionModel

            self._tower = SiglipVisionModel.from_pretrained(self.control).eval().to(self.adapter.newline)
            size, given = self._tower.config.image_size, pixels.shape[-1]
            if size != given:
                raise CannotRun(
                    f"the control tower sees {size} pixels, the model's {given}",
                    fix="use a tower of the same image size",
                )
        return self._tower

    def _recall(self, key: tuple[str, int, str]) -> Any:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def _keep(self, key: tuple[str, int, str], value: VideoFeatures | Tensor) -> None:
        if key in self._kept:
            self._bytes -= _size(self._kept.pop(key))
        self._kept[key] = value
        self._bytes += _size(value)
        while self._bytes > self.max_bytes and len(self._kept) > 1:
            self._bytes -= _size(self._kept.popitem(last=False)[1])


def _last_attention(tower: torch.nn.Module) -> torch.nn.Module:
    return [m for m in tower.modules() if type(m).__name__ == "SiglipAttention"][-1]


def _size(value: VideoFeatures | Tensor) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    tensors = (value.tokens, value.saliency, value.keys, value.frame_embed)
    return sum(t.nbytes for t in tensors if t is not None)
