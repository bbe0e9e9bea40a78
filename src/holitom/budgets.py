"""What a setting asked for and what it spent: visual tokens before the language model and over its layers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holitom.errors import BadUsage

Number = int | float
WITHIN = 1.0
"""Tokens per frame by which two realised budgets may differ and still be called equal."""


@dataclass(frozen=True, kw_only=True)
class TokenBudget:
    """Tokens of one video (or of all videos of one prompt), as means over the prompts of a run.

    asked_share, asked_tokens: what the outer stage was given as its budget (1 and all tokens where there is none);
    full_tokens, full_newlines: of the unreduced video; kept_tokens, kept_newlines: what entered the language model;
    layer_tokens, layer_newlines: what entered a layer, averaged over all layers of the language model; frames: of the
    video. off_per_frame: kept minus asked tokens, per frame; farthest_off: the same of the prompt where it is farthest
    from 0. Raises BadUsage for values that are not finite numbers.
    """

    asked_share: Number
    asked_tokens: Number
    full_tokens: Number
    full_newlines: Number
    kept_tokens: Number
    kept_newlines: Number
    layer_tokens: Number
    layer_newlines: Number
    frames: Number
    off_per_frame: Number
    farthest_off: Number

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise BadUsage(f"a token budget's {name} is {value!r}", fix="give a finite number")
        if self.full_tokens <= 0 or self.frames <= 0:
            raise BadUsage("a token budget of a video without tokens or frames", fix="give those of the whole video")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TokenBudget:
        """The inverse of :meth:`as_dict`. Raises BadUsage that names a field too many or too few."""
        known = {field.name for field in dataclasses.fields(cls)}
        wrong = sorted(known ^ set(values))
        if wrong:
            raise BadUsage(f"a token budget has no, or lacks, {', '.join(wrong)}", fix=f"give {', '.join(known)}")
        return cls(**values)

    def as_dict(self) -> dict[str, Number]:
        return dataclasses.asdict(self)

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
    def layer_share_with_newlines(self) -> float:
        return (self.layer_tokens + self.layer_newlines) / (self.full_tokens + self.full_newlines)

    @property
    def met(self) -> bool:
        """Whether the realised budget is within one token per frame of what was asked."""
        return abs(self.off_per_frame) <= WITHIN

    def remark(self) -> str:
        """For a table: "" when the budget was met, else by how much the realised one differs."""
        if self.met:
            return ""
        side = "over" if self.off_per_frame > 0 else "under"
        return f"{abs(self.off_per_frame):.1f} tokens per frame {side} the asked {100 * self.asked_share:g} %"

    def apart(self, other: TokenBudget) -> float:
        """Tokens per frame by which this setting kept more than the other one, on average. Raises BadUsage where the
        two saw different numbers of frames."""
        if not math.isclose(self.frames, other.frames):
            raise BadUsage(
                f"budgets of {self.frames:g} and {other.frames:g} frames cannot be compared per frame",
                fix="compare settings on the same videos with the same number of frames",
            )
        return (self.kept_tokens - other.kept_tokens) / self.frames
