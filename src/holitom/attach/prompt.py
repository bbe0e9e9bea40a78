"""The prompt: every video is reduced, its newlines are placed, and what is left takes its place among the embeddings.

What a prompt consists of is written down on the host, in one copy per video; embeddings stay on their device.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from holitom.errors import BadUsage
from holitom.types import Reduction, TokenSet, VideoFeatures

TEXT, VISUAL, NEWLINE = 0, 1, 2
"""Kinds of prompt tokens."""


@dataclass(frozen=True)
class Placed:
    """The rows [P, D] of one video in the order in which the model reads them, newlines among them.

    On the host: place [P], the place of each row among the embeddings of the whole video, newlines counted; visual [P],
    False for newlines; group, gain [P] as in the TokenSet (None: no groups), where a newline has those of the token
    before it. full: how many embeddings the whole video has.
    """

    rows: Tensor
    place: Tensor
    visual: Tensor
    full: int
    group: Tensor | None = None
    gain: Tensor | None = None


def arrange(kept: TokenSet, frames: int, grid: tuple[int, int], newline: Tensor | None, order: str) -> Placed:
    """Put the kept tokens of a video and the model's newline embedding [D] in the model's order.

    "end" (LLaVA-OneVision): the tokens as the method ordered them, then one newline. "row" (LLaVA-Video): tokens by
    frame and cell, and a newline after every grid row that still holds one, as in HoliTom's release; these newlines
    come on top of the budget. "none", or "end" without a newline: the tokens alone.
    """
    height, width = grid
    if order == "row":
        row = kept.frame * height + kept.cell // width  # each row of the video has one place more, for its newline
        place, full = row * (width + 1) + kept.cell % width, frames * height * (width + 1)
        newlines = torch.unique(row) * (width + 1) + width
    else:
        full = frames * height * width + (order == "end" and newline is not None)
        place = kept.frame * (height * width) + kept.cell
        newlines = torch.arange(frames * height * width, full, device=place.device)
    rows, place = kept.tokens, torch.cat([place, newlines])
    if len(newlines):
        rows = torch.cat([rows, newline.to(rows).expand(len(newlines), -1)])
    source = torch.arange(len(place), device=place.device)
    if order == "row":
        source = place.argsort(stable=True)
        rows, place = rows[source], place[source]
    place, source = torch.stack([place, source]).cpu()
    visual = source < len(kept)

    def carried(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        every = torch.cat([values.cpu(), values.cpu().new_zeros(len(newlines))])[source]
        return torch.where(visual, every, every.roll(1))

    return Placed(rows, place, visual, full, carried(kept.group), carried(kept.gain))


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


@dataclass(frozen=True)
class Row:
    """The tokens of one prompt, without padding: kind [n]; group, gain [n] of the outer stage (None: no groups)."""

    kind: Tensor
    group: Tensor | None = None
    gain: Tensor | None = None

    def __getitem__(self, ids: Tensor) -> Row:
        return Row(*(None if values is None else values[ids] for values in (self.kind, self.group, self.gain)))

    def may_go(self, stage: Any) -> Tensor:
        """Which tokens a stage may drop: visual ones, and newlines where it counts them as such."""
        return self.kind != TEXT if stage.include_newlines else self.kind == VISUAL


@dataclass(eq=False)
class Held:
    """The tokens of a batch of prompts that one decoder layer holds, padded on the left to one length S.

    ids: per prompt, ascending, into the prompt without padding; positions [..., B, S]: the rotary ones; shift [B]: by
    how much these are smaller than the first layer's at the end of the prompt (None: nothing was renumbered).
    """

    ids: list[Tensor]
    positions: Tensor
    shift: Tensor | None = None

    def __post_init__(self) -> None:
        self.length = max(map(len, self.ids))
        self.pads = [self.length - len(row) for row in self.ids]

    def real(self, batched: Tensor, b: int) -> Tensor:
        """The rows of one prompt without its padding: [B or 1, S, ...] -> [S_b, ...]."""
        return batched[b if len(batched) > 1 else 0, self.pads[b] :]

    def mask(self, behind: int = 0) -> Tensor | None:
        """Which slots, and columns behind the prompt, are no padding [B, S + behind]; None where there is none."""
        if not any(self.pads):
            return None
        return torch.arange(self.length + behind) >= torch.tensor(self.pads)[:, None]

    def slots(self, ids: Sequence[Tensor]) -> Tensor:
        """The slots of some tokens, ascending per prompt: [B, S'], padded on the left with 0."""
        rows = zip(self.ids, ids, self.pads, strict=True)
        return pad_left([torch.searchsorted(mine, some) + pad for mine, some, pad in rows])

    def kept(self, ids: list[Tensor]) -> Held:
        """What is left here when these tokens alone stay, at their positions."""
        slots = self.slots(ids)
        return Held(ids, self.positions.gather(-1, slots.expand(*self.positions.shape[:-1], -1)), self.shift)


@dataclass
class Prompt:
    """A batch of reduced prompts as the language model gets it, padded on the left.

    mask [B, S], None where it says nothing; positions [B, S], or [1 + axes, B, S] where they are places on a grid,
    behind a row that counts; following [B]: those of the first token behind. base: what enters the first layer; layers:
    what every decoder layer holds. samples, seconds: for the statistics, one sample per prompt (None without video).
    """

    rows: list[Row]
    mask: Tensor | None
    positions: Tensor
    following: Tensor
    base: Held
    layers: list[Held]
    samples: list[Any] = field(default_factory=list)
    seconds: dict[str, Any] = field(default_factory=dict)

    @property
    def on_grid(self) -> bool:
        return self.positions.ndim == 3

    def repeated(self, times: int) -> Prompt:
        """Every prompt ``times`` times in a row, as generation repeats it for beams and returned sequences."""
        rows, ids = ([value for value in values for _ in range(times)] for values in (self.rows, self.base.ids))
        base = Held(ids, self.base.positions.repeat_interleave(times, -2))
        following = self.following.repeat_interleave(times)
        return replace(self, rows=rows, following=following, base=base, layers=[base] * len(self.layers))


def splice(
    ids: Tensor,
    embeds: Tensor,
    pads: Sequence[int],
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
    spliced, rows, numbers = [], [], []
    for b, pad in enumerate(pads):
        pieces, kind, number, spans, cursor, drift = [], [], [], [], pad, -pad
        for (start, stop), video in zip(runs(ids[b], token), videos[b], strict=True):
            if grid is not None and stop - start != video.full:
                raise BadUsage(
                    f"{stop - start} placeholders for a video of {video.full} tokens, whose positions the prompt tells",
                    fix="give the prompt that the model's own processor makes",
                )
            pieces += [embeds[b, cursor:start], video.rows.to(embeds)]
            kind += [torch.full((start - cursor,), TEXT), torch.where(video.visual, VISUAL, NEWLINE)]
            number += [torch.arange(cursor, start) + drift, video.place + start + drift]
            spans.append((sum(map(len, kind)) - len(video.place), video))
            cursor, drift = stop, drift + video.full - (stop - start)
        spliced.append(torch.cat([*pieces, embeds[b, cursor:]]))
        kinds = torch.cat([*kind, torch.full((ids.shape[1] - cursor,), TEXT)])
        rows.append(Row(kinds, *_grouped(len(kinds), spans)))
        numbers.append(torch.cat([*number, torch.arange(cursor, ids.shape[1]) + drift]))
    count = [torch.arange(len(number)) for number in numbers]
    positions = pad_left(numbers if keeps_places or grid is not None else count)
    if grid is not None:
        columns = positions + torch.tensor(pads)[:, None]
        places = grid.cpu().gather(2, columns.expand(len(grid), -1, -1))
        positions = torch.cat([pad_left(count)[None], places])
    base = Held(count, positions if grid is None else places)
    mask = base.mask()
    if mask is None and (keeps_places or grid is not None):  # gaps without a mask would be read as packed sequences
        mask = torch.ones(len(rows), base.length)
    mask = None if mask is None else mask.long().to(embeds.device)
    positions = positions.to(embeds.device)
    following = positions[..., -1] + 1 if grid is None else positions[1:, :, -1].amax(0) + 1
    return pad_left(spliced), Prompt(rows, mask, positions, following, base, [base] * layers)


def _grouped(length: int, spans: Sequence[tuple[int, Placed]]) -> tuple[Tensor | None, Tensor | None]:
    """Groups and gains of a prompt; videos do not share groups, so numbers move up behind those of the video before.
    -1: no group (text); a video without groups beside one that has some is one group, of gain 0."""
    if all(video.group is None for _, video in spans):
        return None, None
    group, gain, first = torch.full((length,), -1), torch.zeros(length), 0
    for start, video in spans:
        span = slice(start, start + len(video.place))
        own = torch.zeros(len(video.place), dtype=torch.long) if video.group is None else video.group
        group[span] = own + max(0, first - int(own.min()))
        first = int(group[span].max()) + 1
        gain[span] = 0.0 if video.gain is None else video.gain.float()
    return group, None if all(video.gain is None for _, video in spans) else gain


def runs(row: Tensor, token: int) -> list[tuple[int, int]]:
    """Half-open ranges of consecutive ``token`` in one prompt [S] (on the host)."""
    edges = torch.nn.functional.pad(row == token, (1, 1)).diff().nonzero().flatten().tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def left_pads(mask: Tensor | None, ids: Tensor) -> list[int]:
    """Padding columns of every prompt; BadUsage for right padding, holes, and prompts of padding only."""
    if mask is None:
        return [0] * len(ids)
    if mask.shape != ids.shape:
        raise BadUsage(f"a mask of shape {list(mask.shape)} for ids {list(ids.shape)}", fix="give one column per id")
    real = mask.bool().cpu()
    if (real[:, :-1] & ~real[:, 1:]).any() or not real[:, -1].all():
        raise BadUsage(
            "a prompt is padded on the right or in the middle, or is all padding",
            fix="pad on the left (padding_side='left'), and leave empty prompts out",
        )
    return (~real).sum(1).tolist()


def pad_left(rows: Sequence[Tensor]) -> Tensor:
    """Tensors [S_b, ...] -> [B, max S_b, ...], zeros in front."""
    return pad_sequence(list(rows), batch_first=True, padding_side="left")


def own_precision(device: torch.device) -> AbstractContextManager:
    """For a stage's call: an autocast around the block would round the similarities that it takes in float32."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
