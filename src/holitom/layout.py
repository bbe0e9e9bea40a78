"""Newline embeddings around a reduced token set: how the visual part of the prompt is laid out, by model family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holitom.errors import BadUsage
from holitom.types import TokenSet

Order = Literal["end", "row", "none"]


@dataclass(frozen=True)
class Arranged:
    """The rows that enter the prompt, newlines among them.

    rows: [P, D]; visual: [P] False for newlines; frame, cell: [P] the place of each row. A newline carries the frame
    and the last cell of the grid row it closes; a single closing newline those of the last token's frame. group, gain:
    [P] as in the TokenSet (None: no groups); a newline has those of the token before it.
    """

    rows: Float[Tensor, "placed dim"]
    visual: Bool[Tensor, " placed"]
    frame: Int[Tensor, " placed"]
    cell: Int[Tensor, " placed"]
    group: Int[Tensor, " placed"] | None = None
    gain: Float[Tensor, " placed"] | None = None

    def __len__(self) -> int:
        return self.rows.shape[0]


def arrange(
    kept: TokenSet, grid: tuple[int, int], newline: Float[Tensor, " dim"] | None, order: Order = "end"
) -> Arranged:
    """Place the tokens of one video, and the model's newline embedding, in the order in which the model reads them.

    "end" (LLaVA-OneVision): the tokens as the method ordered them, then one newline. "row" (LLaVA-Video): tokens sorted
    by frame and cell, and a newline after every grid row that still holds a token, as in HoliTom's release; these
    newlines come on top of the budget. One copy to the host (the number of such rows). "none", or newline None with
    "end": the tokens alone. Raises BadUsage for an unknown order, and for "row" without a newline.
    """
    if order not in ("end", "row", "none"):
        raise BadUsage(f"newline order {order!r} is unknown", fix="choose from end, row, none")
    if order == "row":
        if newline is None:
            raise BadUsage("a newline after every row needs the newline embedding", fix="pass it, or use order='none'")
        return _rows(kept, grid, newline)
    visual = torch.ones(len(kept), dtype=torch.bool, device=kept.tokens.device)
    plain = Arranged(kept.tokens, visual, kept.frame, kept.cell, kept.group, kept.gain)
    if order == "none" or newline is None:
        return plain
    last = kept.frame.amax().expand(1) if len(kept) else kept.frame.new_zeros(1)
    visual = torch.cat([visual, visual.new_zeros(1)])
    return Arranged(
        torch.cat([kept.tokens, newline.to(kept.tokens)[None]]),
        visual,
        torch.cat([kept.frame, last]),
        torch.cat([kept.cell, last.new_full((1,), grid[0] * grid[1] - 1)]),
        _with_newlines(kept.group, visual),
        _with_newlines(kept.gain, visual),
    )


def _rows(kept: TokenSet, grid: tuple[int, int], newline: Tensor) -> Arranged:
    height, width = grid
    row = kept.frame * height + kept.cell // width  # grid rows numbered through the video
    lines = torch.unique(row)
    # With width + 1 places a row, a newline takes the one after the last cell.
    key = torch.cat([row * (width + 1) + kept.cell % width, lines * (width + 1) + width])
    by_place = torch.argsort(key, stable=True)
    source = torch.cat([kept.tokens, newline.to(kept.tokens).expand(len(lines), -1)])
    frame = torch.cat([kept.frame, lines // height])
    cell = torch.cat([kept.cell, lines % height * width + width - 1])
    visual = by_place < len(kept)
    group, gain = (_with_newlines(values, visual, by_place) for values in (kept.group, kept.gain))
    return Arranged(source[by_place], visual, frame[by_place], cell[by_place], group, gain)


def _with_newlines(values: Tensor | None, visual: Tensor, by_place: Tensor | None = None) -> Tensor | None:
    """Values of the tokens [M] -> of the placed rows [P], a newline's being those of the row before it."""
    if values is None:
        return None
    every = torch.cat([values, values.new_zeros(len(visual) - len(values))])
    every = every if by_place is None else every[by_place]
    return torch.where(visual, every, every.roll(1))
