"""The ledger: what it says, what it is judged from, and what it refuses to judge."""

import json
import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from test_records import record

from holitom.errors import CannotRun
from holitom.methods.controls import RandomDrop
from holitom.methods.fastvid import FastVID
from holitom.methods.holitom_variants import FixedWindows
from holitom.methods.presets import preset, preset_names
from holitom.types import Reduction
from holitom_repro import claims, papers, paths
from holitom_repro.claims import judge, judged, ledger, load
from holitom_repro.records import Store

TINY, PAPER = tuple(papers.TINY_TASKS.values()), tuple(claims.COMPARED.values())
BY_ID = {claim.id: claim for claim in load()}
PRINTED = papers.printed("table1").set_index("key")


@pytest.fixture
def world(runs, monkeypatch):
    """An empty runs/, and no recorded verdicts."""
    real, recorded = paths.data, runs / "verdicts.json"
    monkeypatch.setattr(paths, "data", lambda *parts: recorded if parts[-1] == "verdicts.json" else real(*parts))
    claims._record.cache_clear()
    return World()


class World:
    """Finished cells whose answers are as right as asked for: a better setting answers all that a worse one does."""

    def __init__(self):
        self.rows, self.cells = [], 0

    def measure(self, key, share, reduction=None, *, benchmarks=TINY, model="onevision", kept=None, layers=6, **more):
        """share: right answers, of all benchmarks or of each; more: frames, tier, videos of 3 questions, seed."""
        n, setting = 3 * more.get("videos", 100), reduction or self.preset(key, model, layers)
        where = {"key": key, "model": model, "frames": more.get("frames", 32), "tier": more.get("tier", "tiny")}
        where["limit"] = None
        for name, right in (dict.fromkeys(benchmarks, share) if isinstance(share, float) else share).items():
            self.cells += 1
            cell, ranks = f"{self.cells:016d}", np.random.default_rng(len(name) + more.get("seed", 0)).permutation(n)
            lines = [
                {"doc_id": i, "task": name, "video": f"{i // 3}", "correct": float(ranks[i] < right * n)}
                for i in range(n)
            ]
            score, around = 100 * float(np.mean([line["correct"] for line in lines])), more.get("around", 1.5)
            facts = {"benchmark": name, "n": n, "videos": n // 3, "value": score, "lmms_eval": score}
            facts |= {"reduction": setting.describe(), "tokens_per_layer": (1.0,) * layers}
            Store(where["tier"]).save(cell, record(**where, **facts), lines)
            row = {"benchmark": name, "accuracy": score, "low": score - around, "high": score + around, "n": n}
            self.rows.append(where | row | {"kept_pct": kept or 100 * setting.budget, "cell": cell})
        return self

    @staticmethod
    def preset(key, model, layers):
        if key == "all tokens":
            return Reduction(key)
        name, _, budget = key.rpartition("@")
        cell = (name, float(budget), papers.STANDS_FOR.get(model, model))
        found = [one for one in preset_names() if one[1:] == cell]
        assert found, f"no preset for {key}"
        return preset(*found[0]).scaled(layers)

    @property
    def scores(self):
        return pd.DataFrame(self.rows)

    def judge(self, name):
        return judge(BY_ID[name], self.scores)


TESTS = {
    "checked": {"equal": 0, "above": 0, "below": 0},
    "score": {"within": 1},
    "time": {"ratio": 2},
    "trend": {"above": 2, "equal": 2, "retained": 2, "contrast": 4},
}
"""Kind -> its tests, and how many settings each compares."""


def test_the_ledger_holds_what_it_should():
    kinds = Counter(claim.kind for claim in load())
    assert kinds == {"checked": 9, "score": 36, "time": 3, "trend": 31} and len(BY_ID) == len(load())
    for claim in load():
        assert claim.reason and claim.place and claim.takes, claim.id
        assert claim.printed or claim.kind not in ("time", "trend"), claim.id
        assert TESTS[claim.kind][claim.test] == len(claim.sides), claim.id
        assert claim.expected in claims.WORDS[claim.kind], claim.id
    path = paths.data("papers", "claims.yaml")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 600


@pytest.mark.parametrize("table", ["table1", "table2"])
def test_every_printed_row_is_a_claim_with_its_own_numbers(table):
    mine = {(claim.model, claim.a): claim for claim in load() if claim.kind == "score" and claim.notebook == table}
    printed = papers.printed(table)
    assert set(mine) == {(row.model, row.key) for row in printed.itertuples()}
    for row in printed.itertuples():
        said = re.findall(r"([\d.]+) on (\w+)", mine[row.model, row.key].statement)
        wanted = [(f"{getattr(row, column):.1f}", papers.BENCHMARKS[column]) for column in claims.COMPARED]
        assert said == wanted, mine[row.model, row.key].id


def test_every_setting_of_a_trend_is_known():
    """By a preset, or by the ledger's own settings: otherwise nothing could ever be judged."""
    special = claims._file()["settings"]
    for claim in load():
        for side in claim.sides if claim.kind == "trend" else ():
            key = re.sub(r", \d+ frames$", "", side)
            name, _, budget = key.rpartition("@")
            if key == "all tokens" or name in special:
                continue
            budget = "0.15" if budget == "at least a" and name != "DyCoke" else budget.replace("at least a", "0.25")
            World.preset(f"{name}@{budget}", claim.model, 6)


def test_numbers_typed_into_the_ledger_are_printed_ones():
    figure = papers.printed("fig_inference").set_index("method")
    for claim in load():
        if claim.kind == "time":
            column = {"ttft_ms": "ttft_speedup", "decode_tok_s": "decode_speedup"}[claim.compute]
            assert float(claim.printed) == figure.loc[claim.a.partition("@")[0], column]
    stages = [figure.loc[name, ["vision_ms", "other_ms", "llm_ms"]].tolist() for name in ("Vanilla", "HoliTom")]
    assert BY_ID["abstract-holitom-ttft"].compute == "({} + {} + {}) / ({} + {} + {})".format(*stages[0], *stages[1])
    averages = [PRINTED.loc[key, "avg"] for key in ("HoliTom@0.10", "all tokens")]
    assert BY_ID["abstract-holitom-score"].compute == "100 * {} / {}".format(*averages)
    rows = ("HoliTom", 10), ("Vanilla", 100)
    tokens = [papers.layer_tokens("table1", "ov-7b", *row)[0] for row in rows]
    assert BY_ID["abstract-holitom-tokens"].compute == "100 * (1 - {} / {})".format(*tokens)
    (schedule,) = papers.settings().query("method == 'HieraVid' and retained_pct == 30")["stages"]
    assert re.findall(r"7 \* ([\d.]+)", BY_ID["abstract-hieravid-30"].compute) == [str(left) for _, left in schedule]


def test_what_is_calculated_comes_out_as_expected():
    found = {claim.id: judge(claim) for claim in load() if claim.kind == "checked"}
    assert {name: one.verdict for name, one in found.items()} == {name: BY_ID[name].expected for name in found}
    assert found["abstract-holitom-tokens"].verdict == "DIFFERS" and found["abstract-holitom-tokens"].ours < 90
    assert papers.conventions()["the papers' formula, multiply-accumulates"] == 36


@pytest.mark.parametrize(("name", "column"), [("flops-one-formula", "flops_t"), ("flops-rounded-ratios", "flops_pct")])
def test_one_other_digit_is_a_difference(monkeypatch, name, column):
    cells = papers._cells().copy()
    cells.loc[1, column] += 0.1
    monkeypatch.setattr(papers, "_cells", lambda: cells)
    assert judge(BY_ID[name]).verdict == "DIFFERS"


def test_a_second_count_that_fits_is_a_difference(monkeypatch):
    formula = papers.WAYS["the papers' formula, multiply-accumulates"]
    monkeypatch.setattr(papers, "WAYS", {"the papers' formula": formula, "another": formula})
    assert judge(BY_ID["flops-are-macs"]).verdict == "DIFFERS"


def test_to_the_printed_digit():
    right = [(8.7499, "8.7"), (8.75, "8.7"), (8.75, "8.8"), (2.277, "2.28"), (917.4, "917")]
    wrong = [(8.7501, "8.7"), (8.6499, 8.7), (2.286, "2.28"), (917.6, "917"), (float("nan"), "8.7")]
    assert all(papers.rounds_to(*pair) for pair in right) and not any(papers.rounds_to(*pair) for pair in wrong)


def printed_scores(key, off=0.0):
    return {task: float(PRINTED.loc[key, column] + off) / 100 for column, task in claims.COMPARED.items()}


def scored(world, key="HoliTom@0.10", off=0.0, base_off=0.0, **more):
    paper = {"model": "ov-7b", "tier": "paper", "layers": 28, "benchmarks": PAPER, "videos": 1000, **more}
    world.measure("all tokens", printed_scores("all tokens", base_off), **paper)
    return world.measure(key, printed_scores(key, off), **paper)


NEAR = [(0.0, 1.5, "REPRODUCED"), (0.45, 0.1, "REPRODUCED"), (1.2, 1.5, "WITHIN NOISE"), (0.0, 5.1, "NOT RUN")]


@pytest.mark.parametrize(("off", "around", "verdict"), [*NEAR, (1.2, 1.0, "NOT REPRODUCED")])
def test_a_row_against_its_printed_scores(world, off, around, verdict):
    found = scored(world, off=off, around=around).judge("T1-holitom-10")
    assert found.verdict == verdict and "mvbench" in found.why


def test_one_benchmark_decides_for_its_row_and_the_unreduced_model_for_all(world):
    scored(world, base_off=4.0)
    found = world.judge("T1-holitom-10")
    assert found.verdict == "NOT RUN" and "unreduced model is off" in found.why
    assert world.judge("T1-all-tokens").verdict == "NOT REPRODUCED"
    world.rows.clear()
    scored(world)
    for name in ("accuracy", "low", "high"):
        world.rows[-1][name] += 9
    assert world.judge("T1-holitom-10").verdict == "NOT REPRODUCED"
    world.rows.clear()
    scored(world)
    for name in ("accuracy", "low", "high"):
        world.rows[0][name] += 9  # of the unreduced model, on one benchmark
    assert world.judge("T1-holitom-10").verdict == "NOT RUN"


ELSEWHERE = [({"limit": 100}, "trial"), ({"tier": "speed"}, "not measured"), ({"frames": 9}, "not measured")]
ELSEWHERE += [({"model": "mine"}, "not measured"), ({"n": 7}, "other questions")]


@pytest.mark.parametrize(("change", "why"), ELSEWHERE)
def test_nothing_is_judged_from_something_else(world, change, why):
    scored(world)
    world.rows[-1] |= change
    assert world.judge("T1-holitom-10").verdict == "NOT RUN" and why in world.judge("T1-holitom-10").why
    world.measure("all tokens", 0.95).measure("HoliTom (w/o M)@0.10", 0.9)
    world.rows[-1] |= change
    assert why in world.judge("trend-keeps-score-at-10").why


def test_a_row_is_not_judged_without_the_unreduced_model_or_with_another_setting_under_its_key(world):
    scored(world, reduction=Reduction("HoliTom", RandomDrop(), 0.10))
    assert "other parameters" in world.judge("T1-holitom-10").why
    world.rows = [row for row in world.rows if row["key"] != "all tokens"]
    assert "all tokens with 32 frames was not measured" in world.judge("T1-holitom-10").why


def verdict_of(world, name):
    """Corrected as if nothing else had been measured."""
    return claims._corrected([world.judge(name)])[0]


@pytest.mark.parametrize(("share", "word"), [(0.94, "HOLDS"), (0.858, "OPEN"), (0.70, "FAILS")])
def test_retained(world, share, word):
    world.measure("all tokens", 0.95).measure("HoliTom (w/o M)@0.10", share)
    assert verdict_of(world, "trend-keeps-score-at-10").verdict == word


@pytest.mark.parametrize(("merged", "word"), [(0.90, "HOLDS"), (0.887, "OPEN"), (0.80, "FAILS")])
def test_equal(world, merged, word):
    world.measure("all tokens", 0.95).measure("FastV K=18 r=0.5@0.10", 0.90)
    world.measure("HoliTom K=18 r=0.5@0.10", merged)
    assert verdict_of(world, "trend-merge-equals-drop").verdict == word


@pytest.mark.parametrize(("fallen", "word"), [(0.5, "HOLDS"), (0.86, "OPEN"), (0.95, "FAILS")])
def test_contrast(world, fallen, word):
    world.measure("all tokens", 0.97).measure("HoliTom (w/o M)@0.25", 0.95).measure("HoliTom (w/o M)@0.10", 0.85)
    world.measure("VisionZip@0.25", 0.96).measure("VisionZip@0.10", fallen)
    found = verdict_of(world, "trend-visionzip-falls-faster-than-holitom")
    assert found.verdict == word and found.ours == pytest.approx(100 * (0.85 - 0.95 - fallen + 0.96), abs=0.3)


def test_the_difference_is_that_of_the_tables(world):
    from holitom_repro.scores import paired

    world.measure("all tokens", 0.95).measure("FastV@1.00", 0.8, seed=3)
    world.measure("HoliTom@0.10", {"tiny_long": 0.9, "tiny_ego": 0.7, "tiny_actions": 0.85, "tiny_general": 0.8})
    found, table = world.judge("trend-beats-fastv"), paired(world.scores, "HoliTom@0.10", "FastV@1.00")
    assert (found.ours, found.low, found.high) == pytest.approx((table.value, table.low, table.high))


def test_at_least_as_many_tokens(world):
    world.measure("all tokens", 0.95).measure("HoliTom (w/o M)@0.10", 0.90, kept=11.9)
    world.measure("VisionZip@0.10", 0.60, kept=10.0)
    found = world.judge("trend-beats-visionzip")
    assert found.verdict == "NOT RUN" and "at least 11.9 %" in found.why
    world.measure("VisionZip@0.25", 0.80, kept=25.0)
    assert "11.9 against 25.0 % of tokens" in world.judge("trend-beats-visionzip").why
    world.measure("VisionZip@0.15", 0.95, kept=15.0)
    found = verdict_of(world, "trend-beats-visionzip")
    assert found.verdict == "FAILS" and "11.9 against 15.0 % of tokens" in found.why


def test_frames_are_part_of_a_setting(world):
    for frames, share in ((32, 0.9), (8, 0.6)):
        world.measure("all tokens", 0.95, benchmarks=("tiny_long",), frames=frames)
        world.measure("HoliTom (w/o M)@0.15", share, benchmarks=("tiny_long",), frames=frames)
    assert verdict_of(world, "trend-frames-help").verdict == "HOLDS"
    world.rows = [row for row in world.rows if row["key"] != "all tokens" or row["frames"] == 32]
    assert "all tokens with 8 frames was not measured" in world.judge("trend-frames-help").why


def test_what_the_tiny_model_cannot_decide_stays_open(world):
    world.measure("all tokens", 0.95).measure("HoliTom (w/o M)@0.10", 0.90)
    found = world.measure("FastVID@0.10", 0.2, Reduction("x", FastVID(head="substitute"), 0.10)).judge(
        "trend-fastvid-is-close"
    )
    assert found.verdict == "OPEN" and found.high < -50 and "substitute" in found.why and found.p is None


def test_rows_without_a_preset_are_known_by_the_ledger(world):
    world.measure("all tokens", 0.95).measure("HoliTom (w/o M)@0.10", 0.9).measure("HoliTom@0.10", 0.9)
    world.measure("Random@0.10", 0.5, Reduction("x", RandomDrop(seed=1), 0.10))
    assert "other parameters" in world.judge("trend-beats-random").why
    world.rows = [row for row in world.rows if row["key"] != "Random@0.10"]
    world.measure("Random@0.10", 0.5, Reduction("x", RandomDrop(seed=0), 0.10))
    assert world.judge("trend-beats-random").leans == "HOLDS"
    made = preset("table1", "HoliTom", 0.10, "ov-7b").scaled(6)
    for tau, why in ((0.8, "other parameters"), (0.65, "points")):
        outer = FixedWindows(max_window=8, tau=tau)
        world.measure("segmentation: windows of 8@0.10", 0.5, Reduction("x", outer, 0.10, made.inner))
        assert why in world.judge("trend-ablation-best-cut").why


def test_few_videos_and_lost_answers_decide_nothing(world):
    world.measure("all tokens", 0.95, videos=7).measure("HoliTom (w/o M)@0.10", 0.5, videos=7)
    assert "only 28 videos" in world.judge("trend-keeps-score-at-10").why
    paths.runs("tiny", "cells", f"{world.rows[-1]['cell']}.samples.jsonl").unlink()
    claims._record.cache_clear()
    assert "not in runs/tiny/cells" in world.judge("trend-keeps-score-at-10").why


def test_trends_are_corrected_for_their_number(world):
    family = [claim for claim in load() if claim.kind == "trend" and not claim.undecided]
    found = [verdict(claim.id, p=0.03, leans="HOLDS") for claim in family]
    assert {one.verdict for one in claims._corrected(found)} == {"OPEN"}
    alone = claims._corrected([verdict(family[0].id, p=0.03 / len(family), leans="FAILS")])[0]
    assert alone.verdict == "FAILS" and f"for {len(family)} trends" in alone.why
    both = claims._corrected([verdict(family[0].id, p=0.01, leans="HOLDS")], found)
    assert both[0].verdict == "OPEN" and claims._corrected(both, found) == both


def verdict(name, **values):
    return claims.Verdict(**{"id": name, "statement": BY_ID[name].statement, "verdict": "OPEN", "why": "w"} | values)


def times(ratio=2.3, **change):
    frame = pd.DataFrame({"row": ["Vanilla", "HoliTom"], "at": ["all tokens", "printed, 10%"]})
    frame = frame.assign(model="ov-7b", layers=28, full_layers=28, device="H200", dtype="float16", attention="sdpa")
    frame = frame.assign(frames=32, batch=1, code="c", outcome="measured", tier="speed")
    for part, spread in (("q1", 0.99), ("median", 1.0), ("q3", 1.01)):
        frame[f"summary.ttft_ms.{part}"] = [spread * 1000, spread * 1000 / ratio]
        frame[f"summary.decode_tok_s.{part}"] = [spread * 30, spread * 30 * ratio]
    for name, value in change.items():
        frame.loc[1, name] = value
    return frame


@pytest.mark.parametrize(("ratio", "word"), [(2.3, "REPRODUCED"), (2.53, "WITHIN NOISE"), (2.6, "NOT REPRODUCED")])
def test_a_ratio_of_times(ratio, word):
    found = judge(BY_ID["time-ttft-holitom"], times=times(ratio))
    assert found.verdict == word and found.low < found.ours < found.high and "H200" in found.why
    assert found.ours == pytest.approx(ratio)
    assert judge(BY_ID["time-decode-holitom"], times=times(1.4)).ours == pytest.approx(1.4)


@pytest.mark.parametrize("change", [{"device": "A100"}, {"code": "d"}, {"layers": 14}, {"outcome": "out of memory"}])
def test_times_of_different_things_have_no_ratio(change):
    assert judge(BY_ID["time-ttft-holitom"], times=times(**change)).verdict == "NOT RUN"
    assert judge(BY_ID["time-ttft-holitom"], times=times().assign(device="CPU")).verdict == "NOT RUN"
    assert judge(BY_ID["time-ttft-holitom-wo-m"], times=times()).verdict == "NOT RUN"


def stands(name):
    """What the ledger says of a claim."""
    return {claim.id: one for claim, one in ledger()}[name]


def test_a_notebook_gets_its_verdicts_and_leaves_them_to_the_ledger(world):
    world.measure("all tokens", 0.95).measure("HoliTom (w/o M)@0.10", 0.94)
    frame = judged("table1", world.scores).set_index("id")
    assert list(frame.columns) == ["claim", "printed", "ours", "interval", "verdict", "expected", "why"]
    assert frame.loc["trend-keeps-score-at-10", "verdict"] == "HOLDS" and set(frame.index) <= set(BY_ID)
    assert not any(name.startswith("T1") for name in frame.index)
    assert stands("trend-keeps-score-at-10").verdict == "HOLDS" and stands("T1-holitom-10").verdict == "NOT RUN"


def test_a_trial_gets_no_verdict_and_takes_none_away(world):
    world.measure("all tokens", 0.95).measure("HoliTom (w/o M)@0.10", 0.94)
    judged("table1", world.scores)
    trial = judged("table1", world.scores.assign(limit=5))
    assert set(trial["verdict"]) == {"NOT RUN"}
    file = json.loads(paths.runs("tiny", "verdicts", "table1.json").read_text(encoding="utf-8"))
    assert {one["verdict"] for one in file["now"]} == {"NOT RUN"}
    assert stands("trend-keeps-score-at-10").verdict == "HOLDS"


@pytest.mark.parametrize("change", [{"code": "another"}, {"statement": "Other words."}])
def test_a_verdict_of_other_code_or_other_words_does_not_stand(world, change):
    mine = verdict("trend-keeps-score-at-10", p=1e-9, leans="HOLDS", **{"code": claims.present_code()} | change)
    claims._write(paths.runs("tiny", "verdicts", "table1.json"), decided=[mine])
    assert stands("trend-keeps-score-at-10").verdict == "NOT RUN"


def test_recorded_verdicts_stand_where_nothing_was_measured(world):
    world.measure("all tokens", 0.95).measure("HoliTom (w/o M)@0.10", 0.94).measure("HoliTom (w/o M)@0.25", 0.94)
    judged("table1", world.scores)
    claims.record()
    paths.runs("tiny", "verdicts", "table1.json").unlink()
    found = stands("trend-keeps-score-at-25")
    assert found.verdict == "HOLDS" and re.match(r"recorded \d{4}-\d\d-\d\d, code [0-9a-f]{8}: ", found.why)
    judged("table1", world.scores[world.scores["key"] != "HoliTom (w/o M)@0.25"])
    assert stands("trend-keeps-score-at-25").why == found.why
    with pytest.raises(CannotRun, match="trend-keeps-score-at-25"):
        claims.record()


def test_the_command(world, capsys, monkeypatch):
    assert claims.claims_command(as_json=True) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [list(row) for row in rows] == [["id", "paper", "kind", "statement", "verdict", "expected"]] * len(load())
    assert claims.claims_command(strict=True) == 1
    said = capsys.readouterr().out
    assert "checked: 8 CHECKED, 1 DIFFERS" in said and "trend-beats-random: NOT RUN, expected HOLDS" in said
    wanted = [verdict(claim.id, verdict=claim.expected) for claim in load()]
    monkeypatch.setattr(claims, "ledger", lambda: list(zip(load(), wanted, strict=True)))
    assert claims.claims_command(strict=True) == 0
