"""The nouns shared by every method and every host model: a video's features, a reduced token set, and the four stages.

Nothing here knows a particular method or a particular model library.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from holitom.errors import BadUsage

Positions = Literal["contiguous", "original"]
Fidelity = Literal["golden", "port", "reconstruction", "control"]
"""golden: equal to the released code on recorded inputs; port: the released algorithm, without such a record;
reconstruction: from a paper without released code, or with a release that was not read, not run, or is departed from in
more than details (the method's docstring says which); control: a plain baseline of this project."""
OPTIONAL_FIELDS = ("saliency", "keys", "frame_embed", "head_saliency")
"""Of VideoFeatures: what an outer stage may require."""


@dataclass(frozen=True)
class MergedFrames:
    """What a tower stage made of the T0 frames of a video. into [T0]: the frame that holds each of them, counted among
    the T that are left; entered: how many frames entered each layer of the tower, of which the first counts T0."""

    into: tuple[int, ...]
    entered: tuple[int, ...]

    @property
    def first(self) -> list[int]:
        """[T] the first frame of the whole video that each remaining one holds."""
        return [self.into.index(t) for t in range(max(self.into) + 1)]


@dataclass(frozen=True)
class VideoFeatures:
    """Visual tokens of one video, as they come out of the projector and the pooling, without newline tokens.

    tokens: [T, N, D]; grid: (H, W) with H * W == N. Optional, filled when a method lists them in ``requires``:
    saliency: [T, N] float32, the attention each token receives in the last kept layer of the vision tower (mean over
    heads and queries), pooled like the tokens; keys: [T, N, Dk] the keys of that layer, mean over heads; frame_embed:
    [T, E] one vector per frame; head_saliency: [T, N] float32, the attention that the query of SigLIP's pooling head
    pays to each token, pooled like the tokens. merged: what a tower stage has done, so that T frames are left (None:
    none was asked for). Raises ValueError where shapes do not fit.
    """

    tokens: Tensor
    grid: tuple[int, int]
    saliency: Tensor | None = None
    keys: Tensor | None = None
    frame_embed: Tensor | None = None
    head_saliency: Tensor | None = None
    merged: MergedFrames | None = None

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3:
            raise ValueError(f"tokens must be [frames, cells, dim], got {list(self.tokens.shape)}")
        if self.grid[0] * self.grid[1] != self.cells:
            raise ValueError(f"grid {self.grid} does not have the {self.cells} cells per frame of the tokens")
        for name in OPTIONAL_FIELDS:
            value, shape = getattr(self, name), self.tokens.shape[: 1 if name == "frame_embed" else 2]
            if value is not None and value.shape[: len(shape)] != shape:
                raise ValueError(f"{name} must start with {list(shape)}, got {list(value.shape)}")

    @property
    def frames(self) -> int:
        return self.tokens.shape[0]

    @property
    def cells(self) -> int:
        return self.tokens.shape[1]

    @property
    def all_frames(self) -> int:
        """Frames of the whole video, of which a tower stage may have merged some."""
        return self.frames if self.merged is None else len(self.merged.into)


@dataclass(frozen=True)
class TokenSet:
    """The tokens that survive an outer stage, in the order in which the language model sees them (hosts with a newline
    per row, as LLaVA-Video, sort them by their place).

    tokens: [M, D]; frame: [M] the frame that owns each token (a token merged over time belongs to the first frame of
    its segment); cell: [M] row * W + column; size: [M] how many source tokens each one stands for (None: one each).
    group: [M] which of the method's groups (a segment, the static part of a window) each token belongs to, and gain:
    [M] what that group is worth, for stages inside the language model that choose group by group (None: no groups).
    Raises ValueError where the lengths differ, and for gains without groups.
    """

    tokens: Tensor
    frame: Tensor
    cell: Tensor
    size: Tensor | None = None
    group: Tensor | None = None
    gain: Tensor | None = None

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
class Tower(Protocol):
    """Inside the vision tower, behind its ``layers`` (counted from 0, ascending, not the last): the states of one video
    [T, P, C] -> those of the frames that are left [T', P, C], and for every frame the one that holds it now [T] (the
    states themselves, unchanged, where nothing is merged). ``identity`` as for an inner stage.
    """

    layers: tuple[int, ...]
    fidelity: Fidelity

    def __call__(self, hidden: Tensor) -> tuple[Tensor, Sequence[int]]: ...


@runtime_checkable
class Outer(Protocol):
    """Before the language model: the features of one video and a budget (share of T * N kept) -> a TokenSet. Behind a
    tower stage T counts the frames that are left, and the budget is the larger share that gives the same tokens.

    ``requires`` names the optional VideoFeatures fields it reads; ``positions`` says whether the kept tokens are
    numbered afresh ("contiguous") or keep the rotary positions they had in the full prompt ("original").
    """

    requires: frozenset[str]
    positions: Positions
    fidelity: Fidelity

    def __call__(self, video: VideoFeatures, budget: float) -> TokenSet: ...


@runtime_checkable
class Inner(Protocol):
    """Inside the language model, once, in prefill: the states that enter ``layer`` -> the kept ids and their states.

    score "prev": attention of layer - 1; "this": of ``layer`` itself, computed ahead. query "last": the last prompt row
    gives score [S], mean over heads; "text": every prompt row after the video gives score [heads, rows, S]. positions
    "original" keeps the rotary positions (with gaps), "contiguous" renumbers. prune_past: also drop the tokens from the
    caches of earlier layers. causal False: layer - 1 attends without a causal mask in prefill, as HoliTom's release
    does. include_newlines True: newline tokens count as visual tokens and may be dropped, as in the releases.

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

    def __call__(self, hidden: Tensor, score: Tensor, visual: Tensor, n0: int) -> tuple[Tensor, Tensor]:
        """hidden [S, D], score, visual: ascending ids in [0, S) of the visual tokens still alive, n0: their number when
        prefill began -> (keep ids [S'] ascending, states [S', D])."""
        ...


@runtime_checkable
class Decode(Protocol):
    """At each generated token: which visual tokens the layers from ``layer`` on read from the cache.

    Called with the newest token's attention in layer - 1 (mean over heads) [S] and the ascending ids of the visual
    tokens in it; returns the ids to read, None for all of them. ``identity`` as for an inner stage.
    """

    layer: int
    fidelity: Fidelity

    def __call__(self, row: Tensor, visual: Tensor) -> Tensor | None: ...


@dataclass(frozen=True)
class Reduction:
    """One complete setting: an outer stage at a budget (the share of all the video's tokens, whatever a tower stage
    leaves), inner stages, a decode stage, a tower stage. ``name`` is the row's label; without stages it is the
    unreduced model."""

    name: str = ""
    outer: Outer | None = None
    budget: float = 1.0
    inner: tuple[Inner, ...] = ()
    decode: Decode | None = None
    tower: Tower | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.inner, tuple):
            raise BadUsage(f"inner is {self.inner!r}", fix="give a tuple of stages, also for a single one")

    def describe(self) -> dict[str, Any]:
        """Every parameter, as JSON: what a record stores and what identifies a result. "tower" only where there is one,
        so that older records keep their keys."""
        stages = {name: _spec(getattr(self, name)) for name in ("outer", "inner", "decode", "tower")}
        if self.tower is None:
            del stages["tower"]
        return {"name": self.name, "budget": self.budget, **stages}


def _spec(value: Any) -> Any:
    """A stage, or a value in one, as JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _spec(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"method": type(value).__name__, **fields}
    if isinstance(value, (tuple, list)):
        return [_spec(item) for item in value]
    if isinstance(value, (frozenset, set)):
        return sorted(map(_spec, value))
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise BadUsage(f"a {type(value).__name__} does not tell its parameters", fix="use a frozen dataclass")


def check_budget(budget: float) -> float:
    """A budget is the share of visual tokens that survive the outer stage: above 0, at most 1."""
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget <= 1:
        raise BadUsage(f"budget {budget!r} is no number in (0, 1]", fix="give the share of tokens to keep, as 0.10")
    return float(budget)
