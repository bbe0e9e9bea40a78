"""PruneVid's selection inside the language model (arXiv 2412.16117): keep the visual tokens that some word of the
question attends to, in every layer's cache. Written from a description of Visual-AI/PruneVid at b12600c (CC-BY-NC-SA,
of which no line is used here)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from holitom.methods.inner import surviving
from holitom.methods.scored import check_keep, finite_scores
from holitom.ops.segment_budgets import padded_groups
from holitom.ops.selection import apportion, keep_count, mask_ids, top_per_row
from holitom.types import Fidelity, Positions


@dataclass(frozen=True)
class PruneVidSelect:
    """Keep a share ``alpha`` of the visual tokens from ``layer`` on, and drop the others from earlier caches too.

    layer: first layer that sees fewer tokens; the release selects after its layer 10, counted from 0, which is 11 here.
    A token's score is the largest attention that any prompt token behind the video pays to it in any head of
    layer - 1. Selection is per group: the static tokens of a window, the dynamic tokens of a frame, as PruneVid's
    TokenSet names them; behind another outer stage, or none, all visual tokens are one group.
    The clean reading keeps round(alpha * V) tokens, shared among the groups by largest remainder; ``released``:
    int(alpha * n) of each group. At least one token stays.
    """

    layer: int = 11
    alpha: float = 0.4
    released: bool = False

    score: ClassVar[Literal["prev"]] = "prev"
    query: ClassVar[Literal["text"]] = "text"
    positions: ClassVar[Positions] = "original"
    prune_past: ClassVar[bool] = True
    causal: ClassVar[bool] = True
    include_newlines: ClassVar[bool] = False
    reads_groups: ClassVar[bool] = True
    fidelity: ClassVar[Fidelity] = "port"
    deviations: ClassVar[tuple[str, ...]] = (
        "Written from a description of the code for PLLaVA; no golden data exist for this stage.",
        "Clean reading: the total is exact; the release rounds down in every group (released=True).",
        "Without groups from PruneVid's merging stage all visual tokens compete with each other.",
        "Batches work; the release takes one video at a time.",
    )

    def __post_init__(self) -> None:
        check_keep(self.layer - 1, self.alpha, "alpha")  # the score comes from the layer before

    @property
    def identity(self) -> bool:
        """Whether these parameters ask for nothing."""
        return self.alpha == 1

    def __call__(
        self,
        hidden: Float[Tensor, "seq dim"],
        score: Float[Tensor, "heads rows seq"],
        visual: Int[Tensor, " visual"],
        n0: int,
        group: Int[Tensor, " visual"] | None = None,
        gain: Float[Tensor, " visual"] | None = None,
    ) -> tuple[Int[Tensor, " kept"], Float[Tensor, "kept dim"]]:
        """hidden [S, D] entering ``layer``, score [heads, text rows, S], visual: ascending ids, group [V] -> (ids [S']
        ascending, hidden[ids]). One copy of the groups to the host."""
        tokens = visual.shape[0]
        best = finite_scores(self, score.amax((0, 1))[visual])
        labels = np.zeros(tokens, dtype=np.int64) if group is None else group.cpu().numpy()
        ids, valid, sizes = padded_groups(labels)
        if self.released:
            keep = np.array([keep_count(int(n), self.alpha, "floor") for n in sizes])
            if not keep.sum():
                keep[np.argmax(sizes)] = 1
        else:
            keep = apportion(sizes, max(1, round(self.alpha * tokens)))
        if keep.sum() == tokens:
            return torch.arange(hidden.shape[0], device=hidden.device), hidden
        ids, valid = (torch.from_numpy(a).to(visual.device) for a in (ids, valid))
        rivals = best[ids].masked_fill_(~valid, -torch.inf)
        chosen = top_per_row(rivals, torch.from_numpy(keep).to(visual.device)) & valid
        mask = torch.zeros(tokens + 1, dtype=torch.bool, device=visual.device)
        mask[torch.where(chosen, ids, tokens)] = True  # padding and the others fall on the spare place
        kept = surviving(hidden.shape[0], visual, mask_ids(mask[:tokens], int(keep.sum())))
        return kept, hidden[kept]
