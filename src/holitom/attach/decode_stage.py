"""The decode stage's seam: for every generated token the layers behind the stage read a part of their cache.

What is not read stays in the cache, and the next token may read it again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from holitom.attach.library import DynamicLayer
from holitom.attach.prompt import Held, pad_left, select


class ReadingLayer(DynamicLayer):
    """A cache layer that holds everything and hands attention the slots ``read`` [B, R] alone, for one update."""

    read: Tensor | None = None

    @classmethod
    def at(cls, cache: Any, index: int) -> ReadingLayer:
        """The cache's layer, made a reading one if it is not yet."""
        if not isinstance(cache.layers[index], cls):
            made = cls()
            vars(made).update(vars(cache.layers[index]))
            cache.layers[index] = made
        return cache.layers[index]

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = super().update(*args, **kwargs)
        slots, self.read = self.read, None
        if slots is None:
            return keys, values
        return select(keys, slots, 2), select(values, slots, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of the mask: as many as attention gets. ``get_seq_length`` counts what is held."""
        return super().get_mask_sizes(query_length) if self.read is None else (self.read.shape[1], 0)


def slots_read(held: Held, unread: list[Tensor], new: int) -> tuple[Tensor, Tensor | None]:
    """What a layer reads of its cache without the prompt tokens ``unread`` (per prompt, their ids): slots [B, R],
    padded on the left, and which of them are no padding (None: all). new: columns behind the prompt."""
    behind = held.length + torch.arange(new)
    rows = [
        torch.cat([(~torch.isin(ids, gone)).nonzero().flatten() + pad, behind])
        for ids, pad, gone in zip(held.ids, held.pads, unread, strict=True)
    ]
    slots, lengths = pad_left(rows), torch.tensor([len(row) for row in rows])
    real = torch.arange(slots.shape[1]) >= slots.shape[1] - lengths[:, None]
    return slots, None if real.all() else real
