"""PyramidDrop (arXiv 2410.17247): drop visual tokens stage by stage, half of them at each of a few layers.

Before layer l of the schedule, which leaves the share rho of the V visual tokens that prefill began with:
1. Score every visual token by the attention of the last prompt token in layer l itself, mean over heads, computed
   ahead from that layer's projections.
2. Keep the int(V * rho) highest, and all text, in their order.
3. Number the rotary positions of what is left afresh, from 0.

Read in Cooperx521/PyramidDrop at 6444f30, llava/model/modeling_llama_pdrop.py: pdrop_forward and pdrop_rank_drop. As
there, newline embeddings are visual tokens and can be dropped. Deviations: at least one visual token stays; works
under grouped-query attention, where the release's ranking fails.
"""

from dataclasses import dataclass

from torch import Tensor

from holitom.methods.base import InnerStage


@dataclass(frozen=True)
class PyramidDropStage(InnerStage):
    """One stage. layer: the first layer that sees fewer tokens, from 0; ratio: rho, the share of the visual tokens at
    the start of prefill that is left from there on. BadUsage for a ratio outside (0, 1]."""

    layer: int
    ratio: float

    score = "this"
    positions = "contiguous"
    include_newlines = True
    fidelity = "golden"
    idle = 1

    def keep(self, hidden: Tensor, score: Tensor, visual: Tensor, n0: int) -> Tensor:
        return self.highest(score, visual, int(n0 * self.ratio))  # all where no more than the share is alive


@dataclass(frozen=True)
class PyramidDrop:
    """The schedule: ``inner=PyramidDrop().stages()``. layers: where each stage begins, ascending; ratios: the share
    left from there on.

    The default is what the FLOPs of HoliTom's tables need (10.5 and 19.5 T on 28 layers; (2, 8, 12) fits too); the
    paper's own for 32 layers is layers (8, 16, 24).
    """

    layers: tuple[int, ...] = (2, 7, 14)
    ratios: tuple[float, ...] = (0.5, 0.25, 0.125)

    def stages(self) -> tuple[PyramidDropStage, ...]:
        return tuple(PyramidDropStage(*stage) for stage in zip(self.layers, self.ratios, strict=True))
