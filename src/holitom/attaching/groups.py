"""The outer stage's groups on their way through the prompt to the stages that choose group by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """Group and gain of tokens in a row: group [n], -1 where a token belongs to none; gain [n] what its group is
    worth (None: no gains)."""

    group: Tensor
    gain: Tensor | None = None

    def __len__(self) -> int:
        return len(self.group)

    def at(self, ids: Tensor) -> Groups:
        """Those of some of the tokens."""
        return Groups(self.group[ids], None if self.gain is None else self.gain[ids])

    def arguments(self, device: torch.device) -> dict[str, Tensor | None]:
        """What a stage that reads groups is called with."""
        return {"group": self.group.to(device), "gain": None if self.gain is None else self.gain.to(device)}


NO_GROUPS: dict[str, Tensor | None] = {"group": None, "gain": None}


def groups_of(
    length: int, placed: Sequence[tuple[int, Groups | None, int]], device: torch.device | str = "cpu"
) -> Groups | None:
    """Groups of a prompt of ``length`` tokens, without padding, on ``device``; None if none of its videos has any.

    placed: per video, where it begins in the prompt, its groups, and how many rows it has. Videos do not share groups:
    numbers are moved up behind those of the video before, and the first video keeps its own. A video without groups,
    beside one that has some, is one group; a group without a gain has the gain 0.
    """
    if all(groups is None for _, groups, _ in placed):
        return None
    group = torch.full((length,), -1, device=device)
    gain = (
        torch.zeros(length, device=device) if any(g is not None and g.gain is not None for _, g, _ in placed) else None
    )
    following = torch.zeros((), dtype=torch.long, device=device)
    for start, groups, rows in placed:
        own = torch.zeros(rows, dtype=torch.long, device=device) if groups is None else groups.group.to(device)
        own = own + (following - own.min()).clamp_min(0)
        group[start : start + rows] = own
        following = own.max() + 1
        if gain is not None and groups is not None and groups.gain is not None:
            gain[start : start + rows] = groups.gain.to(device).float()
    return Groups(group, gain)
