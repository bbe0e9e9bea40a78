"""The features of benchmark videos, computed once per video and kept while memory allows, and random saliency.

Several questions are asked about a video, and many settings are tried on it; the vision tower sees it once."""

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
from holitom.errors import BadUsage
from holitom.types import Outer, TokenSet, Tower, VideoFeatures
from holitom.video import Frames


@dataclass(frozen=True)
class ForeignFeatures(VideoFeatures):
    """Features whose saliency is not the tower's own."""

    source: str = ""


@dataclass(frozen=True)
class ForeignSaliency:
    """An adverse control: the outer stage with a saliency that knows nothing of the video ("random", drawn per video).
    The store of a sweep puts it into the features; elsewhere they have to be ForeignFeatures."""

    outer: Outer
    source: Literal["random"]

    def __post_init__(self) -> None:
        if self.source != "random" or "saliency" not in self.outer.requires:
            fix = "choose random, for a method that reads saliency"
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
        self._kept: OrderedDict[tuple[str, str], VideoFeatures] = OrderedDict()
        self._bytes = 0

    def get(self, path: str, outer: Outer | None = None, tower: Tower | None = None) -> VideoFeatures:
        """The features of a video, with what ``outer`` reads, from a tower with the stage ``tower`` inside."""
        requires = frozenset(outer.requires) if outer is not None else frozenset()
        key = path, repr(tower)
        features = self._kept.pop(key, None)
        self._bytes -= _size(features)
        if features is None or any(getattr(features, name) is None for name in requires):
            decoded = self.decode(path)
            self.notes[path] = decoded.notes
            given = {} if tower is None else {"tower": partial(merging, self.adapter, tower)}
            with torch.inference_mode():
                pixels = self.pixels(decoded.pixels)
                features = self.adapter.encode([pixels], self.requires | requires, **given)[0]
        self._kept[key] = features  # as the latest
        self._bytes += _size(features)
        while self._bytes > self.max_bytes and len(self._kept) > 1:
            self._bytes -= _size(self._kept.popitem(last=False)[1])
        if not isinstance(outer, ForeignSaliency):
            return features
        seed = zlib.crc32("/".join(Path(path).parts[-2:]).encode())  # the video, wherever the file lies
        drawn = torch.rand(features.tokens.shape[:2], generator=torch.Generator().manual_seed(seed))
        return ForeignFeatures(**vars(features) | {"saliency": drawn.to(features.tokens.device), "source": "random"})

    def clear(self) -> None:
        """Forget every video."""
        self._kept.clear()
        self._bytes = 0

    def videos_at_once(self, path: str) -> int:
        """How many videos like this one, which is encoded where it is not yet, the memory holds; at least 1."""
        return max(1, self.max_bytes // max(1, _size(self.get(path))))


def _size(features: VideoFeatures | None) -> int:
    values = vars(features).values() if features is not None else ()
    return sum(value.nbytes for value in values if isinstance(value, Tensor))
