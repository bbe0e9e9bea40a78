"""Trends are judged from per-question answers, on the same questions, and say what is missing when something is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from holitom_repro.claims import Verdict, trend_claims, trends
from holitom_repro.claims.selecting import Selector, choose
from holitom_repro.claims.trends import Trend, _interval
from holitom.errors import BadUsage
from holitom_repro.evaluation.statistics import Estimate
from holitom_repro.experiments import EXPERIMENTS
from holitom_repro.results import Record, code_fingerprint

BENCHMARKS = ("tiny_actions", "tiny_ego", "tiny_long", "tiny_general")
OUTER = {"method": "HoliTom", "tau": 0.65}  # the published one at 10 %
TOP = {"method": "SaliencyTopK", "lowest": False}
LOWEST = {"method": "SaliencyTopK", "lowest": True}
RANDOM = {"method": "RandomDrop", "seed": 0}
MERGE = {"method": "HoliTomMerge", "layer": 4, "ratio": 0.5}
DROP = {"method": "FastV", "layer": 4, "ratio": 0.5}


class World:
    """Fake finished cells: records with per-question logs of a given accuracy, in a runs folder."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.records: list[Record] = []

    def measure(
        self,
        share: float,
        outer: dict | None = None,
        budget: float = 1.0,
        inner: tuple[dict, ...] = (),
        *,
        benchmarks: tuple[str, ...] = BENCHMARKS,
        frames: int = 32,
        saliency: str = "own",
        videos: int = 100,
        tokens: float | None = None,
        model: str = "onevision",
        tier: str = "tiny",
        code: str | None = None,
        log: bool = True,
    ) -> None:
        for name in benchmarks:
            cell = f"{len(self.records):04d}"
            ranks = np.random.default_rng(BENCHMARKS.index(name)).permutation(videos * 3) / (videos * 3)
            correct = (ranks < share).astype(float)  # a better setting answers all that a worse one does, and more
            folder = self.runs / tier / "cells"
            folder.mkdir(parents=True, exist_ok=True)
            lines = [{"doc_id": i, "video": f"{i // 3}.mp4", "correct": c} for i, c in enumerate(correct)]
            if log:
                (folder / f"{cell}.samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            self.records.append(
                Record(
                    value=100 * float(correct.mean()),
                    unit="points",
                    metric="accuracy",
                    experiment="any",
                    row="any",
                    tier=tier,
                    source="measured",
                    n=videos * 3,
                    model=model,
                    benchmark=name,
                    frames=frames,
                    method={"name": "any", "budget": budget, "outer": outer, "inner": list(inner), "decode": None},
                    realised_tokens=512 * budget if tokens is None else tokens,
                    tokens_per_layer=(1,) * 6,
                    provenance={"python": "3.11"},
                    code=code_fingerprint() if code is None else code,
                    extra={"cell": cell, "saliency": saliency},
                )
            )

    def verdict(self, name: str) -> tuple[Verdict, str]:
        judged = {claim.id: claim for claim in trend_claims(self.records, runs=self.runs)}[name]
        return judged.verdict, judged.reason


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_the_declared_trends_are_complete() -> None:
    declared = trends()
    assert len(declared) >= 12 and len({trend.id for trend in declared}) == len(declared)
    measuring = {name for name, experiment in EXPERIMENTS.items() if experiment.measures}
    declared_for = {trend.experiment for trend in declared}
    assert {"table1", "table2", "fig_tradeoff", "fig_inner", "fig_frames"} <= declared_for <= measuring
    assert all(trend.why and trend.printed and trend.place for trend in declared)


def test_nothing_measured_is_not_run_with_the_command(world: World) -> None:
    judged = trend_claims([], runs=world.runs)
    assert {claim.verdict for claim in judged} == {Verdict.NOT_RUN}
    assert all("./reproduce.sh" in claim.reason for claim in judged)


@pytest.mark.parametrize(
    ("reduced", "verdict"), [(0.94, Verdict.REPRODUCED), (0.855, Verdict.WITHIN_NOISE), (0.70, Verdict.NOT_REPRODUCED)]
)
def test_retained(world: World, reduced: float, verdict: Verdict) -> None:
    world.measure(0.95)
    world.measure(reduced, OUTER, 0.10)
    assert world.verdict("trend-keeps-score-at-10")[0] is verdict


def test_above_compares_with_at_least_as_many_tokens(world: World) -> None:
    world.measure(0.90, OUTER, 0.10, tokens=61)
    world.measure(0.60, RANDOM, 0.10, tokens=51)
    found, reason = world.verdict("trend-beats-random")
    assert found is Verdict.NOT_RUN and "61 tokens or more" in reason
    world.measure(0.80, RANDOM, 0.25, tokens=128)
    found, reason = world.verdict("trend-beats-random")
    assert found is Verdict.REPRODUCED and "61 against 128 tokens kept" in reason
    world.measure(0.95, RANDOM, 0.15, tokens=77)
    assert world.verdict("trend-beats-random")[0] is Verdict.NOT_REPRODUCED


@pytest.mark.parametrize(
    ("merged", "verdict"), [(0.90, Verdict.REPRODUCED), (0.885, Verdict.WITHIN_NOISE), (0.80, Verdict.NOT_REPRODUCED)]
)
def test_equal(world: World, merged: float, verdict: Verdict) -> None:
    world.measure(0.90, OUTER, 0.10, (DROP,))
    world.measure(merged, OUTER, 0.10, (MERGE,))
    assert world.verdict("trend-merge-equals-drop")[0] is verdict


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (-1.4, -0.01, "-0.5 points [-1.4, 0.0]"),
        (-1.46, 0.3, "-0.50 points [-1.46, 0.30]"),
        (-1.498, 0.3, "-0.500 points [-1.498, 0.300]"),
    ],
)
def test_a_bound_beside_the_threshold_is_shown_with_more_digits(low: float, high: float, shown: str) -> None:
    free = next(trend for trend in trends() if trend.id == "trend-inner-is-free")
    estimate = Estimate(value=-0.5, low=low, high=high, n=1200, groups=400)
    assert _interval(free, estimate, "points") == f"{shown}, 400 videos"


def test_what_was_known_is_said_with_the_verdict(world: World) -> None:
    world.measure(0.9, frames=64)
    world.measure(0.9, frames=32)
    found, reason = world.verdict("trend-full-model-saturates")
    assert found is Verdict.REPRODUCED and "both scores were known when this was declared" in reason


def test_a_contrast(world: World) -> None:
    for outer, inner, own, borrowed in ((OUTER, (MERGE,), 0.95, 0.90), (TOP, (), 0.90, 0.40)):
        world.measure(own, outer, 0.10, inner)
        world.measure(borrowed, outer, 0.10, inner, saliency="control")
    judged = {claim.id: claim for claim in trend_claims(world.records, runs=world.runs)}["trend-saliency-matters-less"]
    assert judged.verdict is Verdict.REPRODUCED
    assert judged.computed == pytest.approx(-5 + 50, abs=0.5)
    assert len(judged.records) == 16


def test_one_missing_benchmark_is_named(world: World) -> None:
    world.measure(0.95)
    world.measure(0.94, OUTER, 0.10, benchmarks=BENCHMARKS[:3])
    found, reason = world.verdict("trend-keeps-score-at-10")
    assert found is Verdict.NOT_RUN and "tiny_general" in reason


def test_frames_are_told_apart(world: World) -> None:
    world.measure(0.80, OUTER | {"tau": 0.8}, 0.15, frames=32)
    world.measure(0.60, OUTER | {"tau": 0.8}, 0.15, frames=8)
    assert world.verdict("trend-frames-help")[0] is Verdict.REPRODUCED
    assert world.verdict("trend-more-frames-help-more")[0] is Verdict.NOT_RUN


def test_the_inverted_control_is_not_taken_for_the_method(world: World) -> None:
    world.measure(0.60, RANDOM, 0.10)
    world.measure(0.20, LOWEST, 0.10)
    assert world.verdict("trend-background-does-not-leak")[0] is Verdict.REPRODUCED
    world.measure(0.90, OUTER, 0.10, tokens=40)
    assert world.verdict("trend-beats-saliency")[0] is Verdict.NOT_RUN


@pytest.mark.parametrize("changes", [{"tier": "paper"}, {"model": "video"}, {"saliency": "random"}])
def test_records_of_another_kind_do_not_count(world: World, changes: dict) -> None:
    world.measure(0.95)
    world.measure(0.94, OUTER, 0.10, **changes)
    assert world.verdict("trend-keeps-score-at-10")[0] is Verdict.NOT_RUN


def test_too_few_videos_decide_nothing(world: World) -> None:
    world.measure(0.95, videos=7)
    world.measure(0.94, OUTER, 0.10, videos=7)
    found, reason = world.verdict("trend-keeps-score-at-10")
    assert found is Verdict.NOT_RUN and "28 videos" in reason


def test_a_lost_log_is_named(world: World) -> None:
    world.measure(0.95)
    world.measure(0.94, OUTER, 0.10, log=False)
    assert "only its score" in world.verdict("trend-keeps-score-at-10")[1]


def test_a_damaged_log_is_named(world: World) -> None:
    world.measure(0.95)
    world.measure(0.94, OUTER, 0.10)
    log = max(world.runs.rglob("*.samples.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    log.write_bytes(log.read_bytes()[:-20])
    assert "are damaged" in world.verdict("trend-keeps-score-at-10")[1]


def test_results_of_older_code_are_used_last_and_said(world: World) -> None:
    world.measure(0.95)
    world.measure(0.70, OUTER, 0.10, code="old")
    found, reason = world.verdict("trend-keeps-score-at-10")
    assert found is Verdict.NOT_REPRODUCED and "earlier version" in reason
    world.measure(0.94, OUTER, 0.10)
    found, reason = world.verdict("trend-keeps-score-at-10")
    assert found is Verdict.REPRODUCED and "earlier version" not in reason


@pytest.mark.parametrize(
    ("paper_layer", "layers", "layer"), [(2, 6, 1), (7, 6, 2), (14, 6, 3), (18, 6, 4), (18, 28, 18)]
)
def test_layers_move_to_the_same_depth(world: World, paper_layer: int, layers: int, layer: int) -> None:
    selector = Selector(outer="HoliTom", budget=0.1, inner="HoliTomMerge", layer=paper_layer, ratio=0.5)
    world.measure(0.9, OUTER, 0.1, ({**MERGE, "layer": layer},), benchmarks=("tiny_ego",))
    record = Record.from_dict({**json.loads(world.records[0].to_json()), "tokens_per_layer": [1] * layers})
    assert not isinstance(choose(selector, [record], ("tiny_ego",)), str)
    wrong = Selector(outer="HoliTom", budget=0.1, inner="HoliTomMerge", layer=paper_layer, ratio=0.4)
    assert isinstance(choose(wrong, [record], ("tiny_ego",)), str)


PDROP = tuple({"method": "PyramidDropStage", "layer": k, "ratio": r} for k, r in ((1, 0.5), (2, 0.25), (3, 0.125)))


def test_several_stages_are_one_setting(world: World) -> None:
    """PDrop's three stages of 28 layers stand at 1, 2, 3 of 6; one stage, or three of another method, is not it."""
    selector = Selector(inner="PyramidDropStage", stages=3, layer=2, ratio=0.5)
    one = Selector(inner="PyramidDropStage", layer=2, ratio=0.5)
    world.measure(0.9, inner=PDROP, benchmarks=("tiny_ego",))
    assert not isinstance(choose(selector, world.records, ("tiny_ego",)), str)
    assert isinstance(choose(one, world.records, ("tiny_ego",)), str)
    assert "3 stages, the first at K = 2" in selector.describe()
    mixed = World(world.runs)
    mixed.measure(0.9, inner=(*PDROP[:2], DROP), benchmarks=("tiny_ego",))
    assert isinstance(choose(selector, mixed.records, ("tiny_ego",)), str)


def declare(path: Path, change: Callable[[dict], None]) -> Path:
    trend = {
        "id": "x",
        "experiment": "table1",
        "statement": "s",
        "place": "p",
        "printed": "n",
        "test": "above",
        "threshold": 0,
        "why": "w",
        "a": {"outer": "HoliTom", "budget": 0.1},
        "b": {},
    }
    change(trend)
    file = path / "trends.yaml"
    file.write_text(json.dumps({"trends": [trend]}))
    return file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(test="better"), "better"),
        (lambda t: t.update(treshold=1), "treshold"),
        (lambda t: t.update(a={"outter": "HoliTom"}), "outter"),
        (lambda t: t.update(a={"budget": "ten"}), "ten"),
        (lambda t: t.update(test="contrast"), "four"),
    ],
)
def test_a_badly_declared_trend_is_refused(tmp_path: Path, change: Callable[[dict], None], message: str) -> None:
    with pytest.raises(BadUsage, match=message):
        trends(declare(tmp_path, change))


@pytest.mark.parametrize(
    "trend",
    [pytest.param(t, id=t.id) for t in trends()],
)
def test_every_trend_is_measured_by_its_experiment(trend: Trend) -> None:
    """The grid of each experiment holds the settings that its trends compare: made-up records, real cells."""
    from holitom_repro.experiments import cells

    records = [
        Record(
            value=50.0,
            unit="points",
            metric="accuracy",
            experiment=cell.experiment,
            row=cell.row,
            tier="tiny",
            source="measured",
            model=cell.model,
            benchmark=cell.benchmark,
            frames=cell.frames,
            method=cell.reduction.describe(),
            realised_tokens=512 * cell.reduction.budget,
            tokens_per_layer=(1,) * 6,
            provenance={"python": "3.11"},
            extra={"saliency": cell.saliency},
        )
        for cell in cells(trend.experiment, "tiny")
        if cell.model == trend.model
    ]
    chosen = []
    for selector in trend.selectors():
        found = choose(selector, records, trend.benchmarks, after=chosen)
        assert not isinstance(found, str), found
        chosen.append(found)


@pytest.mark.parametrize("varied", [{"tau": 0.8}, {"segmentation": "none"}, {"beta": None}, {"cluster_share": 0.5}])
def test_an_ablation_is_never_taken_for_the_method(world: World, varied: dict) -> None:
    world.measure(0.95)
    world.measure(0.20, OUTER | varied, 0.10)
    assert world.verdict("trend-keeps-score-at-10")[0] is Verdict.NOT_RUN
    world.measure(0.94, OUTER, 0.10)
    assert world.verdict("trend-keeps-score-at-10")[0] is Verdict.REPRODUCED
    name, value = next(iter(varied.items()))
    chosen = Selector.parse({"outer": "HoliTom", "budget": 0.10, "fields": {name: value}})
    assert [chosen.fits(record) for record in world.records[-8:]] == [True] * 4 + [False] * 4


def test_fields_of_an_inner_stage_are_told_apart(world: World) -> None:
    world.measure(0.9, OUTER, 0.10, (MERGE | {"average": "mean", "causal": True},), benchmarks=("tiny_ego",))
    plain = {"outer": "HoliTom", "budget": 0.10, "inner": "HoliTomMerge", "layer": 18, "ratio": 0.5}
    assert not Selector.parse(plain).fits(world.records[0])
    assert Selector.parse(plain | {"inner_fields": {"average": "mean"}}).fits(world.records[0])
