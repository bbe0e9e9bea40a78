"""HoliTom's inner stage: once, at one layer of the language model, half of the visual tokens are folded into the other
half. Facts about the release: cokeshao/HoliTom at e9b2972, holitom/modeling_qwen2.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holitom.errors import BadUsage
from holitom.methods.inner import check_stage, kept_visual, surviving
from holitom.methods.scored import finite_states
from holitom.ops.merging import Average, fold_into
from holitom.ops.similarity import nearest_row
from holitom.types import Fidelity, Positions


@dataclass(frozen=True)
class HoliTomMerge:
    """Keep the visual tokens that the last prompt token attends to most; fold each other one into its nearest kept one.

    layer: first layer that sees the shorter sequence (the paper's K, 18 of 28 for 7B); ratio: share of visual tokens
    folded away (its R); round(V * (1 - ratio)) stay, half to even as in the release, at least one.
    average "running": the release's repeated halving in ascending order, so that the last folded token weighs one
    half; "mean": a true mean of each group. Nearness is the cosine of the states before merging, in float32.
    causal False and include_newlines True: what the release does (layer - 1 attends without a causal mask in prefill,
    and newline embeddings are visual tokens that may be folded). The defaults follow the paper's text.
    """

    layer: int
    ratio: float
    average: Average = "running"
    causal: bool = True
    include_newlines: bool = False

    score: ClassVar[Literal["prev"]] = "prev"
    query: ClassVar[Literal["last"]] = "last"
    positions: ClassVar[Positions] = "original"
    prune_past: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_stage(self.layer, self.ratio)
        if self.average not in ("running", "mean"):
            raise BadUsage(f"average={self.average!r} is unknown", fix="choose from running, mean")

    @property
    def fidelity(self) -> Fidelity:
        released = self.average == "running" and not self.causal and self.include_newlines
        return "golden" if released else "port"

    @property
    def identity(self) -> bool:
        """Whether these parameters ask for nothing."""
        return self.ratio == 0

    def __call__(
        self, hidden: Float[Tensor, "seq dim"], score: Float[Tensor, " seq"], visual: Int[Tensor, " visual"], n0: int
    ) -> tuple[Int[Tensor, " kept"], Float[Tensor, "kept dim"]]:
        """hidden [S, D] entering ``layer``, score [S] (mean over heads), visual: ascending ids -> (ids [S'], rows).
        Raises BadUsage for a NaN in the visual tokens' scores or states."""
        kept = kept_visual(self, score, visual)
        if kept.shape[0] == visual.shape[0]:
            return torch.arange(hidden.shape[0], device=hidden.device), hidden
        rows = hidden.index_select(0, visual)
        owner = torch.arange(rows.shape[0], device=rows.device)
        folded = surviving(rows.shape[0], kept, kept[:0])
        likeness, nearest = nearest_row(rows, folded, kept)
        finite_states(self, likeness)
        owner[folded] = kept[nearest]
        merged = fold_into(rows, owner, kept, self.average).to(hidden.dtype)
        ids = surviving(hidden.shape[0], visual, kept)
        out = hidden.index_select(0, ids)
        out[torch.searchsorted(ids, visual[kept])] = merged
        return ids, out
