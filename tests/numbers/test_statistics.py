"""Intervals cover what they should, paired tests find what is there and nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest

from holitom.errors import BadUsage
from holitom_repro.evaluation.statistics import interval, paired_difference, retained_share

VIDEOS, QUESTIONS = 100, 3
IDS = [video for video in range(VIDEOS) for _ in range(QUESTIONS)]


def clustered_answers(rng: np.random.Generator, share: float, correlation: float) -> np.ndarray:
    strength = 1 / correlation - 1
    chance = rng.beta(share * strength, (1 - share) * strength, VIDEOS)
    return (rng.random(len(IDS)) < np.repeat(chance, QUESTIONS)).astype(float)


@pytest.mark.parametrize(("share", "correlation"), [(0.6, 0.4), (0.9, 0.3), (0.97, 0.3)])
def test_the_interval_covers_the_truth_for_clustered_answers(share: float, correlation: float) -> None:
    rng = np.random.default_rng(5)
    estimates = [interval(clustered_answers(rng, share, correlation), IDS) for _ in range(400)]
    coverage = np.mean([e.low <= 100 * share <= e.high for e in estimates])
    assert 0.92 <= coverage <= 0.99
    naive = np.mean([abs(e.value - 100 * share) <= 196 * math.sqrt(share * (1 - share) / len(IDS)) for e in estimates])
    assert naive < coverage  # questions counted as independent cover too little


def test_answers_that_repeat_within_a_video_count_once() -> None:
    rng = np.random.default_rng(0)
    one = (rng.random(60) < 0.5).astype(float)
    single, tripled = interval(one, list(range(60))), interval(np.repeat(one, 3), np.repeat(np.arange(60), 3).tolist())
    assert tripled.value == pytest.approx(single.value)
    assert tripled.high - tripled.low == pytest.approx(single.high - single.low, rel=0.02)


@pytest.mark.parametrize("answer", [0.0, 1.0])
def test_the_ends_of_the_scale(answer: float) -> None:
    estimate = interval([answer] * 300, IDS)
    assert estimate.value == 100 * answer
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 100
    assert 1 < estimate.high - estimate.low < 6


def test_a_better_score_never_has_a_lower_interval() -> None:
    lows = [interval([0.0] * wrong + [1.0] * (300 - wrong), IDS).low for wrong in range(40)]
    assert lows == sorted(lows, reverse=True)


def test_one_video_says_nothing() -> None:
    assert (interval([1, 0, 1], [7, 7, 7]).low, interval([1, 0, 1], [7, 7, 7]).high) == (0, 100)
    difference = paired_difference([1, 1, 1], [0, 0, 1], [7, 7, 7])
    assert (difference.low, difference.high, difference.p) == (-100, 100, 1.0)


def test_an_exact_sign_flip() -> None:
    ten = list(range(10))
    assert paired_difference([1] * 10, [0] * 10, ten).p == 2 / 2**10
    one_against = paired_difference([1] * 9 + [0], [0] * 9 + [1], ten)
    assert one_against.p == (2 + 2 * 10) / 2**10
    assert one_against.value == 80


def test_drawn_sign_flips_agree_with_the_binomial_and_repeat() -> None:
    wins = [1.0] * 14 + [0.0] * 6
    losses = [1 - w for w in wins]
    first = paired_difference(wins, losses, list(range(20)))
    exact = 2 * sum(math.comb(20, k) for k in range(14, 21)) / 2**20
    assert first.p == pytest.approx(exact, abs=0.01)
    assert first == paired_difference(wins, losses, list(range(20)))


def test_equal_answers_differ_by_nothing_but_not_for_certain() -> None:
    same = paired_difference([1.0] * 300, [1.0] * 300, IDS)
    assert same.value == 0 and same.p == 1
    assert -2 < same.low < 0 < same.high < 2


def test_paired_difference_has_the_right_size_and_coverage() -> None:
    rng = np.random.default_rng(3)
    covered, rejected = [], []
    for _ in range(300):
        a = clustered_answers(rng, 0.7, 0.3)
        redrawn = clustered_answers(rng, 0.7, 0.3)
        b = np.where(np.repeat(rng.random(VIDEOS) < 0.3, QUESTIONS), redrawn, a)
        estimate = paired_difference(a, b, IDS)
        covered.append(estimate.low <= 0 <= estimate.high)
        rejected.append(estimate.p < 0.05)
    assert np.mean(covered) >= 0.92
    assert np.mean(rejected) <= 0.08


def test_a_true_loss_is_found() -> None:
    rng = np.random.default_rng(3)
    full = (rng.random(300) < 0.95).astype(float)
    reduced = full * (rng.random(300) < 0.9)
    estimate = paired_difference(reduced, full, IDS)
    assert estimate.value < 0 and estimate.high < 0 and estimate.p < 0.001


def test_retained_share() -> None:
    estimate = retained_share([1, 0, 1, 0], [1, 1, 1, 1], [0, 1, 2, 3])
    assert estimate.value == 50
    assert 0 <= estimate.low < 50 < estimate.high <= 100
    same = retained_share([1.0] * 300, [1.0] * 300, IDS)
    assert same.value == 100 and same.low < 100
    with pytest.raises(BadUsage, match="nothing right"):
        retained_share([1, 0], [0, 0], [0, 1])


def test_bad_answers_are_refused() -> None:
    for correct, groups in (([], []), ([1, 0], [1]), ([1, 2], [1, 2]), ([1, math.nan], [1, 2])):
        with pytest.raises(BadUsage):
            interval(correct, groups)
