"""The lmms-eval model: its door (entry point, --model_args, plain command line) and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lmms_eval.api.instance import Instance

from holitom_repro import paths
from holitom.attaching.prefill import whole
from holitom.errors import BadUsage, CannotRun
from holitom_repro.evaluation.lmms import ReducedVideoModel, manifest
from holitom_repro.evaluation.measuring import TASKS
from holitom_repro.evaluation.sweep import Cell, load_samples, run_cells
from holitom.methods import DyCokeDecode, FastV, HoliTom, HoliTomMerge
from holitom_repro.tiny import benchmarks
from holitom.types import Reduction, VideoFeatures

FRAMES = 8


@pytest.fixture(scope="module")
def lm(model_folder: Path) -> ReducedVideoModel:
    return ReducedVideoModel(str(model_folder), frames=FRAMES, batch_size=4, device="cpu")


def requests(lm: ReducedVideoModel, count: int = 3, **options: Any) -> list[Instance]:
    docs = [doc | {"benchmark": "tiny_ego"} for doc in benchmarks.questions("tiny_ego")[:count]]
    lm.task_dict = {"tiny_ego": {"test": docs}}

    def visual(doc: dict) -> list[str]:
        return [str(benchmarks.video_path(doc["benchmark"], doc["video"]))]

    options = {"max_new_tokens": 4, "do_sample": False, "until": ["\n\n"]} | options
    return [
        Instance(
            request_type="generate_until",
            arguments=(doc["question"], options, visual, doc["doc_id"], "tiny_ego", "test"),
            idx=0,
            metadata={"task": "tiny_ego", "doc_id": doc["doc_id"], "repeats": 1},
        )
        for doc in docs
    ]


def test_the_entry_point_leads_to_the_model() -> None:
    from lmms_eval.models import get_model

    assert manifest().model_id == "holitom"
    assert get_model("holitom") is ReducedVideoModel


def test_answers_are_those_of_the_model_itself(lm: ReducedVideoModel) -> None:
    """Without a reduction: the stock model's generate on stock inputs, one question at a time, no hooks."""
    lm.reduction = Reduction("Vanilla")
    asked = requests(lm)
    answers = [result.text for result in lm.generate_until(asked)]
    for instance, answer in zip(asked, answers, strict=True):
        from holitom.video import load_frames

        question, _, visual, doc_id, *_ = instance.args
        pixels = load_frames(visual(lm.task_dict["tiny_ego"]["test"][doc_id])[0], FRAMES).pixels
        inputs = lm.processor(pixels, question)
        with torch.inference_mode():
            output = lm.model.generate(**inputs, max_new_tokens=4, do_sample=False)
        text = lm.processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer == text.strip()


def test_the_order_of_the_answers_is_that_of_the_questions(lm: ReducedVideoModel) -> None:
    lm.reduction = Reduction("HoliTom", HoliTom(tau=0.8), 0.25)
    asked = requests(lm, 9)
    forward = [r.text for r in lm.generate_until(asked)]
    assert [r.text for r in lm.generate_until(asked[::-1])] == forward[::-1]
    assert lm.generate_until([]) == []


def test_arguments_of_the_command_line_make_the_setting(model_folder: Path) -> None:
    arguments = f"pretrained={model_folder},method=holitom,tau=0.7,budget=0.1,frames=4,saliency=random"
    arguments += ",inner=holitommerge,inner_layer=4,inner_ratio=0.5"
    made = ReducedVideoModel.create_from_arg_string(arguments, {"batch_size": "2", "device": "cpu"})
    assert made.reduction == Reduction("HoliTom", HoliTom(tau=0.7), 0.1, (HoliTomMerge(layer=4, ratio=0.5),))
    assert (made.frames, made.batch_size, made.saliency) == (4, 2, "random")
    assert made.model.dtype == torch.float32


@dataclass(frozen=True)
class _Lazy:
    """A stage of every kind: it keeps, or reads, whatever it is given."""

    layer: int = 2
    requires: ClassVar[frozenset[str]] = frozenset()
    score: ClassVar[str] = "prev"
    query: ClassVar[str] = "last"
    positions: ClassVar[str] = "contiguous"
    prune_past: ClassVar[bool] = False
    causal: ClassVar[bool] = True
    include_newlines: ClassVar[bool] = False
    fidelity: ClassVar[str] = "control"

    def __call__(self, *given: Any) -> Any:
        if isinstance(given[0], VideoFeatures):
            return whole(given[0])
        return given[1] if len(given) == 2 else (torch.arange(len(given[0])), given[0])


@pytest.mark.parametrize(
    ("setting", "options", "words"),
    [
        (Reduction("late", decode=DyCokeDecode(2, 0.7)), {"max_new_tokens": 1}, "decode@2 never ran"),
        (Reduction("outer", _Lazy(), 0.5), {}, "outer kept every token of all 3 prompts"),
        (Reduction("inner", inner=(_Lazy(3),)), {}, "inner@3 kept every token"),
        (Reduction("decode", decode=_Lazy()), {}, "decode@2 kept every token"),
        (Reduction("last of three", HoliTom(), 0.5, (FastV(1, 0.5), _Lazy(4))), {}, "inner@4 kept every token"),
    ],
    ids=lambda value: value.name if isinstance(value, Reduction) else "",
)
def test_a_method_that_did_not_act_gives_no_score(
    lm: ReducedVideoModel, setting: Reduction, options: dict, words: str
) -> None:
    lm.reduction = setting
    with pytest.raises(CannotRun, match=words):
        lm.generate_until(requests(lm, **options))
    lm.reduction = Reduction("Vanilla")


def test_a_sweep_writes_no_cell_whose_method_did_not_act(model_folder: Path, tmp_path: Path) -> None:
    cell = Cell("table1", "lazy", str(model_folder), Reduction("lazy", _Lazy(), 0.5), "tiny_ego", FRAMES, limit=3)
    with pytest.raises(CannotRun, match="outer kept every token"):
        run_cells([cell], "tiny", runs=tmp_path, progress=False)
    assert not list(tmp_path.rglob("*.json*"))


def test_every_kind_of_stage_may_answer(lm: ReducedVideoModel) -> None:
    lm.reduction = Reduction("all", HoliTom(), 0.5, (FastV(1, 0.5), HoliTomMerge(4, 0.5)), DyCokeDecode(2, 0.7))
    lm.answered = {}
    assert len(lm.generate_until(requests(lm))) == 3
    (told,) = {answer.sample.budget for answer in lm.answered.values()}
    assert told == 0.5
    lm.reduction = Reduction("Vanilla")


@pytest.mark.parametrize("options", [{"do_sample": True}, {"temperature": 0.7}, {"num_beams": 3}, {"typical_p": 0.9}])
def test_anything_but_greedy_decoding_is_refused(lm: ReducedVideoModel, options: dict) -> None:
    with pytest.raises(CannotRun, match="greedily"):
        lm.generate_until(requests(lm, **options))


@pytest.mark.parametrize(
    "arguments", [{"frames": 0}, {"batch_size": "auto"}, {"saliency": "loud"}, {"method": "holytom"}]
)
def test_wrong_arguments_are_named(model_folder: Path, arguments: dict) -> None:
    with pytest.raises(BadUsage):
        ReducedVideoModel(str(model_folder), device="cpu", **arguments)


def test_answers_end_at_a_stop_string() -> None:
    from holitom_repro.evaluation.lmms import _cut

    assert _cut("A. a cat\n\nQuestion", ("\n\n",)) == "A. a cat" and _cut(" red ", ()) == "red"


@pytest.mark.slow
def test_the_plain_lmms_eval_command_gives_what_the_sweep_gives(model_folder: Path, tmp_path: Path) -> None:
    setting = Reduction("HoliTom", HoliTom(tau=0.8), 0.25, (HoliTomMerge(layer=4, ratio=0.5),))
    cell = Cell("table1", "HoliTom", str(model_folder), setting, "tiny_actions", FRAMES, limit=6)
    (record,) = run_cells([cell], "tiny", runs=tmp_path / "runs", progress=False)
    samples = load_samples(cell, "tiny", runs=tmp_path / "runs")
    arguments = f"pretrained={model_folder},method=HoliTom,tau=0.8,budget=0.25,frames={FRAMES}"
    arguments += ",inner=HoliTomMerge,inner_layer=4,inner_ratio=0.5"
    command = [sys.executable, "-m", "lmms_eval", "--model", "holitom", "--model_args", arguments]
    command += ["--tasks", "tiny_actions", "--include_path", str(TASKS), "--limit", "6", "--batch_size", "4"]
    command += ["--output_path", str(tmp_path / "out"), "--log_samples"]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=paths.root(), env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next((tmp_path / "out").rglob("*_results.json")).read_text())
    assert results["results"]["tiny_actions"]["acc,none"] == pytest.approx(record.value / 100)
    lines = next((tmp_path / "out").rglob("*_samples_*.jsonl")).read_text().splitlines()
    logged = {line["doc_id"]: line for line in map(json.loads, lines)}
    assert sorted(logged) == [sample["doc_id"] for sample in samples]
    for sample in samples:
        theirs = logged[sample["doc_id"]]
        assert theirs["filtered_resps"] == sample["answer"]
        assert theirs["token_counts"][0]["input_tokens"] == sample["prompt"]
