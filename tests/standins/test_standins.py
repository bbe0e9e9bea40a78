"""lmms-eval's own tasks on stand-ins of their data sets: its command line and our runner agree on every sample; several
processes, and a run that was killed, end with the same answers and scores as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from driver import BUDGET, FRAMES, TAU, cells
from standin_data import COLORS, PLACES, StandIns, lettered, make

from holitom_repro.evaluation.sweep import load_samples

pytestmark = pytest.mark.slow
DRIVER = Path(__file__).with_name("driver.py")
PART = "mvbench_object_existence"  # one of MVBench's 20 is as good as all, and 20 times as fast
METRICS = {
    "egoschema_subset": "score",
    "longvideobench_val_v": "lvb_acc",
    "videomme": "videomme_perception_score",
    PART: "mvbench_accuracy",
}


@dataclass(frozen=True)
class Place:
    """The stand-ins and, for each of two models, the benchmarks whose prompts it answers with letters."""

    data: StandIns
    models: dict[str, tuple[str, ...]]

    def run(self, *words: str, fails: bool = False) -> str:
        environment = {**os.environ, **self.data.environment(), "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, timeout=900)
        assert bool(done.returncode) == fails, done.stdout[-3000:] + done.stderr[-5000:]
        return done.stdout

    def drive(
        self, runs: Path, model: str, benchmarks: tuple[str, ...], *more: str, launch: tuple[str, ...] = ()
    ) -> str:
        words = (*launch, str(DRIVER), str(runs), str(self.data.tasks), model, ",".join(benchmarks), *more)
        return self.run(*words, fails=bool(more))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("standins") / "all"
    data = make(root)
    return Place(
        data,
        {
            str(lettered(root / "colors", COLORS)): ("egoschema_subset", "longvideobench_val_v"),
            str(lettered(root / "places", PLACES)): ("videomme", PART),
        },
    )


@pytest.fixture(scope="module")
def measured(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs that one process has measured all four benchmarks into."""
    runs = tmp_path_factory.mktemp("runs")
    for model, benchmarks in place.models.items():
        place.drive(runs, model, benchmarks)
    return runs


def samples(runs: Path, model: str, benchmark: str) -> list[dict[str, Any]]:
    return load_samples(cells(model, [benchmark])[0], "paper", runs=runs)


@pytest.mark.parametrize("which", [0, 1])
def test_lmms_eval_and_our_runner_agree(place: Place, measured: Path, tmp_path: Path, which: int) -> None:
    model, benchmarks = list(place.models.items())[which]
    arguments = f"pretrained={model},method=HoliTom,tau={TAU},budget={BUDGET},frames={FRAMES}"
    tasks = ",".join(f"standin_{name}" for name in benchmarks)
    where = ("--include_path", str(place.data.renamed), "--output_path", str(tmp_path), "--log_samples")
    place.run("-m", "lmms_eval", "--model", "holitom", "--model_args", arguments, "--tasks", tasks, *where)
    (path,) = tmp_path.rglob("*_results.json")
    scores = json.loads(path.read_text())["results"]
    for name in benchmarks:
        ours = samples(measured, model, name)
        (path,) = tmp_path.rglob(f"*_samples_standin_{name}.jsonl")
        theirs = sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda line: line["doc_id"])
        assert len(ours) == 5
        assert [(s["doc_id"], s["question"], s["answer"]) for s in ours] == [
            (s["doc_id"], s["input"], s["filtered_resps"]) for s in theirs
        ]
        score = scores[f"standin_{name}"][f"{METRICS[name]},none"]
        right = sum(s["correct"] for s in ours) / len(ours)
        assert right > 0, "answers that are all wrong would agree for no reason"
        assert score == pytest.approx(100 * right if name in ("videomme", PART) else right)


def test_two_processes_end_like_one(place: Place, measured: Path, tmp_path: Path) -> None:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    for model, benchmarks in place.models.items():
        told = place.drive(tmp_path, model, benchmarks, launch=launch)
        for name in benchmarks:
            assert samples(tmp_path, model, name) == samples(measured, model, name)
        assert told.count("RECORD") == len(benchmarks)
    assert not list(tmp_path.rglob("*.part"))


def test_a_killed_run_ends_with_the_same_scores(place: Place, measured: Path, tmp_path: Path) -> None:
    model, (name, _) = next(iter(place.models.items()))
    place.drive(tmp_path, model, (name,), "3")
    (journal,) = tmp_path.rglob("*.part/*.jsonl")
    assert len(journal.read_text().splitlines()) == 4  # three answers, and the line that the kill cut short
    place.drive(tmp_path, model, (name,))
    assert samples(tmp_path, model, name) == samples(measured, model, name)
