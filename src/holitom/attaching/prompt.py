"""The prompt's seam: runs of video placeholders are replaced by as many as tokens survived, and positions follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from holitom.attaching.groups import Groups, groups_of
from holitom.attaching.views import PromptState, View, pad_left
from holitom.errors import BadUsage
from holitom.layout import Arranged, Order
from holitom.types import Positions

TEXT, VISUAL, NEWLINE = 0, 1, 2
"""Kinds of prompt tokens."""


@dataclass(frozen=True)
class Insert:
    """What one video puts into the prompt: rows [P, D], kind [P] (VISUAL or NEWLINE), origin [P] the index each row had
    among the full_length embeddings of the unreduced video, groups the outer stage's, if it has any; all but the rows
    on the CPU."""

    rows: Tensor
    kind: Tensor
    origin: Tensor
    full_length: int
    groups: Groups | None = None


@dataclass(frozen=True)
class SplicedPrompt:
    """The batch as the language model gets it, padded on the left; kinds (CPU), groups and before (prompt tokens as
    given) per sample are without padding."""

    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor
    features: Tensor
    kinds: list[Tensor]
    groups: list[Groups | None]
    before: list[int]
    state: PromptState


def insert_of(placed: Arranged, *, frames: int, grid: tuple[int, int], order: Order) -> Insert:
    """An arranged video, with the index of each row among the embeddings of the unreduced one."""
    height, width = grid
    frame, cell, visual = placed.frame.cpu(), placed.cell.cpu(), placed.visual.cpu()
    if order == "row":
        line = (frame * height + cell // width) * (width + 1)
        origin, full = torch.where(visual, line + cell % width, line + width), frames * height * (width + 1)
    else:
        tokens = frames * height * width
        origin, full = torch.where(visual, frame * height * width + cell, tokens), tokens + (order == "end")
    groups = None
    if placed.group is not None:
        groups = Groups(placed.group.cpu(), None if placed.gain is None else placed.gain.cpu())
    return Insert(placed.rows, torch.where(visual, VISUAL, NEWLINE), origin, full, groups)


def video_runs(row: Tensor, video_token_id: int) -> list[tuple[int, int]]:
    """Half-open ranges of consecutive video ids in one prompt [S] (on the CPU)."""
    is_video = torch.cat([torch.zeros(1, dtype=torch.bool), row == video_token_id, torch.zeros(1, dtype=torch.bool)])
    edges = (is_video[1:] != is_video[:-1]).nonzero().flatten().tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def left_pads(mask: Tensor | None, samples: int) -> list[int]:
    """Padding columns per sample of a 2-D mask; BadUsage for right padding or holes."""
    if mask is None:
        return [0] * samples
    if mask.ndim != 2:
        raise BadUsage(f"an attention mask of {mask.ndim} dimensions", fix="give a 2-D mask [batch, columns], or none")
    real = mask.bool()
    if (real[:, :-1] & ~real[:, 1:]).any():
        raise BadUsage(
            "the prompts are padded on the right or in the middle", fix="pad on the left (padding_side='left')"
        )
    return (~real).sum(1).tolist()


def splice(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    inserts: Sequence[Sequence[Insert]],
    *,
    video_token_id: int,
    pad_id: int,
    positions: Positions,
    layers: int,
) -> SplicedPrompt:
    """Replace the runs of video ids of every prompt by ``inserts`` (one list per sample, one Insert per run).

    positions "contiguous": the new prompt is numbered without gaps; "original": every row keeps the number it would
    have with all of the video's tokens, also where the caller gave fewer placeholders than that.
    """
    device, ids, width = input_ids.device, input_ids.cpu(), input_ids.shape[1]
    pads = left_pads(None if attention_mask is None else attention_mask.cpu(), len(ids))
    given = None if position_ids is None else position_ids.cpu().expand(len(ids), -1)
    new_ids, new_positions, kinds, groups, shifts = [], [], [], [], []
    for b, pad in enumerate(pads):
        row = ids[b, pad:]
        number = torch.arange(width - pad) if given is None else given[b, pad:]
        parts, kind, place, placed, cursor, drift = [], [], [], [], 0, 0
        for (start, stop), insert in zip(video_runs(row, video_token_id), inserts[b], strict=True):
            placed.append((sum(map(len, parts)) + start - cursor, insert.groups, len(insert.kind)))
            parts += [row[cursor:start], torch.full((len(insert.kind),), video_token_id)]
            kind += [torch.full((start - cursor,), TEXT), insert.kind]
            place += [number[cursor:start] + drift, number[start] + drift + insert.origin]
            drift += insert.full_length - (stop - start)
            cursor = stop
        parts.append(row[cursor:])
        kind.append(torch.full((len(row) - cursor,), TEXT))
        place.append(number[cursor:] + drift)
        numbered = torch.cat(place)
        if positions == "contiguous":
            numbered = number[0] + torch.arange(len(numbered))
        new_ids.append(torch.cat(parts))
        new_positions.append(numbered)
        kinds.append(torch.cat(kind))
        groups.append(groups_of(len(kinds[-1]), placed))
        shifts.append(int(number[-1] - numbered[-1]))
    base = View.of([torch.arange(len(r)) for r in new_ids], new_positions)
    base = View(base.ids.to(device), base.positions.to(device), base.pads)
    state = PromptState(
        given=width,
        caller_shift=torch.tensor(shifts, device=device),
        next_position=torch.tensor([int(p[-1]) + 1 for p in new_positions], device=device),
        base=base,
        visual=[(k == VISUAL).nonzero().flatten() for k in kinds],
        views=[base] * layers,
    )
    gaps = positions == "original"
    mask = base.mask(device).long() if base.padded or gaps else None
    before = [width - pad for pad in pads]
    features = torch.cat([insert.rows for sample in inserts for insert in sample])[None]
    new_ids = pad_left(new_ids, pad_id).to(device)
    return SplicedPrompt(new_ids, mask, base.positions, features, kinds, groups, before, state)
