"""A cache layer of which a generated token reads a part: what a decode stage acts through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from holitom.attaching.library import DynamicLayer
from holitom.attaching.views import select_slots
from holitom.errors import UnsupportedModel


class ReadingLayer(DynamicLayer):
    """Holds every key and value, and hands attention only the slots in ``read`` [B, R], for one update; None: all.

    row [B, S]: the newest token's attention in the layer in front of the decode stage, where the stage compares it with
    the next one; it follows its sequence when beams change places.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.read: Tensor | None = None
        self.row: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        slots, self.read = self.read, None
        if slots is None:
            return keys, values
        return select_slots(keys, slots, 2), select_slots(values, slots, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of the mask: as many as attention gets. ``get_seq_length`` counts what is held."""
        return super().get_mask_sizes(query_length) if self.read is None else (self.read.shape[1], 0)

    def reset(self) -> None:
        self.read = self.row = None
        super().reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._move(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._move(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.row is not None:
            self.row = self.row.repeat_interleave(repeats, dim=0)

    def _move(self, samples: Tensor) -> None:
        if self.row is not None:
            self.row = self.row[torch.as_tensor(samples, device=self.row.device)]


def fresh_layer(cache: Cache, index: int) -> None:
    """Give an empty cache a reading layer at ``index``; what an earlier prompt left there is gone."""
    if index == len(cache.layers):  # a cache made without the model's config grows as its layers are first used
        cache.layers.append(ReadingLayer())
    else:
        cache.layers[index] = ReadingLayer()


def reading_layer(cache: Cache, index: int) -> ReadingLayer:
    """The reading layer at ``index``; a plain one, of a prompt prefilled without a decode stage, becomes one."""
    held = cache.layers[index]
    if not isinstance(held, ReadingLayer):
        if type(held) is not DynamicLayer:
            raise UnsupportedModel(
                f"a decode stage cannot read a part of a {type(held).__name__}",
                fix="use DynamicCache() without options",
            )
        reading = ReadingLayer()
        vars(reading).update(vars(held))
        cache.layers[index] = reading
    return cache.layers[index]
