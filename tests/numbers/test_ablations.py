"""Differences to the default, Holm's correction, and sentences that follow from them and from nothing else."""

from __future__ import annotations

import pandas as pd
import pytest

from holitom_repro.ablations import DEFAULT, Factor, clear, findings
from holitom_repro.comparing import difference, holm
from holitom.errors import BadUsage


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == [] and holm([0.2]) == [0.2]


def test_holm_is_monotone_and_never_below_the_plain_value():
    plain = [0.001, 0.2, 0.013, 0.04, 0.013, 1.0]
    adjusted = holm(plain)
    assert all(b >= a for a, b in zip(plain, adjusted, strict=True)) and max(adjusted) <= 1
    order = sorted(range(6), key=lambda i: plain[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


def log(shares: dict[str, list[int]]) -> dict:
    return {(name, ("", i)): (float(c), f"{name}/v{i // 2}") for name, row in shares.items() for i, c in enumerate(row)}


def test_every_benchmark_counts_the_same():
    base = log({"a": [1] * 10, "b": [1] * 40})
    mine = log({"a": [0] * 5 + [1] * 5, "b": [1] * 40})
    found = difference(mine, base, ["a", "b"])
    assert found["diff"] == pytest.approx(-25) and found["a"] == pytest.approx(-50) and found["b"] == 0
    assert found["changed"] == 5 and found["videos"] == 25
    assert found["diff_low"] < -25 < found["diff_high"]


def test_different_questions_are_refused():
    with pytest.raises(BadUsage, match="different questions"):
        difference(log({"a": [1, 1]}), log({"a": [1]}), ["a"])


def table(*rows: tuple[str, float, float, float, float], videos: int = 100, changed: int = 9) -> pd.DataFrame:
    names = ["variant", "diff", "diff_low", "diff_high", "p_holm"]
    found = pd.DataFrame([dict(zip(names, row, strict=True)) for row in rows])
    found = found.assign(factor="f", tokens=50.0, changed=changed, videos=videos)
    base = pd.DataFrame([{"factor": "", "variant": DEFAULT, "tokens": 50.0}])
    return pd.concat([base, found], ignore_index=True)


WORSE, BETTER = ("worse", -3.0, -4.0, -2.0, 0.001), ("better", 3.0, 2.0, 4.0, 0.001)
SAME, WIDE, LITTLE = ("same", 0.1, -0.8, 1.0, 1.0), ("wide", -1.0, -2.5, 0.5, 0.7), ("little", -0.6, -1.1, -0.1, 0.02)


@pytest.mark.parametrize(
    ("test", "rows", "verdict"),
    [
        ("needed", [WORSE], "holds"),
        ("needed", [WORSE, WIDE], "within noise"),
        ("needed", [WORSE, SAME], "does not hold"),
        ("needed", [WORSE, BETTER], "does not hold"),
        ("not beaten", [WORSE, SAME], "holds"),
        ("not beaten", [WIDE, ("up", 1.0, -0.5, 2.5, 0.6)], "within noise"),
        ("not beaten", [BETTER], "does not hold"),
        ("robust", [SAME, LITTLE], "holds"),
        ("robust", [SAME, WIDE], "within noise"),
        ("robust", [SAME, WORSE], "does not hold"),
        ("robust", [BETTER], "does not hold"),
    ],
)
def test_verdicts(test, rows, verdict):
    finding = findings(table(*rows), [Factor("f", "Expected.", test, "because")])[0]
    assert finding.verdict == verdict


def test_only_the_rivals_decide():
    factor = Factor("f", "Expected.", "robust", "because", rivals=("same",))
    assert findings(table(SAME, WORSE), [factor])[0].verdict == "holds"


def test_few_videos_decide_nothing():
    finding = findings(table(WORSE, videos=12), [Factor("f", "Expected.", "needed", "because")])[0]
    assert finding.verdict == "not decided"


def test_a_clear_difference_needs_the_corrected_p():
    rows = table(WORSE, ("lucky", -3.0, -5.0, -1.0, 0.06))
    assert [clear(row) for _, row in rows.iloc[1:].iterrows()] == [-1, 0]
