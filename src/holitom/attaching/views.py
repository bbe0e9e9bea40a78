"""What each decoder layer holds of a prompt: which tokens, at which rotary positions, behind how much left padding.

Reduction makes sequences of one batch unequally long, and layers of one model too. A ``View`` describes one layer's
share for all samples; samples are padded on the left to a common length at every layer. A ``PromptState`` keeps the
views of all layers and rides on the KV cache, so that decoding, a further turn, or a deep copy of the cache find them
again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from holitom.attaching.kinds import Kinds
from holitom.ops.selection import mask_ids

_ON_CACHE = "_holitom_prompt"


@dataclass(frozen=True, eq=False)
class View:
    """Slots of one layer after prefill, left-padded: [B, S].

    ids: for every slot the prompt token it holds (counted per sample in the outer-reduced prompt), -1 for padding;
    positions: its rotary position; pads: padding slots per sample; shift [B]: how much smaller this layer's position
    numbers are than the language model's at the end of the prompt, None where they are equal."""

    ids: Tensor
    positions: Tensor
    pads: tuple[int, ...]
    shift: Tensor | None = None

    @classmethod
    def of(cls, ids: Sequence[Tensor], positions: Sequence[Tensor], shift: Tensor | None = None) -> View:
        lengths = [len(row) for row in ids]
        pads = tuple(max(lengths) - n for n in lengths)
        return cls(pad_left(ids, -1), pad_left(positions, 0), pads, shift)

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    @property
    def padded(self) -> bool:
        return any(self.pads)

    def real(self, batched: Tensor, sample: int) -> Tensor:
        """The rows of one sample without its padding: [B, S, ...] -> [S_b, ...]."""
        return batched[sample if batched.shape[0] > 1 else 0, self.pads[sample] :]

    def mask(self, device: torch.device, unread: Sequence[Tensor | None] | None = None) -> Tensor:
        """Which slots may be attended to [B, S]; unread: per sample, ids that are not to be read."""
        ids = self.ids.to(device)
        valid = ids >= 0
        for sample, dropped in enumerate(unread or ()):
            if dropped is not None:
                valid[sample] &= ~torch.isin(ids[sample], dropped.to(device))
        return valid

    def reads(self, unread: Sequence[Tensor | None], behind: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is read of this layer's cache when ids are left unread: its slots [B, R], ascending and left-padded, and
        which of them are real (None: all). behind [B, new]: which columns behind the prompt may be attended to."""
        allowed = torch.cat([self.mask(behind.device, unread), behind], dim=1)
        rows = [sample.nonzero().flatten() for sample in allowed]
        slots = pad_left(rows, 0)
        first = slots.shape[1] - torch.tensor([len(row) for row in rows])
        if not first.any():
            return slots, None
        return slots, (torch.arange(slots.shape[1]) >= first[:, None]).to(slots.device)

    def restricted(self, kept: View) -> View:
        """This view without the tokens that ``kept`` has lost (it holds a subset); positions and shift stay."""
        rows, positions = [], []
        for b in range(len(self.pads)):
            mine, theirs = self.real(self.ids, b), kept.real(kept.ids, b)
            stay = mask_ids(torch.isin(mine, theirs.to(mine.device)), len(theirs))
            rows.append(mine[stay])
            positions.append(self.real(self.positions, b)[stay])
        return View.of(rows, positions, self.shift)

    def slots_of(self, kept: View) -> Tensor:
        """For every slot of ``kept`` the slot of this view that holds the same token [B, S']; 0 for padding."""
        slots = [
            torch.searchsorted(self.real(self.ids, b), kept.real(kept.ids, b)) + self.pads[b]
            for b in range(len(self.pads))
        ]
        return pad_left(slots, 0)


@dataclass(eq=False)
class PromptState:
    """A reduced prompt: what the caller believes it looks like, and what every layer really holds.

    given: columns of the prompt as the caller gave it; caller_shift [B]: the caller's position numbers minus the
    language model's at the end of the prompt; next_position [B]: the language model's position of the first token after
    the prompt; kinds: what its tokens are, per sample; views: one per decoder layer; on_grid: positions are places in
    time, rows and columns, which no stage renumbers.
    """

    given: int
    caller_shift: Tensor
    next_position: Tensor
    base: View
    kinds: list[Kinds]
    views: list[View] = field(default_factory=list)
    on_grid: bool = False

    @cached_property
    def visual(self) -> list[Tensor]:
        """Per sample, the ids of visual tokens."""
        return [kinds.visual_ids for kinds in self.kinds]

    @property
    def samples(self) -> int:
        return len(self.base.pads)

    @property
    def removed(self) -> int:
        """How many columns fewer than the caller believes the first layer's cache holds."""
        return self.given - self.views[0].length


def remember(cache: object, state: PromptState) -> None:
    """Attach the state to the cache that holds the prompt."""
    setattr(cache, _ON_CACHE, state)


def recall(cache: object | None) -> PromptState | None:
    """The state of the prompt in this cache, None if no reduced prompt is in it."""
    return getattr(cache, _ON_CACHE, None)


def forget(cache: object | None) -> None:
    """An emptied cache that is used again holds no prompt any more."""
    if hasattr(cache, _ON_CACHE):
        delattr(cache, _ON_CACHE)


def pad_left(rows: Sequence[Tensor], value: int) -> Tensor:
    """Tensors [S_b, ...] -> [B, max S_b, ...], padded in front."""
    return pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side="left")


def select_slots(batched: Tensor, slots: Tensor, dim: int) -> Tensor:
    """Gather per-sample slots [B, S'] from a batched tensor along ``dim`` (the tensor's batch is dimension 0)."""
    if len(slots) == len(batched) == 1:
        return batched.index_select(dim, slots[0].to(batched.device))  # copies whole rows
    shape = [1] * batched.ndim
    shape[0], shape[dim] = slots.shape
    target = list(batched.shape)
    target[dim] = slots.shape[1]
    return batched.gather(dim, slots.to(batched.device).view(shape).expand(target))
