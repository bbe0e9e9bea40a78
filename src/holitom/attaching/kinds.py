"""What the tokens of a prompt are: text, visual, newlines; and how many of each, without asking the device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from holitom.ops.selection import mask_ids
from holitom.types import Inner

TEXT, VISUAL, NEWLINE = 0, 1, 2
"""Kinds of prompt tokens."""


@dataclass(frozen=True, eq=False)
class Kinds:
    """The tokens of one prompt without padding. kind [n], on the prompt's device; text, visual, newlines: how many of
    each (a tensor [] where only the device knows); runs: how many videos there are; tail: text tokens behind the last
    one, None where only the device knows."""

    kind: Tensor
    text: int
    visual: int | Tensor
    newlines: int | Tensor
    runs: int
    tail: int | None

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def visual_ids(self) -> Tensor:
        """Ids of the visual tokens, ascending."""
        return mask_ids(self.kind == VISUAL, int(self.visual))

    def candidates(self, stage: Inner) -> int:
        """How many tokens the stage may drop: visual ones, and newlines where it counts them as such."""
        return len(self) - self.text if stage.include_newlines else int(self.visual)

    def candidate_ids(self, stage: Inner) -> Tensor:
        """Their ids, ascending."""
        if stage.include_newlines:
            return mask_ids(self.kind != TEXT, len(self) - self.text)
        return self.visual_ids

    def behind_video(self) -> int:
        """Id of the first token behind the last video; there must be one."""
        if self.tail is not None:
            return len(self) - self.tail
        return int(mask_ids(self.kind != TEXT, len(self) - self.text)[-1]) + 1

    def after(self, stage: Inner, kept: Tensor) -> Kinds:
        """What is left when a stage has kept these ids, all text among them."""
        kind = self.kind[kept]
        tail = self.tail if self.runs == 1 else None  # of several videos the last may be gone
        unread = replace(self, kind=kind, tail=tail)
        shown = len(kind) - self.text
        if not stage.include_newlines:
            return replace(unread, visual=shown - self.newlines)
        if isinstance(self.newlines, int) and not self.newlines:
            return replace(unread, visual=shown)
        newlines = (kind == NEWLINE).sum()
        newlines = int(newlines) if kind.device.type == "cpu" else newlines
        return replace(unread, visual=shown - newlines, newlines=newlines)

    def lost(self, stage: Inner, kept: Tensor) -> Tensor:
        """How many of the tokens that the stage may not drop are not among these ascending ids: a number []."""
        may_go = self.kind != TEXT if stage.include_newlines else self.kind == VISUAL
        return len(self) - self.candidates(stage) - (~may_go[kept]).sum()


def video_runs(row: Tensor, video_token_id: int) -> list[tuple[int, int]]:
    """Half-open ranges of consecutive video ids in one prompt [S] (on the CPU)."""
    is_video = torch.cat([torch.zeros(1, dtype=torch.bool), row == video_token_id, torch.zeros(1, dtype=torch.bool)])
    edges = (is_video[1:] != is_video[:-1]).nonzero().flatten().tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
