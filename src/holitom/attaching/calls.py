"""One forward of the language model over a reduced prompt, as its layers' hooks share it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from holitom.attaching.groups import Groups
from holitom.attaching.kinds import Kinds
from holitom.attaching.views import PromptState


@dataclass(eq=False)
class Call:
    """Prefill of a reduced prompt, or a later call on the cache that holds it.

    kinds: in prefill, what every token that is still there is, per sample without padding; initial: the same
    before the first layer; kinds_per_layer: the same as it entered every layer so far; groups: the outer stage's, for
    the tokens of kinds. Later calls: positions [B, q] of this call's tokens in the language model's numbering, ``new``
    columns behind the prompt (this call's included), new_mask [B, new] where some of them are padding, unread: per
    sample, ids that a decode stage leaves unread; reads: slots that are left to read, and the
    mask for them, per layout of a layer; masks: of layers that read everything; rotary: embeddings of
    the positions that a layer holds, by its view of the prompt."""

    state: PromptState
    prefill: bool
    kinds: list[Kinds] = field(default_factory=list)
    initial: list[Kinds] = field(default_factory=list)
    kinds_per_layer: list[list[Kinds]] = field(default_factory=list)
    groups: list[Groups | None] = field(default_factory=list)
    scores: dict[int, list[Tensor | None]] = field(default_factory=dict)
    positions: Tensor | None = None
    new: int = 0
    new_mask: Tensor | None = None
    unread: list[Tensor | None] | None = None
    reads: dict[Any, tuple[Tensor, Any]] = field(default_factory=dict)
    masks: dict[Any, Any] = field(default_factory=dict)
    rotary: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def new_columns(self, device: torch.device) -> Tensor:
        """Which columns behind the prompt may be attended to [B, new]."""
        if self.new_mask is None:
            return torch.ones(self.state.samples, self.new, dtype=torch.bool, device=device)
        return self.new_mask.to(device).bool()
