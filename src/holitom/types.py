"""The nouns shared by every method and every host model: a video's features, a reduced token set, and the three stages.

Nothing here knows a particular method or a particular model library.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holitom.errors import BadUsage

Positions = Literal["contiguous", "original"]
POSITIONS: tuple[Positions, ...] = ("contiguous", "original")
OPTIONAL_FIELDS = ("saliency", "keys", "frame_embed")
"""Of VideoFeatures: what an outer stage may require."""
Fidelity = Literal["golden", "port", "reconstruction", "control"]


@dataclass(frozen=True)
class VideoFeatures:
    """Visual tokens of one video, as they come out of the projector and the pooling, without newline tokens.

    tokens: [T, N, D]; grid: (H, W) with H * W == N; saliency: [T, N] float32, the attention each token receives in
    the last kept layer of the vision tower (mean over heads and queries), pooled like the tokens; keys: [T, N, Dk] the
    keys of that layer, mean over heads; frame_embed: [T, E] one vector per frame. The optional ones are filled when a
    method lists them in ``requires``.
    """

    tokens: Float[Tensor, "frames cells dim"]
    grid: tuple[int, int]
    saliency: Float[Tensor, "frames cells"] | None = None
    keys: Float[Tensor, "frames cells key_dim"] | None = None
    frame_embed: Float[Tensor, "frames embed"] | None = None

    def __post_init__(self) -> None:
        frames, cells = self.tokens.shape[:2]
        if self.grid[0] * self.grid[1] != cells:
            raise ValueError(
                f"grid {self.grid} has {self.grid[0] * self.grid[1]} cells, but the tokens have {cells} per frame"
            )
        for name in ("saliency", "keys"):
            value = getattr(self, name)
            if value is not None and tuple(value.shape[:2]) != (frames, cells):
                raise ValueError(f"{name} must start with [{frames}, {cells}], got {list(value.shape)}")
        if self.frame_embed is not None and self.frame_embed.shape[0] != frames:
            raise ValueError(f"frame_embed must have {frames} rows, got {self.frame_embed.shape[0]}")

    @property
    def frames(self) -> int:
        return self.tokens.shape[0]

    @property
    def cells(self) -> int:
        return self.tokens.shape[1]


@dataclass(frozen=True)
class TokenSet:
    """The tokens that survive an outer stage, in the order in which the language model sees them.

    tokens: [M, D]; frame: [M] the frame that owns each token (a token merged over time belongs to the first frame of
    its segment); cell: [M] row * W + column; size: [M] how many source tokens each one stands for (None: one each).
    group: [M] which of the method's groups (a segment, the static part of a window) each token belongs to, and gain:
    [M] what that group is worth, for stages inside the language model that choose group by group (None: no groups).
    Raises ValueError where the lengths differ, and for gains without groups.
    """

    tokens: Float[Tensor, "kept dim"]
    frame: Int[Tensor, " kept"]
    cell: Int[Tensor, " kept"]
    size: Float[Tensor, " kept"] | None = None
    group: Int[Tensor, " kept"] | None = None
    gain: Float[Tensor, " kept"] | None = None

    def __post_init__(self) -> None:
        for name in ("frame", "cell", "size", "group", "gain"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.tokens):
                raise ValueError(f"{name} has {len(value)} entries for {len(self.tokens)} tokens")
        if self.gain is not None and self.group is None:
            raise ValueError("gain says what a group is worth, and there is no group")

    def __len__(self) -> int:
        return self.tokens.shape[0]


@runtime_checkable
class Outer(Protocol):
    """Before the language model: the features of one video and a budget (share of T * N kept) -> a TokenSet.

    ``requires`` names the optional VideoFeatures fields it reads; ``positions`` says whether the kept tokens are
    numbered afresh or keep the rotary positions they had in the full prompt.
    """

    requires: frozenset[str]
    positions: Positions
    fidelity: Fidelity

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet: ...


@runtime_checkable
class Inner(Protocol):
    """Inside the language model, once, in prefill: the states that enter ``layer`` -> the kept ids and their states.

    score "prev": attention of layer - 1; "this": of ``layer`` itself, computed ahead. query "last": the last prompt row
    gives score [S]; "text": every prompt row after the video gives score [heads, rows, S]. positions "original" keeps
    the rotary positions (with gaps), "contiguous" renumbers. prune_past: also drop the tokens from the caches of
    earlier layers. causal False: layer - 1 attends without a causal mask in prefill, as one release does.
    include_newlines True: newline tokens count as visual tokens and may be dropped, as in the releases.

    Two attributes are optional. ``reads_groups`` True: the stage also takes ``group`` and ``gain`` [V], the TokenSet's
    fields for the tokens in ``visual`` (None: no groups). Videos that share a prompt have distinct groups; a newline
    that counts as visual belongs to the group of the token before it. ``identity`` True: these parameters ask for
    nothing, so that a run in which the stage keeps every token is no error.
    """

    layer: int
    score: Literal["prev", "this"]
    query: Literal["last", "text"]
    positions: Positions
    prune_past: bool
    causal: bool
    include_newlines: bool
    fidelity: Fidelity

    def __call__(
        self, hidden: Float[Tensor, "seq dim"], score: Float[Tensor, "..."], visual: Int[Tensor, " visual"], n0: int
    ) -> tuple[Int[Tensor, " kept"], Float[Tensor, "kept dim"]]:
        """hidden [S, D], score, visual: ascending ids in [0, S) of the visual tokens still alive, n0: their number when
        prefill began -> (keep ids [S'] ascending, states [S', D])."""
        ...


@runtime_checkable
class Decode(Protocol):
    """At each generated token: which visual tokens the layers from ``layer`` on read from the cache.

    Called with the newest token's attention in layer - 1 (mean over heads) and the ascending ids of the visual tokens
    in it; returns the ids to read, None for all of them. Optional attributes: ``reads_previous`` True, and the stage
    also takes ``previous``, the row of the step before (shorter by one; None at the first step of a prompt, and behind
    a call with several tokens); ``identity`` as for an inner stage.
    """

    layer: int
    fidelity: Fidelity

    def __call__(self, row: Float[Tensor, " seq"], visual: Int[Tensor, " visual"]) -> Int[Tensor, " read"] | None: ...


@dataclass(frozen=True)
class Reduction:
    """One complete setting: an outer stage at a budget, inner stages, a decode stage. ``name`` is the row label."""

    name: str
    outer: Outer | None = None
    budget: float = 1.0
    inner: tuple[Inner, ...] = field(default_factory=tuple)
    decode: Decode | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.inner, tuple):
            raise BadUsage(f"inner is {self.inner!r}", fix="give a tuple of stages, also for a single one")

    def describe(self) -> dict[str, Any]:
        """Every parameter, as JSON: what a record stores and what identifies a result."""

        def spec(stage: Any) -> Any:
            if stage is None:
                return None
            if not dataclasses.is_dataclass(stage):
                raise BadUsage(
                    f"{type(stage).__name__} does not tell its parameters, which a record needs",
                    fix="make it a frozen dataclass",
                )
            values = {f.name: _plain(getattr(stage, f.name)) for f in dataclasses.fields(stage)}
            return {"method": type(stage).__name__, **values}

        return {
            "name": self.name,
            "budget": self.budget,
            "outer": spec(self.outer),
            "inner": [spec(s) for s in self.inner],
            "decode": spec(self.decode),
        }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        values = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"method": type(value).__name__, **values}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, (frozenset, set)):
        return sorted(_plain(v) for v in value)
    if isinstance(value, torch.dtype):
        return str(value)
    return value


def check_budget(budget: float) -> float:
    """A budget is the share of visual tokens that survive the outer stage: above 0, at most 1."""
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise BadUsage(f"budget {budget!r} is no python number", fix="give an int or a float in (0, 1]")
    if not 0.0 < float(budget) <= 1.0:
        raise BadUsage(
            f"budget {budget!r} is outside (0, 1]", fix="give the share of visual tokens to keep, for instance 0.10"
        )
    return float(budget)
