"""FastV (arXiv 2403.06764): after an early layer, drop the visual tokens that the last prompt token hardly attends to.

1. Run the layers before K on all tokens.
2. Score every visual token by the attention of the last prompt token in layer K - 1, mean over heads.
3. Keep the round(V * (1 - R)) highest of V, and all text, in their order and with their rotary positions; the layers
   from K on see only these.

Read in pkunlp-icler/FastV at d165972, src/FastV/llava-hf, modeling_llama.py: fastv_forward (the variant that drops
tokens from the cache). Deviations: at least one visual token stays; newline embeddings are text, and stay.
"""

from dataclasses import dataclass

from torch import Tensor

from holitom.methods.base import InnerStage


@dataclass(frozen=True)
class FastV(InnerStage):
    """layer: the paper's K, the first layer that sees fewer tokens; ratio: its R, the share dropped (K = 2 and R = 0.8
    in HoliTom's tables). BadUsage for a layer below 1 and a ratio outside [0, 1)."""

    layer: int = 2
    ratio: float = 0.5

    fidelity = "golden"

    def keep(self, hidden: Tensor, score: Tensor, visual: Tensor, n0: int) -> Tensor:
        return self.highest(score, visual, round(len(visual) * (1 - self.ratio)))
