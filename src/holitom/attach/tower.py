"""A stage inside a SigLIP tower: between two of its layers the frames of every video become fewer.

The hooks are there while ``encode`` runs its one pass over all frames of all videos, and only then: images that go
through the same tower are left alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from holitom.errors import UnsupportedModel
from holitom.types import MergedFrames, Tower


def tower_layers(adapter: Any) -> list[nn.Module]:
    """The layers of a SigLIP tower, found by class name; UnsupportedModel for a host that has another."""
    modules = getattr(getattr(adapter, "tower", None), "modules", list)()
    found = [module for module in modules if type(module).__name__.lower() == "siglipencoderlayer"]
    if not found:
        what = f"the vision tower of {type(adapter).__name__} is no SigLIP, and a tower stage works in no other"
        raise UnsupportedModel(what, fix="leave the tower stage out; outer and inner stages work")
    return found


@contextmanager
def merging(adapter: Any, stage: Tower, frames: Sequence[int]) -> Iterator[list[MergedFrames]]:
    """While the block lasts, a pass over videos of so many frames goes through the stage, each video by itself. Gives
    what became of every one, complete when the pass is done."""
    layers = tower_layers(adapter)
    merged = [MergedFrames(tuple(range(count)), (count,) * len(layers)) for count in frames]

    def hook(layer: int, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        kept = []
        for v, states in enumerate(args[0].split([video.entered[layer] for video in merged])):
            with torch.autocast(states.device.type, enabled=False):
                fewer, into = stage(states)
            kept.append(fewer)
            entered = merged[v].entered[:layer] + (len(fewer),) * (len(layers) - layer)
            merged[v] = MergedFrames(tuple(into[t] for t in merged[v].into), entered)
        whole = sum(map(len, kept)) == len(args[0])
        return args if whole else (torch.cat(kept), *args[1:])

    # in front of the next layer, so that the states which the model notes as a layer's output stay whole
    handles = [layers[i + 1].register_forward_pre_hook(partial(hook, i + 1)) for i in stage.layers]
    try:
        yield merged
    finally:
        for handle in handles:
            handle.remove()
