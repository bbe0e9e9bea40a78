"""What a block has done: token counts that were asked for and spent, seconds, and whether every stage acted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from holitom.errors import CannotRun
from holitom.flops import LLMShape
from holitom.types import Reduction

WITHIN = 1.0
"""Tokens per frame by which two realised budgets may differ and still be called equal."""


@dataclass(frozen=True)
class SampleStats:
    """One prompt of one prefill (beams of a prompt count once).

    frames, cells: of its videos (frames summed; cells of a frame, in the mean over the frames where the videos' grids
    differ); budget: the share that was asked for; requested: round(budget * frames * cells) visual tokens, rounded for
    each video; kept: visual tokens that entered the language model; newlines: newline tokens beside them;
    full_newlines: those of the unreduced videos; prompt_before, prompt_after: prompt tokens without padding, as the
    caller gave them and after the outer stage; per_layer, newlines_per_layer: visual and newline tokens entering each
    layer; prompt_per_layer: all prompt tokens entering each layer; cached_per_layer: prompt tokens in each layer's
    cache after prefill; seconds: per stage (vision, saliency, outer, prefill), of the whole batch that the prompt was
    part of."""

    videos: int
    frames: int
    cells: float
    budget: float
    requested: int
    kept: int
    newlines: int
    full_newlines: int
    prompt_before: int
    prompt_after: int
    shape: LLMShape
    per_layer: tuple[int, ...] = ()
    newlines_per_layer: tuple[int, ...] = ()
    prompt_per_layer: tuple[int, ...] = ()
    cached_per_layer: tuple[int, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def full(self) -> int:
        """Visual tokens of the unreduced videos."""
        return round(self.frames * self.cells)

    @property
    def realised(self) -> float:
        """Share of all videos' tokens that entered the language model, newlines left out."""
        return self.kept / self.full

    @property
    def off_per_frame(self) -> float:
        """Kept minus requested tokens, per frame."""
        return (self.kept - self.requested) / self.frames

    @property
    def flops_paper(self) -> float:
        """Prefill cost as the papers count it: visual tokens only (holitom.flops.paper_flops)."""
        return self.shape.paper(self.per_layer)

    @property
    def flops_exact(self) -> float:
        """Prefill FLOPs with the model's true shapes over all tokens of the prompt, text and newlines included."""
        return self.shape.exact(self.prompt_per_layer)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a record."""
        derived = ("realised", "off_per_frame", "flops_paper", "flops_exact")
        values = {name: value for name, value in vars(self).items() if name != "shape"}
        return values | {name: getattr(self, name) for name in derived}


@dataclass(frozen=True, kw_only=True)
class TokenBudget:
    """Tokens of one video (or of all videos of one prompt), as means over the prompts of a run.

    asked_share, asked_tokens: what the outer stage was given as its budget (1 and all tokens where there is none);
    full_tokens, full_newlines: of the unreduced video; kept_tokens, kept_newlines: what entered the language model;
    layer_tokens, layer_newlines: what entered a layer, averaged over all layers of the language model; frames: of the
    video. off_per_frame: kept minus asked tokens, per frame; farthest_off: the same of the prompt where it is farthest
    from 0.
    """

    asked_share: float
    asked_tokens: float
    full_tokens: float
    full_newlines: float
    kept_tokens: float
    kept_newlines: float
    layer_tokens: float
    layer_newlines: float
    frames: float
    off_per_frame: float
    farthest_off: float

    @property
    def share(self) -> float:
        """Realised before the language model: visual tokens that entered it, of the full video's."""
        return self.kept_tokens / self.full_tokens

    @property
    def share_with_newlines(self) -> float:
        """The same, newline embeddings counted on both sides."""
        return (self.kept_tokens + self.kept_newlines) / (self.full_tokens + self.full_newlines)

    @property
    def layer_share(self) -> float:
        """Averaged over the layers, as HieraVid and FastV count."""
        return self.layer_tokens / self.full_tokens

    @property
    def met(self) -> bool:
        """Whether the realised budget is within one token per frame of what was asked."""
        return abs(self.off_per_frame) <= WITHIN


def token_budget(samples: Sequence[SampleStats]) -> TokenBudget:
    """What the samples of one setting asked for and spent, per sample on average. CannotRun when there are none."""
    if not samples:
        raise CannotRun("no video has been prefilled yet", fix="call model.generate(...) with a video first")
    off = [sample.off_per_frame for sample in samples]
    return TokenBudget(
        asked_share=fmean(s.budget for s in samples),
        asked_tokens=fmean(s.requested for s in samples),
        full_tokens=fmean(s.full for s in samples),
        full_newlines=fmean(s.full_newlines for s in samples),
        kept_tokens=fmean(s.kept for s in samples),
        kept_newlines=fmean(s.newlines for s in samples),
        layer_tokens=fmean(fmean(s.per_layer) for s in samples),
        layer_newlines=fmean(fmean(s.newlines_per_layer) for s in samples),
        frames=fmean(s.frames for s in samples),
        off_per_frame=fmean(off),
        farthest_off=max(off, key=abs),
    )


@dataclass
class RunStats:
    """Everything since the ``with`` block began. ``stages``: the stages that were asked for; ``identities``: those of
    them whose parameters ask for nothing; ``calls``: how often each ran; ``removed``: how many tokens each took away
    (for a decode stage: left unread), summed over everything."""

    stages: tuple[str, ...] = ()
    identities: frozenset[str] = frozenset()
    calls: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    _samples: list[SampleStats] = field(default_factory=list)
    _unread: list[tuple[SampleStats, dict[str, Any]]] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def of(cls, reduction: Reduction) -> RunStats:
        """For a setting: an outer stage asks for something below a budget of 1, the others unless they say so."""
        named = {f"inner@{stage.layer}": stage for stage in reduction.inner}
        if reduction.decode is not None:
            named[f"decode@{reduction.decode.layer}"] = reduction.decode
        nothing = {name for name, stage in named.items() if getattr(stage, "identity", False)}
        if reduction.outer is None:
            return cls(tuple(named), frozenset(nothing))
        return cls(("outer", *named), frozenset(nothing | ({"outer"} if reduction.budget == 1 else set())))

    def add(self, samples: Sequence[SampleStats], spans: Mapping[str, Any]) -> None:
        """Note the prompts of one prefill. spans: by stage its seconds, or two events."""
        self._samples += samples
        self._unread += [(sample, dict(spans)) for sample in samples]

    @property
    def samples(self) -> list[SampleStats]:
        """One per prompt of every prefill so far; on CUDA this waits until the last of them has run."""
        for sample, spans in self._unread:
            sample.seconds.update({name: _as_number(span) for name, span in spans.items()})
        self._unread.clear()
        return self._samples

    @property
    def last(self) -> SampleStats:
        """The newest sample."""
        if not self._samples:
            raise CannotRun("no video has been prefilled yet", fix="call model.generate(...) with a video first")
        return self.samples[-1]

    @property
    def budget(self) -> TokenBudget:
        """Asked and spent, over all samples."""
        return token_budget(self.samples)

    @property
    def acted(self) -> bool:
        """True if there was a video, every stage that was asked for has run, and has taken tokens away if it should."""
        return bool(self._samples) and not self.missing and not self.idle

    @property
    def missing(self) -> tuple[str, ...]:
        """Stages that never ran."""
        return tuple(stage for stage in self.stages if not self.calls[stage])

    @property
    def idle(self) -> tuple[str, ...]:
        """Stages that ran and never took a token away, although their parameters ask for it."""
        acting = (stage for stage in self.stages if stage not in self.identities)
        return tuple(stage for stage in acting if self.calls[stage] and not self.removed[stage])

    def check_acted(self) -> None:
        """CannotRun if there was no video at all, or if a stage that was asked for never ran or changed nothing."""
        if not self._samples:
            raise CannotRun("no video reached the model, so nothing was reduced", fix="give a prompt with a video")
        if self.missing:
            raise CannotRun(
                f"{', '.join(self.missing)} never ran, so the run does not measure what it says",
                fix="let the model prefill a video (and, for a decode stage, generate two tokens or more)",
            )
        if self.idle:
            raise CannotRun(
                f"{', '.join(self.idle)} kept every token of all {len(self._samples)} prompts, so the run measures the "
                "model without it",
                fix="ask for fewer tokens, or give longer videos; a stage that is meant to keep all needs ratio 0 (or "
                "a budget of 1)",
            )


def _as_number(span: Any) -> float:
    """Seconds, or two events on CUDA, of which the later one is waited for."""
    if not isinstance(span, tuple):
        return float(span)
    span[1].synchronize()
    return span[0].elapsed_time(span[1]) / 1000
