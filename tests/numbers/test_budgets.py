"""Asked against spent, in shares and in tokens per frame."""

from __future__ import annotations

import dataclasses

import pytest

from holitom.attaching.stats import SampleStats, token_budget
from holitom.budgets import TokenBudget
from holitom.errors import BadUsage, CannotRun
from holitom.flops import LLMShape

SHAPE = LLMShape.named("ov-7b")


def sample(kept: int, frames: int = 4, *, newlines: int = 4, budget: float = 0.25) -> SampleStats:
    """4 layers, of which the last two see half of what was kept; a newline per row of a 4 x 4 grid."""
    return SampleStats(
        videos=1, frames=frames, cells=16, budget=budget, requested=round(budget * frames * 16), kept=kept,
        newlines=newlines, full_newlines=4 * frames, prompt_before=100, prompt_after=50, shape=SHAPE,
        per_layer=(kept, kept, kept // 2, kept // 2), newlines_per_layer=(newlines, newlines, newlines, 0),
    )  # fmt: skip


def test_means_over_samples() -> None:
    found = token_budget([sample(16), sample(24), sample(12)])
    assert (found.asked_share, found.asked_tokens, found.full_tokens, found.full_newlines) == (0.25, 16, 64, 16)
    assert found.kept_tokens == pytest.approx(52 / 3) and found.kept_newlines == 4
    assert found.layer_tokens == pytest.approx(39 / 3) and found.layer_newlines == 3
    assert found.share == pytest.approx(52 / 3 / 64)
    assert found.share_with_newlines == pytest.approx((52 / 3 + 4) / 80)
    assert found.layer_share == pytest.approx(13 / 64) and found.layer_share_with_newlines == pytest.approx(16 / 80)
    assert found.off_per_frame == pytest.approx((0 + 2 - 1) / 3) and found.farthest_off == 2
    with pytest.raises(CannotRun, match="no video"):
        token_budget([])


@pytest.mark.parametrize(
    ("kept", "met", "remark"),
    [
        (16, True, ""),
        (20, True, ""),
        (12, True, ""),
        (21, False, "1.2 tokens per frame over the asked 25 %"),
        (8, False, "2.0 tokens per frame under the asked 25 %"),
    ],
)
def test_within_one_token_per_frame_or_by_how_much(kept: int, met: bool, remark: str) -> None:
    found = token_budget([sample(kept)])
    assert found.met is met and found.remark() == remark


def test_two_settings_are_compared_per_frame() -> None:
    one, other = token_budget([sample(24)]), token_budget([sample(16)])
    assert one.apart(other) == 2 and other.apart(one) == -2 and one.apart(one) == 0
    with pytest.raises(BadUsage, match="4 and 8 frames"):
        one.apart(token_budget([sample(32, frames=8)]))


def test_a_budget_round_trips_and_refuses_what_is_not_one() -> None:
    found = token_budget([sample(24)])
    assert TokenBudget.from_dict(found.as_dict()) == found
    with pytest.raises(BadUsage, match="speed"):
        TokenBudget.from_dict({**found.as_dict(), "speed": 1})
    with pytest.raises(BadUsage, match="frames"):
        TokenBudget.from_dict({k: v for k, v in found.as_dict().items() if k != "frames"})
    for wrong in ({"kept_tokens": float("nan")}, {"full_tokens": 0}, {"frames": 0}):
        with pytest.raises(BadUsage):
            dataclasses.replace(found, **wrong)
