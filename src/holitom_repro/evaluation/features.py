"""The features of benchmark videos, computed once per video and kept while memory allows, and the saliency controls.

Several questions are asked about a video, and many settings are tried on it; the vision tower sees it once."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from holitom.attach.tower import merging
from holitom.errors import BadUsage, CannotRun
from holitom.models.saliency import probing, received_attention
from holitom.types import Outer, TokenSet, Tower, VideoFeatures
from holitom.video import Frames
from holitom_repro import paths

CONTROL_TOWER = ("tiny", "control_tower")
"""Below data/: a SigLIP tower of the tiny models' size that was trained on something else."""


@dataclass(frozen=True)
class ForeignFeatures(VideoFeatures):
    """Features whose saliency is not the tower's own."""

    source: str = ""


@dataclass(frozen=True)
class ForeignSaliency:
    """An adverse control: the outer stage with a saliency that knows nothing of the video ("random", drawn per video)
    or little ("control": of another tower that sees the same frames). The store of a sweep puts it into the features;
    elsewhere they have to be ForeignFeatures."""

    outer: Outer
    source: Literal["random", "control"]

    def __post_init__(self) -> None:
        if self.source not in ("random", "control") or "saliency" not in self.outer.requires:
            fix = "choose random or control, for a method that reads saliency"
            raise BadUsage(f"saliency {self.source!r} for {type(self.outer).__name__}", fix=fix)

    requires = property(lambda self: self.outer.requires)
    positions = property(lambda self: self.outer.positions)
    fidelity = "control"

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        if getattr(video, "source", None) != self.source:
            raise BadUsage(f"the video's saliency is not {self.source}", fix="run this control in a sweep (evaluate)")
        return self.outer(video, budget)


class FeatureStore:
    """VideoFeatures by file, the least recently used dropped when ``max_bytes`` are exceeded.

    requires: optional fields to compute whenever a video is encoded; a field that was not foreseen costs a second pass.
    decode: (path) -> Frames. notes: what the decoder had to say, by file.
    """

    def __init__(self, adapter: Any, pixels: Callable[[Any], Tensor], max_bytes: int) -> None:
        self.adapter, self.pixels, self.max_bytes = adapter, pixels, max_bytes
        self.decode: Callable[[str], Frames]
        self.notes: dict[str, tuple[str, ...]] = {}
        self.requires: frozenset[str] = frozenset()
        self._tower: torch.nn.Module | None = None
        self._kept: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._bytes = 0

    def get(self, path: str, outer: Outer | None = None, tower: Tower | None = None) -> VideoFeatures:
        """The features of a video, with what ``outer`` reads, from a tower with the stage ``tower`` inside."""
        inside = repr(tower) if tower is not None else ""
        source = getattr(outer, "source", "") if isinstance(outer, ForeignSaliency) else ""
        requires = frozenset(outer.requires) if outer is not None else frozenset()
        features = self._recall(path, inside)
        if features is None or any(getattr(features, name) is None for name in requires):
            with torch.inference_mode():
                given = {} if tower is None else {"tower": partial(merging, self.adapter, tower)}
                features = self.adapter.encode([self._decoded(path)], self.requires | requires, **given)[0]
            self._keep(path, inside, features)
        if not source:
            return features
        saliency = self._recall(path, source + inside)
        if saliency is None:
            saliency = self._random(path, features) if source == "random" else self._of_control_tower(path)
            self._keep(path, source + inside, saliency)
        return ForeignFeatures(**vars(features) | {"saliency": saliency.to(features.tokens.device), "source": source})

    def clear(self) -> None:
        """Forget every video."""
        self._kept.clear()
        self._bytes = 0

    def videos_at_once(self, path: str) -> int:
        """How many videos like this one, which is encoded where it is not yet, the memory holds; at least 1."""
        return max(1, self.max_bytes // max(1, _size(self.get(path))))

    def _decoded(self, path: str) -> Tensor:
        decoded = self.decode(path)
        self.notes[path] = decoded.notes
        return self.pixels(decoded.pixels)

    def _random(self, path: str, features: VideoFeatures) -> Tensor:
        seed = zlib.crc32("/".join(Path(path).parts[-2:]).encode())  # the video, wherever the file lies
        return torch.rand(features.tokens.shape[:2], generator=torch.Generator().manual_seed(seed))

    @torch.inference_mode()
    def _of_control_tower(self, path: str) -> Tensor:
        """As the adapter computes saliency, with the queries and keys of the control tower's last layer."""
        pixels = self._decoded(path)
        if self._tower is None:
            from transformers import SiglipVisionModel

            folder = paths.data(*CONTROL_TOWER)
            if not (folder / "config.json").is_file():
                raise CannotRun(f"there is no control tower in {folder}", fix="./reproduce.sh train-tiny makes it")
            self._tower = SiglipVisionModel.from_pretrained(folder).eval()
        if (seen := self._tower.config.image_size) != pixels.shape[-1]:
            told = f"the control tower sees {seen} pixels, the model's {pixels.shape[-1]}"
            raise CannotRun(told, fix="use this control with tiny models")
        attention = [m for m in self._tower.modules() if type(m).__name__ == "SiglipAttention"][-1]
        with probing(attention, "q_proj", "k_proj") as found:
            self._tower(pixels.to(next(self._tower.parameters())))
        query, key = (found[name].unflatten(-1, (attention.num_heads, -1)) for name in ("q_proj", "k_proj"))
        return self.adapter.pool(received_attention(query, key, attention.scale)[..., None]).squeeze(-1)

    def _recall(self, path: str, source: str) -> Any:
        if (path, source) in self._kept:
            self._kept.move_to_end((path, source))
        return self._kept.get((path, source))

    def _keep(self, path: str, source: str, value: VideoFeatures | Tensor) -> None:
        before = self._kept.pop((path, source), None)
        self._bytes += _size(value) - _size(before)
        self._kept[path, source] = value
        while self._bytes > self.max_bytes and len(self._kept) > 1:
            self._bytes -= _size(self._kept.popitem(last=False)[1])


def _size(value: Any) -> int:
    tensors = vars(value).values() if isinstance(value, VideoFeatures) else [value]
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))
