"""The features of benchmark videos, computed once per video and kept while memory allows, and random saliency.

Several questions are asked about a video, and many settings are tried on it; the vision tower sees it once."""

import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from holitom.attach.tower import merging
from holitom.types import Outer, Tower, VideoFeatures
from holitom.video import Frames


@dataclass(frozen=True)
class ForeignSaliency:
    """An adverse control: ``outer`` with a saliency that knows nothing of the video ("random", drawn per video). A
    setting of ``evaluate`` only: it is the sweep's store that draws."""

    outer: Outer
    source: Literal["random"]

    requires = property(lambda self: self.outer.requires)

    def drawn(self, features: VideoFeatures, path: str) -> VideoFeatures:
        """The features of the video at ``path``, wherever its file lies, with its random saliency."""
        seed = zlib.crc32("/".join(Path(path).parts[-2:]).encode())
        saliency = torch.rand(features.tokens.shape[:2], generator=torch.Generator().manual_seed(seed))
        return replace(features, saliency=saliency.to(features.tokens.device))


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
        self.clear()

    def get(self, path: str, outer: Outer | ForeignSaliency | None = None, tower: Tower | None = None) -> VideoFeatures:
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
        return outer.drawn(features, path) if isinstance(outer, ForeignSaliency) else features

    def clear(self) -> None:
        """Forget every video."""
        self._kept: OrderedDict[tuple[str, str], VideoFeatures] = OrderedDict()
        self._bytes = 0


def _size(features: VideoFeatures | None) -> int:
    values = vars(features).values() if features is not None else ()
    return sum(value.nbytes for value in values if isinstance(value, Tensor))
