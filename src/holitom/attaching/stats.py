"""What a reduced run did: tokens requested and kept, tokens per layer, cost, seconds, and whether every stage acted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from holitom.budgets import TokenBudget
from holitom.errors import CannotRun
from holitom.flops import LLMShape
from holitom.moments import Seconds
from holitom.ops.transfer import Later
from holitom.types import Reduction


@dataclass
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
    cells: int | float
    budget: float | int
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
    seconds: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seconds = Seconds(self.seconds)

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
        values = {name: value for name, value in vars(self).items() if name != "shape"}
        return values | {
            "seconds": dict(self.seconds.items()),
            "realised": self.realised,
            "off_per_frame": self.off_per_frame,
            "flops_paper": self.flops_paper,
            "flops_exact": self.flops_exact,
        }


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
    (for a decode stage: left unread), summed over everything; ``samples``: one per prompt; ``later``: counts and checks
    that the device knows and nobody has read yet."""

    stages: tuple[str, ...] = ()
    identities: frozenset[str] = frozenset()
    calls: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    later: Later = field(default_factory=Later, repr=False, compare=False)
    _samples: list[SampleStats] = field(default_factory=list)

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

    @property
    def samples(self) -> list[SampleStats]:
        """One per prompt of every prefill so far. BadUsage if a stage met values or gave ids that it must not."""
        self.later.settle()
        return self._samples

    @samples.setter
    def samples(self, samples: list[SampleStats]) -> None:
        self._samples = samples

    def add(self, samples: Iterable[SampleStats]) -> None:
        """Note further samples, of which counts may still be on the device."""
        self._samples += samples

    @property
    def last(self) -> SampleStats:
        """The newest sample."""
        if not self.samples:
            raise CannotRun("no video has been prefilled yet", fix="call model.generate(...) with a video first")
        return self.samples[-1]

    @property
    def budget(self) -> TokenBudget:
        """Asked and spent, over all samples."""
        return token_budget(self.samples)

    @property
    def acted(self) -> bool:
        """True if there was a video, every stage that was asked for has run, and has taken tokens away if it should."""
        return bool(self.samples) and not self.missing and not self.idle

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
        if not self.samples:
            raise CannotRun("no video reached the model, so nothing was reduced", fix="give a prompt with a video")
        if self.missing:
            raise CannotRun(
                f"{', '.join(self.missing)} never ran, so the run does not measure what it says",
                fix="let the model prefill a video (and, for a decode stage, generate two tokens or more)",
            )
        if self.idle:
            raise CannotRun(
                f"{', '.join(self.idle)} kept every token of all {len(self.samples)} prompts, so the run measures the "
                "model without it",
                fix="ask for fewer tokens, or give longer videos; a stage that is meant to keep all needs ratio 0 (or "
                "a budget of 1)",
            )
