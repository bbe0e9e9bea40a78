"""The prompt: every video is reduced, its newlines are placed, and the rows that are left take its place in the prompt.

What a prompt consists of is written down on the host, in one copy per video; only embeddings stay on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from holitom.errors import BadUsage
from holitom.types import Reduction, TokenSet, VideoFeatures

TEXT, VISUAL, NEWLINE = 0, 1, 2
"""Kinds of prompt tokens."""


@dataclass(frozen=True)
class Placed:
    """The rows of one video in the order in which the model reads them, newlines among them.

    rows: [P, D]. On the host: place [P], the place that each row has among the embeddings of the whole video, newlines
    counted; visual [P], False for newlines; group, gain [P] as in the TokenSet (None: no groups), where a newline has
    those of the token before it. full: how many embeddings the whole video has.
    """

    rows: Tensor
    place: Tensor
    visual: Tensor
    full: int
    group: Tensor | None = None
    gain: Tensor | None = None

    def __len__(self) -> int:
        return len(self.place)


def arrange(
    kept: TokenSet, frames: int, grid: tuple[int, int], newline: Tensor | None, order: Literal["end", "row", "none"]
) -> Placed:
    """Put the kept tokens of a video of ``frames`` and the model's newline embedding [D] in the model's order.

    "end" (LLaVA-OneVision): the tokens as the method ordered them, then one newline. "row" (LLaVA-Video): tokens by
    frame and cell, and a newline after every grid row that still holds one, as in HoliTom's release; newlines come on
    top of the budget. "none", or "end" without a newline: the tokens alone. BadUsage for "row" without a newline.
    """
    height, width = grid
    if order == "row":
        if newline is None:
            raise BadUsage("a newline after every row needs the newline embedding", fix="pass it, or use 'none'")
        row = kept.frame * height + kept.cell // width  # of all rows of the video; each has a place for its newline
        place, full = row * (width + 1) + kept.cell % width, frames * height * (width + 1)
        newlines = torch.unique(row) * (width + 1) + width
    else:
        ends = int(order == "end" and newline is not None)
        place, full = kept.frame * (height * width) + kept.cell, frames * height * width + ends
        newlines = place.new_full((ends,), full - ends)
    rows, place = kept.tokens, torch.cat([place, newlines])
    if len(newlines):
        rows = torch.cat([rows, newline.to(rows).expand(len(newlines), -1)])
    visual = torch.arange(len(place)) < len(kept)
    by_place = None
    if order == "row":
        by_place = place.argsort(stable=True)
        rows, place = rows[by_place], place[by_place]
        by_place = by_place.cpu()
        visual = visual[by_place]

    def carried(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        every = torch.cat([values.cpu(), torch.zeros(len(newlines), dtype=values.dtype)])
        every = every if by_place is None else every[by_place]
        return torch.where(visual, every, every.roll(1))

    return Placed(rows, place.cpu(), visual, full, carried(kept.group), carried(kept.gain))


def reduced(video: VideoFeatures, reduction: Reduction, adapter: Any) -> Placed:
    """One video through the outer stage (or whole), with its newlines."""
    outer = reduction.outer
    if outer is None:
        place = torch.arange(video.frames * video.cells, device=video.tokens.device)
        kept = TokenSet(video.tokens.flatten(0, 1), place // video.cells, place % video.cells)
    else:
        missing = [name for name in sorted(outer.requires) if getattr(video, name, None) is None]
        if missing:
            raise BadUsage(
                f"{type(outer).__name__} needs {', '.join(missing)}, which the given features lack",
                fix="take the features from run.encode(...) inside this reduce_tokens block",
            )
        with own_precision(video.tokens.device):
            kept = outer(video, reduction.budget)
    if not len(kept):
        raise BadUsage(f"budget {reduction.budget} leaves no token of {video.frames} frames", fix="raise the budget")
    return arrange(kept, video.frames, video.grid, adapter.newline, adapter.newline_order)


class Held:
    """The tokens of a batch of prompts that one decoder layer holds, padded on the left to one length.

    On the host, per prompt: ids, ascending, into the prompt without padding; numbers, their rotary positions; pads. shift:
    by how much its numbers are smaller here than in the first layer at the end of the prompt (None: nothing renumbered).
    """

    def __init__(self, ids: Sequence[Tensor], numbers: Sequence[Tensor], shift: list[int] | None = None) -> None:
        self.ids, self.numbers, self.shift = list(ids), list(numbers), shift
        self.length = max(map(len, ids))
        self.pads = [self.length - len(row) for row in ids]

    def real(self, batched: Tensor, b: int) -> Tensor:
        """The rows of one prompt without its padding: [B or 1, S, ...] -> [S_b, ...]."""
        return batched[b if len(batched) > 1 else 0, self.pads[b] :]

    def mask(self, new: int = 0) -> Tensor | None:
        """Which slots, and columns ``new`` behind the prompt, are no padding [B, S + new]; None where there is none."""
        if not any(self.pads):
            return None
        return torch.arange(self.length + new) >= torch.tensor(self.pads)[:, None]

    def slots(self, kept: Held) -> Tensor:
        """For every slot of ``kept`` the slot here of the same token [B, S']; 0 for padding."""
        pairs = zip(self.ids, kept.ids, self.pads, strict=True)
        return pad_left([torch.searchsorted(mine, theirs) + pad for mine, theirs, pad in pairs])

    def only(self, kept: Held) -> Held:
        """What is left here when a later layer's tokens alone stay; positions do not change."""
        pairs = zip(self.ids, self.numbers, kept.ids, strict=True)
        return Held(kept.ids, [number[torch.searchsorted(ids, stay)] for ids, number, stay in pairs], self.shift)


@dataclass
class Prompt:
    """A batch of reduced prompts as the language model gets it, padded on the left.

    positions: [B, S], or [1 + axes, B, S] where they are places on a grid (``on_grid``), behind a row that counts; mask:
    [B, S], None where it says nothing; following [B]: the position of the first token behind. On the host, per prompt:
    kind [S_b]; group, gain [S_b], None without groups. base: what enters the first layer; layers: what every decoder
    layer holds of the prompt. times: rows of each prompt, side by side; about: per prompt, for its SampleStats.
    """

    positions: Tensor
    mask: Tensor | None
    following: Tensor
    on_grid: bool
    kind: list[Tensor]
    group: list[Tensor | None]
    gain: list[Tensor | None]
    base: Held
    layers: list[Held]
    about: list[dict[str, Any]] = field(default_factory=list)
    spans: dict[str, Any] = field(default_factory=dict)
    times: int = 1

    def repeated(self, times: int) -> Prompt:
        """Every prompt ``times`` times in a row, as beams and returned sequences repeat it."""

        def each(values: list) -> list:
            return [value for value in values for _ in range(times)]

        base = Held(each(self.base.ids), each(self.base.numbers))
        return replace(
            self,
            positions=self.positions.repeat_interleave(times, -2),
            mask=None if self.mask is None else self.mask.repeat_interleave(times, 0),
            following=self.following.repeat_interleave(times),
            kind=each(self.kind),
            group=each(self.group),
            gain=each(self.gain),
            base=base,
            layers=[base] * len(self.layers),
            times=times,
        )


def splice(
    ids: Tensor,
    mask: Tensor | None,
    embeds: Tensor,
    videos: Sequence[Sequence[Placed]],
    *,
    token: int,
    keeps_places: bool,
    grid: Tensor | None,
    layers: int,
) -> tuple[Tensor, Prompt]:
    """Replace every run of ``token`` in ids [B, S] (on the host) by one of that prompt's ``videos``: embeds [B, S, D] ->
    embeddings of the reduced prompts [B, S', D], and what is to be known of them.

    keeps_places False: the new prompt is numbered without gaps. True: each row keeps the position that it would have
    with all of the video's tokens, however many placeholders stand for it. grid [axes, B, S]: the positions of the
    whole prompt, of which every token keeps its own; they need one placeholder for every embedding of a video.
    """
    pads, device = left_pads(mask, ids), embeds.device
    rows, kinds, numbers, groups, gains = [], [], [], [], []
    for b, pad in enumerate(pads):
        pieces, kind, number, spans, cursor, drift = [], [], [], [], pad, -pad
        for (start, stop), video in zip(runs(ids[b], token), videos[b], strict=True):
            if grid is not None and stop - start != video.full:
                raise BadUsage(
                    f"{stop - start} placeholders for a video of {video.full} tokens, whose positions are read from "
                    "the prompt",
                    fix="give the prompt that the model's own processor makes",
                )
            pieces += [embeds[b, cursor:start], video.rows.to(embeds)]
            kind += [torch.full((start - cursor,), TEXT), torch.where(video.visual, VISUAL, NEWLINE)]
            number += [torch.arange(cursor, start) + drift, video.place + start + drift]
            spans.append((sum(map(len, kind)) - len(video), video))
            cursor, drift = stop, drift + video.full - (stop - start)
        pieces.append(embeds[b, cursor:])
        kind.append(torch.full((ids.shape[1] - cursor,), TEXT))
        number.append(torch.arange(cursor, ids.shape[1]) + drift)
        rows.append(torch.cat(pieces))
        kinds.append(torch.cat(kind))
        numbers.append(torch.cat(number))
        group, gain = _grouped(len(kinds[b]), spans)
        groups.append(group)
        gains.append(gain)
    count = [torch.arange(len(kind)) for kind in kinds]
    if grid is not None:
        columns = pad_left([number + pad for number, pad in zip(numbers, pads, strict=True)]).to(grid.device)
        positions = grid.gather(2, columns.expand(len(grid), -1, -1))
        positions = torch.cat([pad_left(count).to(positions)[None], positions])
        following = positions[1:, :, -1].amax(0) + 1
    else:
        numbers = numbers if keeps_places else count
        positions = pad_left(numbers).to(device)
        following = positions[:, -1] + 1
    base = Held(count, numbers)
    real = base.mask()
    if real is None and (keeps_places or grid is not None):  # gaps without a mask would be read as packed sequences
        real = torch.ones(len(rows), base.length)
    mask = None if real is None else real.long().to(device)
    return pad_left(rows), Prompt(
        positions, mask, following, grid is not None, kinds, groups, gains, base, [base] * layers
    )


def _grouped(length: int, spans: Sequence[tuple[int, Placed]]) -> tuple[Tensor | None, Tensor | None]:
    """Groups and gains of a prompt; videos do not share groups, so numbers move up behind those of the video before.
    -1: no group (text); a video without groups beside one that has some is one group, of gain 0."""
    if all(video.group is None for _, video in spans):
        return None, None
    group, first = torch.full((length,), -1), 0
    gain = torch.zeros(length) if any(video.gain is not None for _, video in spans) else None
    for start, video in spans:
        own = torch.zeros(len(video), dtype=torch.long) if video.group is None else video.group
        own = own + max(0, first - int(own.min()))
        group[start : start + len(video)], first = own, int(own.max()) + 1
        if gain is not None and video.gain is not None:
            gain[start : start + len(video)] = video.gain.float()
    return group, gain


def runs(row: Tensor, token: int) -> list[tuple[int, int]]:
    """Half-open ranges of consecutive ``token`` in one prompt [S] (on the host)."""
    inside = torch.cat([torch.zeros(1, dtype=torch.bool), row == token, torch.zeros(1, dtype=torch.bool)])
    edges = inside.diff().nonzero().flatten().tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def left_pads(mask: Tensor | None, ids: Tensor) -> list[int]:
    """Padding columns of every prompt; BadUsage for right padding, holes, and prompts of padding only."""
    if mask is None:
        return [0] * len(ids)
    if mask.shape != ids.shape:
        raise BadUsage(f"a mask of shape {list(mask.shape)} for ids {list(ids.shape)}", fix="give one column per id")
    real = mask.bool().cpu()
    if (real[:, :-1] & ~real[:, 1:]).any():
        raise BadUsage(
            "the prompts are padded on the right or in the middle", fix="pad on the left (padding_side='left')"
        )
    if not real.any(1).all():
        raise BadUsage("a prompt of the batch is all padding", fix="leave it out of the batch")
    return (~real).sum(1).tolist()


def pad_left(rows: Sequence[Tensor]) -> Tensor:
    """Tensors [S_b, ...] -> [B, max S_b, ...], zeros in front."""
    return pad_sequence(list(rows), batch_first=True, padding_side="left")


def select(batched: Tensor, slots: Tensor, dim: int) -> Tensor:
    """Gather slots [B, S'] of every row from a batched tensor along ``dim`` (dimension 0 is the batch)."""
    slots = slots.to(batched.device)
    if len(slots) == len(batched) == 1:
        return batched.index_select(dim, slots[0])
    shape, target = [1] * batched.ndim, list(batched.shape)
    shape[0], shape[dim] = slots.shape
    target[0], target[dim] = slots.shape
    return batched.expand(len(slots), *batched.shape[1:]).gather(dim, slots.view(shape).expand(target))


def own_precision(device: torch.device) -> AbstractContextManager:
    """For a stage's call: an autocast around the block would round the similarities that it takes in float32."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
