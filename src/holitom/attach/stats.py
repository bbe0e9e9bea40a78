"""What a block has done: token counts that were asked for and spent, and whether every stage acted."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from holitom.errors import CannotRun
from holitom.flops import LLMShape
from holitom.types import Reduction


@dataclass(frozen=True)
class SampleStats:
    """One prompt of one prefill (beams of a prompt count once).

    frames, full: frames and visual tokens of its whole videos; budget: the share that was asked for; requested: the
    tokens that makes, rounded for each video, and no more than a tower stage leaves; tower_frames: frames that entered
    each layer of the tower, with such a stage (the last: what is left); kept, newlines: visual and newline tokens that
    entered the language model; full_newlines: those of the whole videos; prompt_before, prompt_after: tokens of the
    prompt as given and after the outer stage, without padding. What entered each decoder layer: per_layer (visual),
    newlines_per_layer, prompt_per_layer (all).
    """

    frames: int
    full: int
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
    tower_frames: tuple[int, ...] = ()

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


class RunStats:
    """Everything since the ``with`` block began.

    stages: those that were asked for, "tower", "outer", "inner@3", "decode@4"; identities: those of them whose
    parameters ask for nothing; calls: how often each ran; removed: how many tokens each took away (a decode stage: left
    unread); samples: one per prompt of every prefill.
    """

    def __init__(self, reduction: Reduction) -> None:
        named: dict[str, Any] = {"tower": reduction.tower, "outer": reduction.outer}
        named |= {f"inner@{stage.layer}": stage for stage in reduction.inner}
        if reduction.decode is not None:
            named[f"decode@{reduction.decode.layer}"] = reduction.decode
        self.stages = tuple(name for name, stage in named.items() if stage is not None)
        self.identities = {name for name in self.stages if getattr(named[name], "identity", False)}
        if reduction.budget == 1:
            self.identities.add("outer")
        self.calls: Counter[str] = Counter()
        self.removed: Counter[str] = Counter()
        self.samples: list[SampleStats] = []

    def count(self, stage: str, removed: int) -> None:
        """Note one call of a stage, and how many tokens it took away."""
        self.calls[stage] += 1
        self.removed[stage] += removed

    @property
    def last(self) -> SampleStats:
        """The newest sample. CannotRun without one."""
        if not self.samples:
            raise CannotRun("no video has been prefilled yet", fix="call model.generate(...) with a video first")
        return self.samples[-1]

    def check_acted(self) -> None:
        """CannotRun if there was no video at all, or if a stage that was asked for never ran or changed nothing."""
        if not self.samples:
            raise CannotRun("no video reached the model, so nothing was reduced", fix="give a prompt with a video")
        missing = [stage for stage in self.stages if not self.calls[stage]]
        if missing:
            what = f"{', '.join(missing)} never ran, so the run does not measure what it says"
            raise CannotRun(what, fix="prefill a video (and, for a decode stage, generate two tokens or more)")
        idle = [stage for stage in self.stages if not self.removed[stage] and stage not in self.identities]
        if idle:
            what = f"{', '.join(idle)} kept every token of all {len(self.samples)} prompts"
            raise CannotRun(what, fix="ask for fewer tokens, or give longer videos; to keep all, ratio 0 or budget 1")
