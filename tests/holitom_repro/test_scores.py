"""From settings to the tidy frame: what is measured, what is read, and one estimator for every difference."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from holitom.errors import BadUsage
from holitom.methods import HoliTom, RandomDrop
from holitom.types import Reduction
from holitom_repro.evaluation import sweep
from holitom_repro.evaluation.statistics import balanced, interval, paired_difference
from holitom_repro.records import Store
from holitom_repro.scores import compare, evaluate, fewer_frames, paired, samples

COLUMNS = "key method budget model benchmark frames limit tier protocol accuracy low high diff diff_low diff_high p n"
COLUMNS += " videos answers kept_pct newline_pct layer_pct off_per_frame flops_pct cell notes"
BENCHMARKS = ["tiny_ego", "tiny_actions"]
SETTINGS = {
    ("HoliTom", 0.25): Reduction("HoliTom", HoliTom(tau=0.8), 0.25),
    ("all tokens", 1.0): Reduction("all tokens"),
    ("Random", 0.25): Reduction("Random", RandomDrop(seed=0), 0.25),
}
FEW = {"frames": 8, "limit": 9, "progress": False}


@pytest.fixture
def measured(runs: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The keys of every sweep that a call started."""
    asked, own = [], sweep.measure_tiny

    def measure_tiny(cells, show=True):
        asked.append([cell.key for cell in cells])
        own(cells, show)

    monkeypatch.setattr(sweep, "measure_tiny", measure_tiny)
    return asked


def test_one_tidy_frame_that_is_measured_once(measured: list) -> None:
    frame = evaluate("data/tiny/onevision", SETTINGS, BENCHMARKS, **FEW)
    assert " ".join(frame.columns) == COLUMNS
    assert len(frame) == 9 and set(frame["benchmark"]) == {*BENCHMARKS, "average"}
    assert list(frame["key"].unique()) == ["all tokens", "HoliTom@0.25", "Random@0.25"], "the unreduced model first"
    assert set(frame["model"]) == {"onevision"} and set(frame["tier"]) == {"tiny"}
    full = frame[frame["key"] == "all tokens"]
    assert full["diff"].isna().all() and (full[["kept_pct", "flops_pct", "layer_pct"]] == 100).all(axis=None)
    other = frame[frame["key"] != "all tokens"]
    assert other["kept_pct"].between(15, 40).all() and other["flops_pct"].between(5, 40).all()
    assert (frame["low"] <= frame["accuracy"]).all() and (frame["accuracy"] <= frame["high"]).all()
    assert all(math.isclose(sum(json.loads(shares).values()), 1, abs_tol=0.01) for shares in frame["answers"])
    assert len(measured) == 1 and len(measured[0]) == 6

    pd.testing.assert_frame_equal(frame, evaluate("onevision", SETTINGS, BENCHMARKS, **FEW))
    assert len(measured) == 1, "finished cells are read"
    one = {key: value for key, value in SETTINGS.items() if key[0] == "Random"}
    alone = evaluate("onevision", one, BENCHMARKS, **FEW)
    pd.testing.assert_frame_equal(alone, frame[frame["method"] != "HoliTom"].reset_index(drop=True))

    _check_estimators(frame)
    cell = frame.set_index(["key", "benchmark"]).loc[("Random@0.25", "tiny_ego"), "cell"]
    (Store("tiny").folder / f"{cell}.json").write_text("{")
    pd.testing.assert_frame_equal(frame, evaluate("onevision", SETTINGS, BENCHMARKS, **FEW))
    assert measured[-1] == ["Random@0.25"], "a damaged cell"
    again = evaluate("onevision", {}, BENCHMARKS[:1], fresh=True, **FEW)
    assert measured[-1] == ["all tokens"] and list(again["key"]) == ["all tokens"] * 2


def _check_estimators(frame: pd.DataFrame) -> None:
    """Every number of the frame, and of ``paired``, from the questions by the one estimator."""
    lines = samples(frame)
    wide = lines.pivot(index=["benchmark", "doc_id"], columns="key", values="correct")
    videos = lines[lines["key"] == "all tokens"].set_index(["benchmark", "doc_id"])["video"].reindex(wide.index)
    groups = [f"{benchmark}/{video}" for (benchmark, _), video in videos.items()]
    weights = balanced(wide.index.get_level_values(0))
    a, b, full = wide["HoliTom@0.25"], wide["Random@0.25"], wide["all tokens"]
    row = frame.set_index(["key", "benchmark"]).loc[("HoliTom@0.25", "average")]
    score, gap = interval(a, groups, weights), paired_difference(a, full, groups, weights)
    assert (row.accuracy, row.low, row.high) == pytest.approx((score.value, score.low, score.high))
    assert (row["diff"], row.diff_low, row.diff_high, row.p) == pytest.approx((gap.value, gap.low, gap.high, gap.p))
    found, direct = paired(frame, "HoliTom@0.25", "Random@0.25"), paired_difference(a, b, groups, weights)
    assert (found.value, found.low, found.high, found.p) == pytest.approx(
        (direct.value, direct.low, direct.high, direct.p)
    )
    assert found.changed == (a != b).sum() and found.videos == 6
    assert paired(frame, "Random@0.25", "HoliTom@0.25").value == pytest.approx(-found.value)
    assert paired(frame, "HoliTom@0.25", "all tokens", "tiny_ego").videos == 3
    table = compare(frame, [("HoliTom@0.25", "all tokens"), ("Random@0.25", "all tokens")])
    assert list(table["a"]) == ["HoliTom@0.25", "Random@0.25"] and (table["p_holm"] >= table["p"]).all()
    with pytest.raises(BadUsage, match="not among"):
        paired(frame, "HoliTom@0.10", "all tokens")
    assert paired(pd.concat([frame, frame]), "HoliTom@0.25", "Random@0.25") == found, "the same cells twice"
    with pytest.raises(BadUsage, match="several cells"):
        paired(pd.concat([frame, frame.assign(cell="other")]), "HoliTom@0.25", "all tokens")


def test_fewer_frames_are_rows_beside_the_methods(measured: list) -> None:
    frame = fewer_frames("onevision", [0.5, 0.2], BENCHMARKS[:1], **FEW)
    assert list(frame["key"]) == ["fewer frames@0.50"] * 2 + ["fewer frames@0.20"] * 2
    assert list(frame["frames"]) == [4, 4, 2, 2], "rounded up"
    assert list(frame["kept_pct"]) == pytest.approx([50, 50, 25, 25])
    assert frame["diff"].notna().all() and frame["flops_pct"].between(10, 60).all()


def test_wrong_requests_are_refused_before_anything_runs(measured: list) -> None:
    with pytest.raises(BadUsage, match="tiny_ego"):
        evaluate("onevision", SETTINGS, [*BENCHMARKS, "tiny_egos"])
    assert not measured
