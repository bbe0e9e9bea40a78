"""What the methods share: what they read and refuse, how many tokens a budget means, and what a stage leaves over."""

from typing import ClassVar, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from holitom.errors import BadUsage
from holitom.ops.tensors import ids_of, row_norms, spread, top_ids
from holitom.types import Fidelity, Positions, TokenSet, VideoFeatures, check_budget

OVERFLOW = "(float16 overflows; use bfloat16 or float32)"


class Checked:
    """A dataclass that refuses (BadUsage) a field that is none of the values its type lists."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                what = f"{type(self).__name__}({name}={getattr(self, name)!r}) is unknown"
                raise BadUsage(what, fix=f"choose from {', '.join(map(str, get_args(kind)))}")


# --- before the language model


class OuterStage(Checked):
    """What the outer stages share. A method sets ``fidelity`` and gives ``reduce``; it gives ``__call__`` itself where
    one copy to the host, or one reading of the tokens, can serve the method and the search for a NaN."""

    requires: ClassVar[frozenset[str]] = frozenset()
    positions: ClassVar[Positions] = "contiguous"
    fidelity: ClassVar[Fidelity]

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet:
        """Reduce one video; all tokens, unchanged, at a budget of 1. BadUsage for a budget outside (0, 1], for a
        missing field, and for a NaN or an infinity in the tokens or a field."""
        budget, fields = check_budget(budget), self.fields(video)
        refuse_non_finite(tokens=row_norms(video.tokens), **fields)
        return every_token(video) if budget == 1 else self.reduce(video, budget, **fields)

    def reduce(self, video: VideoFeatures, budget: float, **fields: Tensor) -> TokenSet:
        """The method, for a budget below 1 and finite values; the fields that it ``requires``, by name."""
        raise NotImplementedError

    def fields(self, video: VideoFeatures) -> dict[str, Tensor]:
        """The fields in ``requires``, in float32. BadUsage where one is missing."""
        missing = [name for name in sorted(self.requires) if getattr(video, name) is None]
        if missing:
            what = f"{type(self).__name__} reads VideoFeatures.{missing[0]}, which is None"
            raise BadUsage(what, fix=f"let reduce_tokens compute it, or give VideoFeatures({missing[0]}=...)")
        return {name: getattr(video, name).float() for name in sorted(self.requires)}


def refuse_non_finite(**fields: Tensor) -> None:
    """BadUsage that names the first field [T, ...] with a NaN or an infinity, and the first frame where. For the tokens
    give their norms: those are small, and non-finite where a token is."""
    on_host(torch.empty(0, dtype=torch.bool, device=next(iter(fields.values())).device), **fields)


def on_host(wanted: Tensor, **fields: Tensor) -> np.ndarray:
    """A boolean tensor on the host, in the one copy that also says whether every field is finite: BadUsage as in
    :func:`refuse_non_finite`."""
    finite = torch.stack([value.isfinite().all() for value in fields.values()])
    found = torch.cat([finite, wanted.flatten()]).cpu().numpy()
    if not found[: len(fields)].all():
        name, value = list(fields.items())[found.argmin()]
        frame = int((~value.isfinite()).flatten(1).any(1).nonzero()[0])
        what = f"{name} hold a NaN or an infinity, first in frame {frame}"
        raise BadUsage(what, fix=f"check the vision tower's precision {OVERFLOW}")
    return found[len(fields) :].reshape(wanted.shape)


def budget_tokens(video: VideoFeatures, budget: float) -> int:
    """round(budget * T * N), at least one token: what an exact count means."""
    return max(1, round(check_budget(budget) * (video.frames * video.cells)))


def frame_counts(video: VideoFeatures, budget: float) -> np.ndarray:
    """[T] tokens to keep in each frame: round(budget * T * N) in all, spread so that two frames differ by at most one;
    below one token per frame some frames get none."""
    return spread(budget_tokens(video, budget), video.frames)


def token_set(video: VideoFeatures, ids: Tensor, tokens: Tensor | None = None, size: Tensor | None = None) -> TokenSet:
    """The tokens at ``ids`` [M] of the flattened video (frame * N + cell), in that order; ``tokens`` [M, D] where they
    were merged, ``size`` [M] where they stand for more than themselves."""
    kept = video.tokens.flatten(0, 1)[ids] if tokens is None else tokens.to(video.tokens.dtype)
    size = torch.ones(len(ids), device=ids.device) if size is None else size.float()
    return TokenSet(kept, ids // video.cells, ids % video.cells, size)


def every_token(video: VideoFeatures) -> TokenSet:
    """All tokens in raster order, unchanged: what a budget of 1 means."""
    rows = video.tokens.flatten(0, 1)
    return token_set(video, torch.arange(len(rows), device=rows.device), rows)


# --- inside the language model


class Stage(Checked):
    """A stage at a ``layer``, counted from 0, with a share of the visual tokens. BadUsage for a layer below 1 (0 where
    the score comes from that layer itself), and for a share outside [0, 1), or (0, 1] where it says what stays."""

    fidelity: ClassVar[Fidelity]
    share: ClassVar[str] = "ratio"
    """The field with that share."""
    idle: ClassVar[Literal[0, 1]] = 0
    """The share that asks for nothing: 0 where it is removed, 1 where it stays."""

    def __post_init__(self) -> None:
        super().__post_init__()
        lowest = 0 if getattr(self, "score", "prev") == "this" else 1
        share = getattr(self, self.share)
        if not isinstance(self.layer, int) or self.layer < lowest:
            raise BadUsage(f"{self} stands at no layer", fix=f"count layers from 0, and use {lowest} or more")
        if not (0 < share <= 1 if self.idle else 0 <= share < 1):
            what = f"{self.share} is outside {'(0, 1]' if self.idle else '[0, 1)'} in {self}"
            raise BadUsage(what, fix="give a share of the visual tokens, such as 0.5")

    @property
    def identity(self) -> bool:
        """Whether these parameters ask for nothing."""
        return getattr(self, self.share) == self.idle

    def finite(self, values: Tensor, what: str = "attention scores") -> Tensor:
        """The values in float32. BadUsage for a NaN or an infinity among them."""
        if not values.isfinite().all():
            what = f"the {what} of {type(self).__name__} at layer {self.layer} hold a NaN or an infinity"
            raise BadUsage(what, fix=f"check the precision of the language model {OVERFLOW}")
        return values.float()


class InnerStage(Stage):
    """What most inner stages say of themselves, as :class:`holitom.types.Inner` names it. A method that drops tokens
    gives ``keep``; one that merges them gives ``__call__``."""

    score: ClassVar[Literal["prev", "this"]] = "prev"
    query: ClassVar[Literal["last", "text"]] = "last"
    positions: ClassVar[Positions] = "original"
    prune_past: ClassVar[bool] = False
    causal: ClassVar[bool] = True
    include_newlines: ClassVar[bool] = False

    def __call__(
        self, hidden: Tensor, score: Tensor, visual: Tensor, n0: int, **groups: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """hidden [S, D] entering ``layer``; score [S], or [heads, text rows, S] for the query "text"; visual [V]:
        ascending ids; n0: V when prefill began; groups: ``group`` and ``gain`` [V] where the stage reads them -> the
        ids that stay [S'], ascending, and hidden[ids]. BadUsage for a NaN or an infinity in what it chooses by."""
        ids = surviving(len(hidden), visual, self.keep(hidden, score, visual, n0, **groups))
        return ids, hidden[ids]

    def keep(self, hidden: Tensor, score: Tensor, visual: Tensor, n0: int, **groups: Tensor | None) -> Tensor:
        """Places in ``visual`` of the tokens that stay, ascending."""
        raise NotImplementedError

    def highest(self, score: Tensor, visual: Tensor, count: int) -> Tensor:
        """Places in ``visual`` [V], ids into the sequence, of the ``count`` (at least one) tokens of highest score
        [S], ascending. BadUsage for a NaN or an infinity among their scores."""
        return top_ids(self.finite(score[visual]), max(1, count))


def surviving(seq: int, visual: Tensor, kept: Tensor) -> Tensor:
    """Ascending ids of a sequence of ``seq`` tokens without the visual ones [V] that are not among the places ``kept``
    [K] of them."""
    stays = torch.ones(seq, dtype=torch.bool, device=visual.device)
    stays[visual] = False
    stays[visual[kept]] = True
    return ids_of(stays, seq - len(visual) + len(kept))
