"""What a reduced run did: tokens requested and kept, tokens per layer, cost, seconds, and whether every stage acted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from holitom.errors import CannotRun
from holitom.flops import LLMShape


@dataclass
class SampleStats:
    """One prompt of one prefill (beams of a prompt count once).

    frames, cells: of its videos (frames summed); requested: round(budget * frames * cells) visual tokens; kept:
    visual tokens that entered the language model; newlines: newline tokens beside them; prompt_before, prompt_after:
    prompt tokens without padding, as the caller gave them and after the outer stage; per_layer: visual tokens
    entering each layer; prompt_per_layer: all prompt tokens entering each layer; cached_per_layer: prompt tokens in
    each layer's cache after prefill; seconds: per stage (vision, saliency, outer, prefill), of the whole batch that
    the prompt was part of."""

    videos: int
    frames: int
    cells: int
    requested: int
    kept: int
    newlines: int
    prompt_before: int
    prompt_after: int
    shape: LLMShape
    per_layer: tuple[int, ...] = ()
    prompt_per_layer: tuple[int, ...] = ()
    cached_per_layer: tuple[int, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def realised(self) -> float:
        """Share of the video's tokens that entered the language model."""
        return self.kept / (self.frames * self.cells)

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
            "realised": self.realised,
            "flops_paper": self.flops_paper,
            "flops_exact": self.flops_exact,
        }


@dataclass
class RunStats:
    """Everything since the ``with`` block began. ``stages``: the stages that were asked for; ``calls``: how often each
    ran."""

    stages: tuple[str, ...] = ()
    samples: list[SampleStats] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)

    @property
    def last(self) -> SampleStats:
        """The newest sample."""
        if not self.samples:
            raise CannotRun("no video has been prefilled yet", fix="call model.generate(...) with a video first")
        return self.samples[-1]

    @property
    def acted(self) -> bool:
        """True if there was a video, and every stage that was asked for has run."""
        return bool(self.samples) and not self.missing

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(stage for stage in self.stages if not self.calls[stage])

    def check_acted(self) -> None:
        """CannotRun if there was no video at all, or if a stage that was asked for never ran."""
        if not self.samples:
            raise CannotRun("no video reached the model, so nothing was reduced", fix="give a prompt with a video")
        if self.missing:
            raise CannotRun(
                f"{', '.join(self.missing)} never ran, so the run does not measure what it says",
                fix="let the model prefill a video (and, for a decode stage, generate two tokens or more)",
            )


def stage_names(outer: object | None, inner: Sequence[Any], decode: Any | None) -> tuple[str, ...]:
    """The names under which the stages of a setting are counted."""
    names = ["outer"] if outer is not None else []
    names += [f"inner@{stage.layer}" for stage in inner]
    return (*names, f"decode@{decode.layer}") if decode is not None else tuple(names)
