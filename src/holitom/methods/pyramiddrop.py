"""PyramidDrop (arXiv 2410.17247): drop visual tokens stage by stage, half of them at each of a few layers.
Facts about the release: Cooperx521/PyramidDrop at 6444f30, llava/model/modeling_llama_pdrop.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holitom.errors import BadUsage
from holitom.methods.inner import surviving
from holitom.methods.scored import check_keep, finite_scores
from holitom.ops.selection import keep_count, topk_ids
from holitom.types import Fidelity, Positions

_DEVIATIONS = (
    "The clean reading keeps the rotary positions; the release renumbers what is left from 0 at every stage.",
    "The clean reading protects newline embeddings; in the release they are visual tokens that can be dropped.",
    "Works under grouped-query attention, where the release's ranking fails; at least one token stays.",
    "The scores are of the layer about to run, for the last prompt token alone, never an S x S map.",
)


@dataclass(frozen=True)
class PyramidDropStage:
    """One stage: from ``layer`` on, int(n0 * ratio) visual tokens stay, n0 counted when prefill began.

    The score is the attention of the last prompt token in ``layer`` itself, computed ahead from its projections, mean
    over heads; the highest stay, in their order. released True: positions are renumbered, newlines count as visual.
    """

    layer: int
    ratio: float
    released: bool = False

    score: ClassVar[Literal["this"]] = "this"
    query: ClassVar[Literal["last"]] = "last"
    prune_past: ClassVar[bool] = False
    causal: ClassVar[bool] = True
    deviations: ClassVar[tuple[str, ...]] = _DEVIATIONS

    def __post_init__(self) -> None:
        check_keep(self.layer, self.ratio, "ratio")

    @property
    def positions(self) -> Positions:
        return "contiguous" if self.released else "original"

    @property
    def include_newlines(self) -> bool:
        return self.released

    @property
    def fidelity(self) -> Fidelity:
        return "golden" if self.released else "port"

    @property
    def identity(self) -> bool:
        """Whether these parameters ask for nothing."""
        return self.ratio == 1

    def __call__(
        self, hidden: Float[Tensor, "seq dim"], score: Float[Tensor, " seq"], visual: Int[Tensor, " visual"], n0: int
    ) -> tuple[Int[Tensor, " kept"], Float[Tensor, "kept dim"]]:
        """hidden [S, D] entering ``layer``, score [S], visual: ascending ids -> (ids [S'] ascending, hidden[ids])."""
        wanted = max(1, keep_count(n0, self.ratio, "floor"))
        if wanted >= visual.shape[0]:
            return torch.arange(hidden.shape[0], device=hidden.device), hidden
        kept = topk_ids(finite_scores(self, score[visual]), wanted)
        ids = surviving(hidden.shape[0], visual, kept)
        return ids, hidden[ids]


@dataclass(frozen=True)
class PyramidDrop:
    """The schedule: ``inner=PyramidDrop().stages()`` (or ``[*PyramidDrop()]``) gives one stage per layer.

    layers: the first layer that sees fewer tokens, per stage; ratios: share of the visual tokens at the start of
    prefill that is left from there on. The default is what the FLOPs of HoliTom's tables need (10.5 and 19.5 T on
    28 layers; (2, 8, 12) fits too); the paper's own for 32 layers is layers (8, 16, 24).
    """

    layers: tuple[int, ...] = (2, 7, 14)
    ratios: tuple[float, ...] = (0.5, 0.25, 0.125)
    released: bool = False

    deviations: ClassVar[tuple[str, ...]] = _DEVIATIONS

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.ratios) or not self.layers:
            raise BadUsage(f"{len(self.layers)} layers for {len(self.ratios)} ratios", fix="give one ratio per layer")
        if list(self.layers) != sorted(set(self.layers)) or list(self.ratios) != sorted(self.ratios, reverse=True):
            raise BadUsage(
                f"layers {self.layers} with ratios {self.ratios} are no pyramid",
                fix="layers ascend, and the share that is left never grows",
            )
        self.stages()

    def stages(self) -> tuple[PyramidDropStage, ...]:
        return tuple(
            PyramidDropStage(layer, ratio, self.released) for layer, ratio in zip(self.layers, self.ratios, strict=True)
        )

    def __iter__(self) -> Iterator[PyramidDropStage]:
        return iter(self.stages())
