"""FastV (arXiv 2403.06764): after an early layer, drop the visual tokens that the last prompt token hardly attends to.
Facts about the release: pkunlp-icler/FastV at d165972, the llava-hf port's modeling_llama.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor

from holitom.methods.inner import check_stage, kept_visual, surviving
from holitom.types import Fidelity, Positions


@dataclass(frozen=True)
class FastV:
    """Keep round(V * (1 - ratio)) visual tokens (at least one) from ``layer`` on, with their original positions.

    layer: first layer that sees the shorter sequence (K = 2 in HoliTom's tables); ratio: share dropped (0.8 there).
    The score is the last prompt row of layer - 1, mean over heads.
    """

    layer: int = 2
    ratio: float = 0.5

    score: ClassVar[Literal["prev"]] = "prev"
    query: ClassVar[Literal["last"]] = "last"
    positions: ClassVar[Positions] = "original"
    prune_past: ClassVar[bool] = False
    causal: ClassVar[bool] = True
    include_newlines: ClassVar[bool] = False
    fidelity: ClassVar[Fidelity] = "golden"

    def __post_init__(self) -> None:
        check_stage(self.layer, self.ratio)

    @property
    def identity(self) -> bool:
        """Whether these parameters ask for nothing."""
        return self.ratio == 0

    def __call__(
        self, hidden: Float[Tensor, "seq dim"], score: Float[Tensor, " seq"], visual: Int[Tensor, " visual"], n0: int
    ) -> tuple[Int[Tensor, " kept"], Float[Tensor, "kept dim"]]:
        """hidden [S, D], score [S], visual: ascending ids -> (ids [S'] ascending, hidden[ids]). Raises BadUsage
        for a NaN in the visual tokens' scores."""
        ids = surviving(hidden.shape[0], visual, kept_visual(self, score, visual))
        return ids, hidden[ids]
