"""Intervals and paired tests for benchmark answers, clustered by video.

Questions about one video share its frames, its cuts and its reduced tokens, so their answers are not independent:
every interval here takes the video as the unit that was drawn. All values are in points (per cent of questions).
``weights`` say how much each question counts; :func:`balanced` gives those with which every benchmark counts the same.
"""

import math
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import SupportsFloat

import numpy as np

from holitom.errors import BadUsage

EXACT_UP_TO = 14
"""Up to this many videos that differ, every sign pattern is enumerated; above, RANDOM_FLIPS of them are drawn (seed
0)."""
RANDOM_FLIPS = 20_000

Scores = Collection[SupportsFloat]
Groups = Collection[Hashable]


@dataclass(frozen=True)
class Estimate:
    """A value in points with its interval; n questions about ``groups`` videos; p: two-sided, for differences only."""

    value: float
    low: float
    high: float
    n: int
    groups: int
    p: float | None = None


def interval(correct: Scores, groups: Groups, weights: Scores | None = None) -> Estimate:
    """The score in points and its 95 % interval, clustered by ``groups`` (one video id per answer).

    correct: 0 or 1 (or a partial credit between) per question. Wilson's score interval at the effective sample size
    p (1 - p) / SE^2, with the cluster-robust SE and a t quantile on groups - 1 degrees of freedom: it stays inside
    [0, 100] and does not collapse at either end. Near the ends the data hardly say how answers cluster, so the
    effective size is computed with two imaginary videos of average length added, one all right and one all wrong;
    at 100 % a video thus counts as about one observation. One video alone: [0, 100].
    """
    y, ids, w = _arrays(correct, groups, weights)
    if y.min() < 0 or y.max() > 1:
        raise BadUsage("an answer scores outside [0, 1]", fix="give 0, 1, or a partial credit between")
    clusters, share = int(ids.max()) + 1, float(w @ y / w.sum())
    if clusters == 1:
        return Estimate(100 * share, 0.0, 100.0, len(y), 1)
    effective = min(float(len(y)), _effective_size(y, ids, w))
    t2 = _t_quantile(clusters - 1) ** 2
    centre = (share + t2 / (2 * effective)) / (1 + t2 / effective)
    half = math.sqrt(t2 * (share * (1 - share) / effective + t2 / (4 * effective**2))) / (1 + t2 / effective)
    low, high = min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))  # whatever is rounded
    return Estimate(100 * share, 100 * low, 100 * high, len(y), clusters)


def paired_difference(a: Scores, b: Scores, groups: Groups, weights: Scores | None = None) -> Estimate:
    """Score of ``a`` minus score of ``b`` on the same questions, in points, with 95 % interval and p, clustered by
    video.

    Interval: t on the cluster-robust SE of the per-question differences. Two imaginary videos with one question
    each, one that a wins and one that b wins, are added to the variance (as Agresti and Min 2005 do for matched
    pairs), so that equal answers everywhere give a small interval around 0 and not an empty one. p: sign-flip
    permutation test over videos (under the null, swapping a and b within a video changes nothing), exact for up to
    EXACT_UP_TO differing videos.
    """
    (x, ids, w), (y, _, _) = _arrays(a, groups, weights), _arrays(b, groups, weights)
    d = w * (x - y)
    half = _half_width(d - d.mean(), ids, float(len(d)))
    low, high = max(-100.0, 100 * (d.mean() - half)), min(100.0, 100 * (d.mean() + half))
    p = _sign_flip(np.bincount(ids, weights=d))
    return Estimate(100 * float(d.mean()), float(low), float(high), len(d), int(ids.max()) + 1, p)


def retained_share(a: Scores, b: Scores, groups: Groups, weights: Scores | None = None) -> Estimate:
    """Score of ``a`` in per cent of the score of ``b`` on the same questions (the papers' retained share), with
    interval: a ratio of means, linearised, cluster-robust, with the same two imaginary videos as
    ``paired_difference``. BadUsage when b answers nothing right.
    """
    (x, ids, w), (y, _, _) = _arrays(a, groups, weights), _arrays(b, groups, weights)
    whole = float(w @ y)
    if whole <= 0:
        raise BadUsage("the baseline answers nothing right, so no share of it can be retained", fix="check it")
    ratio = float(w @ x) / whole
    half = _half_width(w * (x - ratio * y), ids, whole)
    low, high = max(0.0, ratio - half), min(float(w.sum() / whole), ratio + half)
    return Estimate(100 * ratio, 100 * low, 100 * high, len(x), int(ids.max()) + 1)


def balanced(benchmarks: Sequence[Hashable]) -> np.ndarray:
    """[n] weights of mean 1, given each question's benchmark, with which every benchmark counts the same."""
    _, ids, counts = np.unique(list(map(str, benchmarks)), return_inverse=True, return_counts=True)
    return len(ids) / (len(counts) * counts[ids])


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: below a level together, they hold the chance of any false alarm below it."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def mcnemar(won: int, lost: int) -> float:
    """McNemar's exact two-sided p for questions that only one of two settings has right, each drawn alone."""
    n, fewer = won + lost, min(won, lost)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


def _half_width(residuals: np.ndarray, ids: np.ndarray, scale: float) -> float:
    """t times the SE of a sum when whole clusters are drawn: G / (G - 1) * sum of squared cluster sums."""
    sums = np.bincount(ids, weights=residuals)
    if len(sums) == 1:
        return math.inf
    variance = float(len(sums) / (len(sums) - 1) * np.square(sums).sum())
    return _t_quantile(len(sums) - 1) * math.sqrt(variance + 2.0) / scale


def _effective_size(y: np.ndarray, ids: np.ndarray, w: np.ndarray) -> float:
    sizes = np.bincount(ids, weights=w)
    length = sizes.mean()
    sums = np.concatenate([np.bincount(ids, weights=w * y), [length, 0.0]])
    sizes = np.concatenate([sizes, [length, length]])
    share = sums.sum() / sizes.sum()
    spread = np.square(sums - share * sizes).sum() * len(sums) / (len(sums) - 1)
    return float(share * (1 - share) * sizes.sum() ** 2 / spread)


def _sign_flip(sums: np.ndarray) -> float:
    sums = sums[np.abs(sums) > 1e-12]
    if not len(sums):
        return 1.0
    seen = abs(sums.sum()) - 1e-9
    if len(sums) <= EXACT_UP_TO:
        patterns = (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1
        return float((np.abs((1 - 2 * patterns) @ sums) >= seen).mean())
    signs = np.random.default_rng(0).integers(0, 2, size=(RANDOM_FLIPS, len(sums)), dtype=np.int8) * 2 - 1
    return float((1 + (np.abs(signs @ sums) >= seen).sum()) / (1 + RANDOM_FLIPS))


def _t_quantile(df: int) -> float:
    """Student's t at 0.975 by the Cornish-Fisher expansion in 1 / df, exact for df 1 and 2 (worst error 0.3 % at df 3).
    For each power of 1 / df the coefficients of z, z^3, z^5, ... and what they are divided by."""
    if df == 1:
        return math.tan(math.pi * (0.975 - 0.5))
    if df == 2:
        return (2 * 0.975 - 1) * math.sqrt(2 / (4 * 0.975 * (1 - 0.975)))
    z = NormalDist().inv_cdf(0.975)
    rows = ((1, 1, 4), (3, 16, 5, 96), (-15, 17, 19, 3, 384), (-945, -1920, 1482, 776, 79, 92160))
    terms = (np.polynomial.polynomial.polyval(z * z, row[:-1]) / row[-1] / df**k for k, row in enumerate(rows, 1))
    return float(z + z * sum(terms))


def _arrays(values: Scores, groups: Groups, weights: Scores | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores [n], the number of each one's cluster [n], weights [n]."""
    y = np.asarray(list(values), dtype=np.float64)
    w = np.ones(len(y)) if weights is None else np.asarray(list(weights), dtype=np.float64)
    numbering: dict[Hashable, int] = {}
    return y, np.asarray([numbering.setdefault(group, len(numbering)) for group in groups]), w
