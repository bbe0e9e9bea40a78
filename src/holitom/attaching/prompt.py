"""The prompt's seam: runs of video placeholders are replaced by as many as tokens survived, and positions follow.

The prompt as given is read on the host, where the new one is put together and sent to the device in one copy. What only
the device knows, which tokens survived, is never asked for: their number is enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from holitom.attaching.groups import Groups, groups_of
from holitom.attaching.kinds import NEWLINE, TEXT, VISUAL, Kinds, video_runs
from holitom.attaching.views import PromptState, View, pad_left
from holitom.errors import BadUsage
from holitom.layout import Arranged, Order
from holitom.ops.transfer import to_device
from holitom.types import Positions


@dataclass(frozen=True)
class GivenPrompt:
    """A batch of prompts as the caller gave it, on the host: ids [B, S]; mask [B, S]; positions [B, S] or [1, S]."""

    ids: Tensor
    mask: Tensor | None = None
    positions: Tensor | None = None


@dataclass(frozen=True)
class Insert:
    """What one video puts into the prompt: its arranged rows, among which are ``tokens`` visual tokens and ``newlines``
    newlines; full_length: how many embeddings the unreduced video has; groups: the outer stage's, if it has any."""

    placed: Arranged
    frames: int
    grid: tuple[int, int]
    order: Order
    tokens: int
    groups: Groups | None = None

    def __len__(self) -> int:
        return len(self.placed)

    @property
    def newlines(self) -> int:
        return len(self) - self.tokens

    @property
    def full_length(self) -> int:
        height, width = self.grid
        if self.order == "row":
            return self.frames * height * (width + 1)
        return self.frames * height * width + (self.order == "end")

    def origin(self) -> Tensor:
        """The index [P] that each row had among the embeddings of the unreduced video."""
        frame, cell, visual = self.placed.frame, self.placed.cell, self.placed.visual
        height, width = self.grid
        if self.order == "row":
            line = (frame * height + cell // width) * (width + 1)
            return torch.where(visual, line + cell % width, line + width)
        return torch.where(visual, frame * height * width + cell, self.frames * height * width)

    def kind(self) -> Tensor:
        """Kinds of the rows [P], on their device."""
        return torch.where(self.placed.visual, VISUAL, NEWLINE)


@dataclass(frozen=True)
class SplicedPrompt:
    """The batch as the language model gets it, padded on the left; kinds, groups and before (prompt tokens as given)
    per sample are without padding."""

    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor
    features: Tensor
    kinds: list[Kinds]
    groups: list[Groups | None]
    before: list[int]
    state: PromptState


def insert_of(placed: Arranged, tokens: int, *, frames: int, grid: tuple[int, int], order: Order) -> Insert:
    """An arranged video of so many ``frames``, of which ``tokens`` tokens were kept."""
    groups = None if placed.group is None else Groups(placed.group, placed.gain)
    return Insert(placed, frames, grid, order, tokens, groups)


def left_pads(mask: Tensor | None, samples: int) -> list[int]:
    """Padding columns per sample of a 2-D mask; BadUsage for right padding, holes, and prompts of padding only."""
    if mask is None:
        return [0] * samples
    if mask.ndim != 2:
        raise BadUsage(f"an attention mask of {mask.ndim} dimensions", fix="give a 2-D mask [batch, columns], or none")
    real = mask.bool()
    if (real[:, :-1] & ~real[:, 1:]).any():
        raise BadUsage(
            "the prompts are padded on the right or in the middle", fix="pad on the left (padding_side='left')"
        )
    if not real.any(1).all():
        raise BadUsage("a prompt of the batch is all padding", fix="leave it out of the batch")
    return (~real).sum(1).tolist()


@dataclass(frozen=True)
class _Row:
    """One prompt, put together on the host [S']; slots: where each of its videos lies in it, half open; last: the
    caller's position number of the last token."""

    ids: Tensor
    kind: Tensor
    number: Tensor
    slots: list[tuple[int, int]]
    last: int


def splice(
    given: GivenPrompt,
    inserts: Sequence[Sequence[Insert]],
    *,
    device: torch.device,
    video_token_id: int,
    pad_id: int,
    positions: Positions,
    layers: int,
) -> SplicedPrompt:
    """Replace the runs of video ids of every prompt by ``inserts`` (one list per sample, one Insert per run).

    positions "contiguous": the new prompt is numbered without gaps; "original": every row keeps the number it would
    have with all of the video's tokens, also where the caller gave fewer placeholders than that.
    """
    width = given.ids.shape[1]
    pads = left_pads(given.mask, len(given.ids))
    numbers = None if given.positions is None else given.positions.expand(len(given.ids), -1)
    rows = []
    for b, pad in enumerate(pads):
        number = torch.arange(width - pad) if numbers is None else numbers[b, pad:]
        rows.append(_row(given.ids[b, pad:], number, inserts[b], video_token_id, positions))
    new_ids, number, ids, kind, last = to_device(
        pad_left([row.ids for row in rows], pad_id),
        pad_left([row.number for row in rows], 0),
        pad_left([torch.arange(len(row.ids)) for row in rows], -1),
        pad_left([row.kind for row in rows], TEXT),
        torch.tensor([row.last for row in rows]),
        like=device,
    )
    view_pads = tuple(number.shape[1] - len(row.ids) for row in rows)
    kinds, groups = [], []
    for b, (row, pad, mine) in enumerate(zip(rows, view_pads, inserts, strict=True)):
        for (start, stop), insert in zip(row.slots, mine, strict=True):
            if positions == "original":
                number[b, pad + start : pad + stop] += insert.origin().to(device)
            if insert.newlines:
                kind[b, pad + start : pad + stop] = insert.kind().to(device)
        shown = (sum(insert.tokens for insert in mine), sum(insert.newlines for insert in mine))
        tail = len(row.ids) - row.slots[-1][1] if row.slots else None
        kinds.append(Kinds(kind[b, pad:], len(row.ids) - sum(shown), *shown, len(row.slots), tail))
        places = [(start, insert.groups, len(insert)) for (start, _), insert in zip(row.slots, mine, strict=True)]
        groups.append(groups_of(len(row.ids), places, device))
    base = View(ids, number, view_pads)
    state = PromptState(
        given=width,
        caller_shift=last - number[:, -1],
        next_position=number[:, -1] + 1,
        base=base,
        kinds=kinds,
        views=[base] * layers,
    )
    mask = base.mask(device).long() if base.padded or positions == "original" else None
    before = [width - pad for pad in pads]
    features = torch.cat([insert.placed.rows for mine in inserts for insert in mine])[None]
    return SplicedPrompt(new_ids, mask, base.positions, features, kinds, groups, before, state)


def _row(row: Tensor, number: Tensor, inserts: Sequence[Insert], video_token_id: int, positions: Positions) -> _Row:
    """One prompt [S] and its position numbers, without padding; "original": the numbers of a video's rows are all that
    of its first one, to which their places among all of its tokens are still to be added."""
    ids, kind, numbered, slots, cursor, drift, length = [], [], [], [], 0, 0, 0
    for (start, stop), insert in zip(video_runs(row, video_token_id), inserts, strict=True):
        begin, size = length + start - cursor, len(insert)
        ids += [row[cursor:start], torch.full((size,), video_token_id)]
        kind += [torch.full((start - cursor,), TEXT), torch.full((size,), VISUAL)]
        numbered += [number[cursor:start] + drift, (number[start] + drift).expand(size)]
        slots.append((begin, begin + size))
        drift += insert.full_length - (stop - start)
        cursor, length = stop, begin + size
    ids.append(row[cursor:])
    kind.append(torch.full((len(row) - cursor,), TEXT))
    numbered.append(number[cursor:] + drift)
    found = torch.cat(numbered)
    if positions == "contiguous":
        found = number[0] + torch.arange(len(found))
    return _Row(torch.cat(ids), torch.cat(kind), found, slots, int(number[-1]))
