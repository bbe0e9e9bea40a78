"""The unified pool of "Unified Spatiotemporal Token Compression for Video-LLMs" (arXiv 2603.21957): all tokens of a
video compete in one pool for contribution without redundancy. A reconstruction from notes on the text; no code is
published.

1. Contribution: the attention that a token receives in the vision tower. In descending order, a token enters the pool
   if its largest cosine with the tokens in it is at most tau = 0.7, until 70 % of the budget are there.
2. All others are recycled: density peaks make 30 % of the budget of them, each the mean of its cluster.
3. In the original order of space and time.

Uncertain: contribution is the largest attention of any head there, the mean over heads here (VideoFeatures.saliency);
that the 30 % are a share of the budget; how many neighbours a density has (7, as in HoliTom). Where the walk ends with
fewer tokens than 70 %, the clusters make up for it, so that counts are exact. Ours: recycled tokens are clustered in
stretches of ``window`` tokens in the order of the video, each with its share of the clusters. In one piece, time and
memory would grow with the square of the video. The stage inside the language model, which is worth 0.5 points of its
95.4 % at 5 %, is not here.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from holitom.methods.base import OuterStage, budget_tokens, surviving, token_set
from holitom.ops.clusters import density_peaks
from holitom.ops.diverse import first_come
from holitom.ops.tensors import apportion, gram, group_mean, grouped, ids_of, on
from holitom.types import TokenSet, VideoFeatures

BLOCK = 256
"""Tokens of the walk that are compared at once."""


@dataclass(frozen=True)
class UnifiedPool(OuterStage):
    """tau: a cosine above it is redundant; recycled: share of the budget that goes to clusters; k: neighbours in the
    densities, at most as many as clusters; window: tokens that are clustered together. Keeps round(budget * T * N)
    tokens. Raises BadUsage for a budget outside (0, 1], a missing saliency, and a NaN."""

    tau: float = 0.7
    recycled: float = 0.3
    k: int = 7
    window: int = 256

    requires = frozenset({"saliency"})
    fidelity = "reconstruction"

    def reduce(self, video: VideoFeatures, budget: float, saliency: Tensor) -> TokenSet:
        """Copies to the host: how many tokens of each block stay, and the rounds of choosing them."""
        wanted, rows = budget_tokens(video, budget), video.tokens.flatten(0, 1)
        order = saliency.flatten().sort(descending=True, stable=True).indices
        chosen = self._walk(rows, order, max(1, wanted - round(wanted * self.recycled)))
        clusters = wanted - len(chosen)
        if not clusters:
            return token_set(video, chosen.sort().values)
        rest = surviving(len(rows), chosen, chosen[:0])
        sizes = np.diff(np.arange(0, len(rest) + self.window, self.window).clip(max=len(rest)))
        counts = apportion(sizes, clusters)
        rest, sizes, counts = rest[on(np.repeat(counts > 0, sizes), rest)], sizes[counts > 0], counts[counts > 0]
        centres, owner = density_peaks(rows, sizes, counts, self.k, rest)
        centres = ids_of(centres, clusters)
        members, size = grouped(owner, centres)
        tokens = torch.cat([rows[chosen], group_mean(rows, rest[members], size)])
        ids, size = torch.cat([chosen, rest[centres]]), torch.cat([torch.ones_like(chosen), size])
        order = ids.argsort()
        return token_set(video, ids[order], tokens[order], size[order])

    @torch.no_grad()
    def _walk(self, rows: Tensor, order: Tensor, most: int) -> Tensor:
        """Step 1: the first ``most`` rows [n, D], in ``order``, of which none is redundant beside those before it."""
        pool, chosen = rows.new_zeros(most, rows.shape[1], dtype=torch.float32), []
        found = 0
        for block in order.split(BLOCK):
            unit = normalize(rows[block].float(), dim=-1)
            fresh = (~(unit @ pool[:found].T > self.tau).any(1)).nonzero()[:, 0]
            unit = unit[fresh]
            stays = first_come(gram(unit[None]) > self.tau)[0].nonzero()[: most - found, 0]
            pool[found : found + len(stays)] = unit[stays]
            chosen.append(block[fresh[stays]])
            found += len(stays)
            if found == most:
                break
        return torch.cat(chosen)
