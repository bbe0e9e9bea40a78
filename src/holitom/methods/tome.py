"""ToMe (arXiv 2210.09461): merge tokens pairwise by bipartite soft matching, here within each frame after pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from holitom.errors import BadUsage
from holitom.methods.inputs import every_token, frame_counts, need_field, on, refuse_non_finite
from holitom.ops.merging import bag_means
from holitom.ops.selection import mask_ids
from holitom.ops.similarity import row_norms
from holitom.types import Fidelity, Positions, TokenSet, VideoFeatures, check_budget

Order = Literal["index", "score"]


@dataclass(frozen=True)
class ToMe:
    """Merge each frame's most similar tokens, in as many rounds as the budget needs (a round halves at most).

    In a round the even tokens look for the most similar odd one (cosine of the metric), and the best pairs are merged
    into the odd one, as averages weighted by the number of source tokens.

    metric: "keys" of the vision tower, as the paper chooses, or the "tokens" themselves. rounds: at least this many,
    the work spread evenly over them (the paper merges a little in every block of the tower).
    released True: after a round the even tokens left over stand in the order of their scores, as in the released code
    for inputs without a class token; that order decides who meets whom in the next round, and is the output's.

    The clean reading keeps round(budget * T * N) tokens, at least one, in raster order; below one token per frame some
    frames are left out. A token stands in the cell of the odd token that began it. Raises BadUsage for missing keys and
    a NaN.
    """

    metric: Literal["keys", "tokens"] = "keys"
    rounds: int = 1
    released: bool = False

    positions: ClassVar[Positions] = "contiguous"
    deviations: ClassVar[tuple[str, ...]] = (
        "It acts once, after the projector and the pooling; the paper merges in every block of the vision tower.",
        "No proportional attention: the language model does not know how many tokens stand behind one.",
        "Left-over even tokens keep their order; the release orders them by score when there is no class token.",
        "Below one token per frame some frames are left out; budget 1 keeps every token.",
    )

    def __post_init__(self) -> None:
        if self.metric not in ("keys", "tokens"):
            raise BadUsage(f"metric={self.metric!r} is unknown", fix="choose from keys, tokens")
        if not isinstance(self.rounds, int) or self.rounds < 1:
            raise BadUsage(f"rounds={self.rounds!r} is not a positive number", fix="use 1 or more")

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"keys"} if self.metric == "keys" else ())

    @property
    def fidelity(self) -> Fidelity:
        return "golden" if self.released else "port"

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        """Reduce one video. One copy to the host (the check for NaN)."""
        budget = check_budget(budget)
        norms = row_norms(video.tokens)
        if self.metric == "keys":
            metric = need_field(self, video, "keys")
            refuse_non_finite({"tokens": norms, "keys": metric})
        else:
            metric = video.tokens
            refuse_non_finite({"tokens": norms})
        if budget == 1.0:
            return every_token(video)
        counts = frame_counts(video, budget)
        plan = plan_rounds(video.cells, counts, self.rounds)
        merged = match_rounds(metric, None, plan, order="score" if self.released else "index")

        frame = torch.arange(video.frames, device=norms.device)[:, None] * video.cells
        heads, owner = (merged.heads + frame).flatten(), (merged.owner + frame).flatten()
        wanted = on(counts > 0, norms)[:, None]  # every frame has a token left, wanted or not
        kept = heads[mask_ids((merged.alive & wanted).flatten(), int(counts.sum()))]
        unwanted = heads[mask_ids((merged.alive & ~wanted).flatten(), int((counts == 0).sum()))]
        if not self.released:
            kept = kept.sort().values
        rows = video.tokens.reshape(-1, video.tokens.shape[-1])
        tokens, size = group_means(rows, owner, torch.cat([kept, unwanted]), keep_dtype=True)
        tokens, size = tokens[: len(kept)], size[: len(kept)]
        return TokenSet(tokens, kept // video.cells, kept % video.cells, size)


class Merged(NamedTuple):
    """owner: [F, n] the token that each source token went into (one of ``heads``); heads: [F, m] in output order, true
    where ``alive`` [F, m]."""

    owner: Int[Tensor, "frames n"]
    heads: Int[Tensor, "frames m"]
    alive: Bool[Tensor, "frames m"]


def plan_rounds(cells: int, counts: np.ndarray, rounds: int) -> list[np.ndarray]:
    """How many tokens each frame merges away in each round, [F] per round, to end with max(1, counts[f]) of ``cells``.
    At most half of the tokens go in a round. Frames differ in the last round only, by one; so must ``counts``."""
    wanted = np.maximum(counts, 1)
    most, plan, n, room = int(wanted.max()), [], cells, 0
    while n > most:
        away = min(n // 2, -(-(n - most) // max(1, rounds - len(plan))))
        plan.append(np.full(len(wanted), away))
        n, room = n - away, n // 2 - away
    extra = most - wanted
    if extra.any() and room:
        plan[-1] = plan[-1] + extra
    elif extra.any():
        plan.append(extra)
    return plan


def match_rounds(
    metric: Float[Tensor, "frames n dim"],
    size: Float[Tensor, "frames n"] | None,
    plan: Sequence[np.ndarray],
    *,
    order: Order = "index",
    protect_first: bool = False,
) -> Merged:
    """Run the rounds of ``plan`` on the metric alone; tokens are merged once, afterwards, by their owners.

    size: source tokens behind each token, the weights of the metric's average (None: one each). order: how the even
    tokens left over are listed before the odd ones. protect_first: token 0 is a class token and is never merged away.
    """
    frames, n, dim = metric.shape
    base = torch.arange(frames, device=metric.device)[:, None] * n
    own = torch.arange(n, device=metric.device).expand(frames, n)
    owner, heads, alive = own, own, torch.ones_like(own, dtype=torch.bool)
    now = metric
    for i, away in enumerate(plan):
        if i:
            weight = None if size is None else size.flatten()
            rows, grouped = metric.reshape(-1, dim), (owner + base).flatten()
            del now  # before the next one is made
            now, _ = group_means(rows, grouped, (heads + base).flatten(), weight, keep_dtype=weight is None)
            now = now.view(frames, -1, dim)
        into, slots, alive = _match(now, on(away, metric), int(away.min()), order, protect_first)
        target = own.scatter(1, heads, heads.gather(1, into))  # token -> head it is merged into, itself if it is not
        owner = target.gather(1, owner)
        heads = heads.gather(1, slots)
    return Merged(owner, heads, alive)


def _match(
    metric: Tensor, away: Tensor, fewest: int, order: Order, protect_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One round: the slot that each slot goes into [F, n], the slots left [F, n - fewest], and which of those are."""
    frames, n, _ = metric.shape
    # An eighth of the frames at a time: a metric of tokens is as large as the input.
    units = (normalize(part.float(), dim=-1) for part in metric.split(-(-frames // 8)))
    pairs = [(unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(dim=-1) for unit in units]
    best, partner = (torch.cat(part) for part in zip(*pairs, strict=True))
    if protect_first:
        best[:, 0] = -torch.inf
    ranked = torch.sort(best, dim=1, descending=True, stable=True).indices
    place = torch.arange(ranked.shape[1], device=metric.device).expand_as(ranked)
    rank = torch.empty_like(ranked).scatter_(1, ranked, place)
    into = torch.arange(n, device=metric.device).repeat(frames, 1)
    into[:, ::2] = torch.where(rank < away[:, None], 2 * partner + 1, into[:, ::2])

    even, alive = 2 * ranked[:, fewest:], place[:, fewest:] >= away[:, None]
    if order == "index":
        even, by = even.masked_fill(~alive, n).sort(dim=1)
        alive = alive.gather(1, by)
        even = even.masked_fill(~alive, 0)
    odd = torch.arange(1, n, 2, device=metric.device).expand(frames, -1)
    return into, torch.cat([even, odd], dim=1), torch.cat([alive, torch.ones_like(odd, dtype=torch.bool)], dim=1)


def group_means(
    rows: Float[Tensor, "n dim"],
    owner: Int[Tensor, " n"],
    heads: Int[Tensor, " m"],
    weight: Float[Tensor, " n"] | None = None,
    *,
    keep_dtype: bool = False,
) -> tuple[Float[Tensor, "m dim"], Float[Tensor, " m"]]:
    """Means of the rows of each owner, in the order of ``heads``, and the weight behind each. In float32, or without
    weights in the precision of the rows (``keep_dtype``). heads: all the owners, in any order; weight: of each row
    (None: one each, and half-precision rows are then not copied)."""
    place = torch.empty_like(owner).scatter_(0, heads, torch.arange(len(heads), device=heads.device))
    bag, order = torch.sort(place[owner], stable=True)
    edges = torch.searchsorted(bag, torch.arange(len(heads) + 1, device=heads.device))
    count = edges.diff()
    if weight is None:
        return bag_means(rows, order, count, keep_dtype=keep_dtype), count.float()
    weight = weight[order]
    # Weights are whole numbers of tokens: exact sums, whatever the order in which a GPU adds.
    total = weight.new_zeros(len(heads)).scatter_add_(0, bag, weight)
    share = weight / total[bag]
    means = embedding_bag(order, rows.float(), edges, mode="sum", per_sample_weights=share, include_last_offset=True)
    return means, total
