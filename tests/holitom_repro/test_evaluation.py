"""From a question to a cell: statistics, protocols, scoring, features, the lmms-eval model, and the sweep."""

import dataclasses
import json
import math
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch
from browser import until

from holitom.attach import SampleStats, reduce_tokens
from holitom.errors import BadUsage, BadVideo, CannotRun
from holitom.flops import LLMShape
from holitom.methods import EarlyTom, HoliTom, HoliTomMerge, RandomDrop, SaliencyTopK
from holitom.types import Reduction, VideoFeatures
from holitom.video import LLAVA_VIDEO, ONEVISION, load_frames
from holitom_repro import paths, tables
from holitom_repro.evaluation import cells as cells_module
from holitom_repro.evaluation import sweep
from holitom_repro.evaluation.cells import Cell, device_kind, key_of, layers_of, model_name
from holitom_repro.evaluation.features import FeatureStore, ForeignSaliency
from holitom_repro.evaluation.model import Answer, AnswerSheet, ReducedVideoModel, manifest
from holitom_repro.evaluation.protocols import GENERATION, LLAVA_ONEVISION, LLAVA_VIDEO_PROTOCOL, TINY, protocol_for
from holitom_repro.evaluation.scoring import compared, correct, line, released_letter
from holitom_repro.evaluation.statistics import balanced, holm, interval, mcnemar, paired_difference, retained_share
from holitom_repro.records import Store
from holitom_repro.scores import evaluate, samples
from holitom_repro.tables import ablation_table, unread
from holitom_repro.tiny import benchmarks

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # as a notebook's: nobody can import it
FULL = Reduction("all tokens")
MERGE = Reduction("HoliTom", HoliTom(tau=0.8), 0.25, (HoliTomMerge(layer=4, ratio=0.5),))
VIDEOS, QUESTIONS = 100, 3
IDS = [video for video in range(VIDEOS) for _ in range(QUESTIONS)]


def cell(reduction: Reduction = FULL, benchmark: str = "tiny_ego", limit: int | None = 6, **more) -> Cell:
    values = {"key": key_of(reduction.name, reduction.budget), "model": "onevision", "frames": 8} | more
    return Cell(reduction=reduction, benchmark=benchmark, limit=limit, **values)


# --- statistics
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


def test_benchmarks_of_unequal_size_count_the_same_in_an_average() -> None:
    estimate = interval([1, 0, 0, 0, 1], "abcde", balanced("wwwwv"))
    assert estimate.value == pytest.approx(100 * (0.25 + 1) / 2)


@pytest.mark.parametrize("answer", [0.0, 1.0])
def test_the_ends_of_the_scale(answer: float) -> None:
    estimate = interval([answer] * 300, IDS)
    assert 0 <= estimate.low <= estimate.value == 100 * answer <= estimate.high <= 100
    assert 1 < estimate.high - estimate.low < 6
    assert (interval([answer] * 3, [7, 7, 7]).low, interval([answer] * 3, [7, 7, 7]).high) == (0, 100), "one video"


def test_sign_flips_are_exact_and_drawn_ones_agree_with_the_binomial() -> None:
    ten = list(range(10))
    assert paired_difference([1] * 10, [0] * 10, ten).p == 2 / 2**10
    assert paired_difference([1] * 9 + [0], [0] * 9 + [1], ten).p == (2 + 2 * 10) / 2**10
    wins = [1.0] * 14 + [0.0] * 6
    first = paired_difference(wins, [1 - w for w in wins], list(range(20)))
    assert first.p == pytest.approx(mcnemar(14, 6), abs=0.01)
    assert mcnemar(14, 6) == pytest.approx(2 * sum(math.comb(20, k) for k in range(14, 21)) / 2**20)
    assert mcnemar(3, 3) == 1 and mcnemar(0, 0) == 1


def test_paired_difference_has_the_right_size_and_coverage() -> None:
    rng = np.random.default_rng(3)
    covered, rejected = [], []
    for _ in range(200):
        a, redrawn = clustered_answers(rng, 0.7, 0.3), clustered_answers(rng, 0.7, 0.3)
        b = np.where(np.repeat(rng.random(VIDEOS) < 0.3, QUESTIONS), redrawn, a)
        estimate = paired_difference(a, b, IDS)
        covered.append(estimate.low <= 0 <= estimate.high)
        rejected.append(estimate.p < 0.05)
    assert np.mean(covered) >= 0.92 and np.mean(rejected) <= 0.08
    same = paired_difference([1.0] * 300, [1.0] * 300, IDS)
    assert same.value == 0 and same.p == 1 and -2 < same.low < 0 < same.high < 2


def test_retained_share_and_holm() -> None:
    estimate = retained_share([1, 0, 1, 0], [1, 1, 1, 1], [0, 1, 2, 3])
    assert estimate.value == 50 and 0 <= estimate.low < 50 < estimate.high <= 100
    with pytest.raises(BadUsage, match="nothing right"):
        retained_share([1, 0], [0, 0], [0, 1])
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]) and holm([]) == []


# --- protocols
def test_each_checkpoint_has_its_protocol() -> None:
    assert protocol_for("paper", "ov-7b") is protocol_for("paper", "ov-72b") is LLAVA_ONEVISION
    assert protocol_for("paper", "video-7b") is protocol_for("paper", "mine", "grid") is LLAVA_VIDEO_PROTOCOL
    assert protocol_for("tiny", "ov-7b") is TINY and protocol_for("paper", "mine") is LLAVA_ONEVISION
    assert {LLAVA_ONEVISION.dtype, LLAVA_VIDEO_PROTOCOL.dtype} == {"float16"}
    assert (LLAVA_ONEVISION.sampling, LLAVA_ONEVISION.frames) == (ONEVISION, 32)
    assert (LLAVA_VIDEO_PROTOCOL.sampling, LLAVA_VIDEO_PROTOCOL.frames) == (LLAVA_VIDEO, 64)
    assert ONEVISION.decord and LLAVA_VIDEO.decord, "frames that players hide count"
    assert not TINY.sampling.decord and TINY.sampling.per_second is None


# --- cells
def test_what_changes_a_result_changes_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    base = cell(MERGE)
    others = [
        cell(FULL), cell(MERGE, "tiny_long"), cell(MERGE, limit=7), cell(MERGE, frames=4), cell(MERGE, model="video"),
        cell(dataclasses.replace(MERGE, budget=0.2)),
        cell(Reduction("x", ForeignSaliency(SaliencyTopK(), "random"), 0.25)),
    ]  # fmt: skip
    assert len({one.id for one in [base, *others]}) == 1 + len(others)
    assert cell(dataclasses.replace(MERGE, name="other words"), key="x@0.25").id == base.id
    assert cell(MERGE, limit=300).id == cell(MERGE, limit=None).id, "every question is every question"
    monkeypatch.setattr(cells_module, "device_kind", lambda tier: "NVIDIA H200")
    assert cell(MERGE).id != base.id
    assert {"protocol", "dtype", "attention", "packages", "code"} <= set(base.identity())
    assert device_kind("tiny") == "cpu"


REFUSED = [
    ({"benchmark": "videomme"}, "tiny_actions"),
    ({"benchmark": "egoschema", "tier": "paper"}, "egoschema_subset"),
    ({"limit": 0}, "limit=0"),
    ({"model": "nowhere"}, "train-tiny"),
    ({"model": "/no/such/model", "tier": "paper", "benchmark": "mvbench"}, "model folder"),
]


@pytest.mark.parametrize(("what", "words"), REFUSED)
def test_what_cannot_be_measured_is_refused_first(what: dict, words: str) -> None:
    with pytest.raises((BadUsage, CannotRun)) as told:
        cell(**what).check()
    assert words in str(told.value)


def test_a_hubs_model_keeps_its_name_when_it_has_been_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every cell would be measured again in the second run."""
    asked, sha = [], "0123456789abcdef" * 2 + "01234567"
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    info = type("Info", (), {"sha": sha})
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, name, **more: asked.append(name) or info)
    before = cells_module.revision("a/model")
    snapshot = tmp_path / "hub" / "models--a--model" / "snapshots" / sha
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"mm_newline_position": "grid"}')
    (tmp_path / "hub" / "models--a--model" / "refs").mkdir()
    (tmp_path / "hub" / "models--a--model" / "refs" / "main").write_text(sha)
    assert before == cells_module.revision("a/model") == f"a/model@{sha}" and asked == ["a/model"]
    assert cell(model="a/model", benchmark="videomme", tier="paper").protocol is LLAVA_VIDEO_PROTOCOL


def test_names_of_models() -> None:
    assert model_name("data/tiny/video") == model_name("video") == "video" and model_name("ov-7b") == "ov-7b"
    assert layers_of("onevision") == 6 and layers_of("ov-7b") == 28 and layers_of("ov-72b") == 80
    assert cell(benchmark="mvbench", limit=3).asked == 60 and cell(limit=None).asked == 300


# --- scoring
def logged(task: str, doc_id: int = 0, answer: str = "A", **own) -> dict:
    sample = {"doc_id": doc_id, "doc": {"answer": "B"}, "target": "B", "arguments": ["Q"], "filtered_resps": [answer]}
    return line(sample | own, task, f"v/{doc_id}.mp4", 7)


def test_a_question_without_one_score_of_its_own_is_told() -> None:
    with pytest.raises(CannotRun, match="egoschema_subset"):
        correct({"score": {"pred": 2, "ground_truth": ""}})
    with pytest.raises(CannotRun, match=r"[Nn]o score"):
        correct({"doc_id": 0, "bleu": [1, 2]})


def test_another_score_than_lmms_evals_own_stops() -> None:
    lines = [logged("t", k, acc=float(k < 2)) for k in range(3)]
    own, notes = compared({"t": {"acc,none": 2 / 3, "acc_stderr,none": 0.1, "alias": "t"}}, lines)
    assert own == pytest.approx(200 / 3) and notes == ()
    with pytest.raises(CannotRun, match="scores t 70"):
        compared({"t": {"acc,none": 0.7}}, lines)
    with pytest.raises(CannotRun, match="one score"):
        compared({"t": {"acc,none": 0.7, "f1,none": 0.7}}, lines)


def test_known_differences_of_lmms_evals_scores_are_said() -> None:
    right, wrong = ({"mvbench_accuracy": {"pred_answer": "A", "score": one}} for one in (1, 0))
    lines = [logged("m", 0, **right), logged("m", 1, **wrong), logged("m", 2, answer=" ", **wrong)]
    own, notes = compared({"m": {"mvbench_accuracy,none": 50.0}}, lines)
    assert own == 50 and notes[0].startswith("1 empty answers count as wrong")
    rounded = [logged("l", k, lvb_acc={"answer": "D", "parsed_pred": "D" if k else "A"}) for k in range(3)]
    assert compared({"l": {"lvb_acc,none": 0.66667}}, rounded)[0] == pytest.approx(66.667)


AGREED = {  # letter -> answers to VideoMME of which lmms-eval 0.7.3 and the release read it
    "A": ["A", "A.", "A or B? It is (B)."],
    "B": ["(B)", " B\n", "The best answer is: B", "The best option is B"],
    "C": ["C. A dog."],
    "D": ["The correct answer is D."],
    "": ["E", "", "It is not clear from the picture what she is holding up there"],
}
OTHERWISE = {"Answer: C": ("C", "A"), "Both A and C": ("C", "B"), "Based on the video, D": ("D", "B")}


def test_videommes_answers_are_read_side_by_side() -> None:
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer

    readings = {answer: (letter, letter) for letter, answers in AGREED.items() for answer in answers} | OTHERWISE
    lines = []
    for k, (answer, read) in enumerate(readings.items()):
        assert (extract_mcq_answer(answer, ["A", "B", "C", "D"]), released_letter(answer)) == read, answer
        lines.append(logged("v", k, answer, videomme_perception_score={"pred_answer": read[0], "answer": "B"}))
    _, notes = compared({"v": {"videomme_perception_score,none": 100 * 4 / 15}}, lines)
    assert notes == ("the release reads 3 of 15 answers as another letter and would score 40.00",)
    assert compared({"t": {"acc,none": 1.0}}, [logged("t", acc=1.0)])[1] == ()


# --- features
class Counting:
    """An adapter whose features are the pixels; counts what it encodes."""

    encoded = 0

    def encode(self, videos, requires):
        self.encoded += 1
        pixels = videos[0]
        fields = {name: torch.ones(pixels.shape[:2]) for name in requires}
        return [VideoFeatures(pixels, (1, pixels.shape[1]), **fields)]


def test_what_is_spent_is_the_mean_over_prompts() -> None:
    def sample(kept: int) -> SampleStats:
        layers, shape = ((kept, kept // 2), (1, 1)), LLMShape("x", 8, 16, 2, 2, 2, 4)
        return SampleStats(4, 64, 0.25, 16, kept, 1, 1, 80, 20, shape, *layers)

    assert sweep.spent([sample(20), sample(8)]) == {
        **{"asked_share": 0.25, "asked_tokens": 16, "full_tokens": 64, "full_newlines": 1, "kept_tokens": 14},
        **{"kept_newlines": 1, "layer_tokens": 10.5, "layer_newlines": 1, "frames": 4},
        **{"off_per_frame": -0.5, "farthest_off": -2},
    }
    with pytest.raises(CannotRun, match="no video could be read"):
        sweep.spent([])


def store(max_bytes: int = 10**6) -> FeatureStore:
    made = FeatureStore(Counting(), lambda pixels: pixels, max_bytes)
    made.decode = lambda path: type("Frames", (), {"pixels": torch.ones(2, 4, 8), "notes": (f"seen {path}",)})
    return made


def test_a_video_is_encoded_once_for_all_settings_and_memory_is_bounded() -> None:
    made = store()
    made.requires = frozenset({"saliency"})
    for outer in (None, SaliencyTopK(), None):
        assert made.get("a/0.mp4", outer) is made.get("a/0.mp4")
    assert made.adapter.encoded == 1 and made.notes == {"a/0.mp4": ("seen a/0.mp4",)}
    size = 4 * (2 * 4 * 8 + 2 * 4)
    small = store(2 * size)
    small.requires = frozenset({"saliency"})
    for path in "0123":
        small.get(path)
    small.get("2")
    assert small.adapter.encoded == 4
    small.get("0")
    assert small.adapter.encoded == 5 and small._bytes <= 2 * size


def test_a_stage_inside_the_tower_is_measured_with_features_of_its_own(lm: ReducedVideoModel) -> None:
    early, jobs = Reduction("EarlyTom", tower=EarlyTom((0,), tau=0.5)), asked(lm)
    texts(lm, jobs, FULL)
    texts(lm, jobs, early)
    spent = [one.stats for one in lm.sheets[0].answers.values()]
    assert all(one.tower_frames[0] == 8 and one.kept == one.tower_frames[-1] * 16 for one in spent)
    assert any(one.kept < 8 * 16 for one in spent) and early.describe()["tower"]["tau"] == 0.5


def test_foreign_saliency_is_no_tower_and_never_mistaken_for_one(lm: ReducedVideoModel) -> None:
    made, outer = store(), ForeignSaliency(SaliencyTopK(), "random")
    own, foreign = made.get("a/0.mp4", SaliencyTopK()), made.get("a/0.mp4", outer)
    assert foreign.tokens is own.tokens and not torch.equal(foreign.saliency, own.saliency)
    assert torch.equal(foreign.saliency, store().get("elsewhere/a/0.mp4", outer).saliency), "by the video's own name"
    assert Reduction("x", outer, 0.5).describe()["outer"]["outer"]["method"] == "SaliencyTopK"
    texts(lm, asked(lm), Reduction("x", outer, 0.25))
    assert {answer.stats.kept for answer in lm.sheets[0].answers.values()} == {8 * 16 // 4}
    with pytest.raises(BadUsage, match="ForeignSaliency"), reduce_tokens(lm.model, outer, 0.25):
        pass


# --- the lmms-eval model
@pytest.fixture(scope="module")
def lm() -> ReducedVideoModel:
    torch.set_num_threads(1)
    return ReducedVideoModel(str(paths.data("tiny", "onevision")), frames=8, batch_size=4, device="cpu")


def asked(lm: ReducedVideoModel, count: int = 3, visual=None, **options) -> list:
    from lmms_eval.api.instance import Instance

    docs = benchmarks.questions("tiny_ego")[:count]
    lm.task_dict = {"tiny_ego": {"test": docs}}
    visual = visual or (lambda doc: [str(benchmarks.video_path("tiny_ego", doc["video"]))])
    options = {"max_new_tokens": 4, "do_sample": False, "until": ["\n\n"]} | options
    told = {"task": "tiny_ego", "repeats": 1}
    return [
        Instance("generate_until", (d["question"], options, visual, d["doc_id"], "tiny_ego", "test"), 0, told | d)
        for d in docs
    ]


def texts(lm: ReducedVideoModel, requests: list, *settings: Reduction) -> list[str]:
    lm.sheets = [AnswerSheet(setting) for setting in settings or (FULL,)]
    return lm.generate_until(requests)


def test_answers_are_those_of_the_model_itself(lm: ReducedVideoModel) -> None:
    """Without a reduction: the stock model's generate on stock inputs, one question at a time, no hooks."""
    requests = asked(lm)
    for request, answer in zip(requests, texts(lm, requests), strict=True):
        question, _, visual, doc_id, *_ = request.args
        inputs = lm.processor(load_frames(visual(lm.task_dict["tiny_ego"]["test"][doc_id])[0], 8).pixels, question)
        with torch.inference_mode():
            output = lm.model.generate(**inputs, max_new_tokens=4, do_sample=False)
        text = lm.processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer == text.strip()


def test_the_order_of_the_answers_is_that_of_the_questions(lm: ReducedVideoModel) -> None:
    requests = asked(lm, 9)
    forward = texts(lm, requests, MERGE)
    assert texts(lm, requests[::-1], MERGE) == forward[::-1]
    assert texts(lm, [], MERGE) == []


def test_settings_share_a_pass_over_videos_that_do_not_fit_into_memory(lm, tmp_path: Path, monkeypatch) -> None:
    """Every video is encoded once although the memory holds two; answers are those of settings alone, and on disk."""
    requests, random = asked(lm, 9), Reduction("Random", RandomDrop(seed=0), 0.25)
    lm.store.clear()
    monkeypatch.setattr(lm.store, "requires", frozenset(MERGE.outer.requires))
    alone = [texts(lm, requests, setting) for setting in (MERGE, random)]
    encode, calls = lm.store.adapter.encode, []
    monkeypatch.setattr(lm.store.adapter, "encode", lambda *given: calls.append(1) or encode(*given))
    monkeypatch.setattr(lm.store, "max_bytes", 2 * lm.store._bytes // 3)
    monkeypatch.setattr("holitom_repro.evaluation.model._WINDOW", 1)
    lm.store.clear()
    lm.sheets = sheets = [AnswerSheet(setting, tmp_path / setting.name) for setting in (MERGE, random)]
    together = [lm.generate_until(requests)]
    lm.sheets = sheets[1:]
    together.append(lm.generate_until(requests))
    assert together == alone and len(calls) == 3
    with next((tmp_path / "Random").iterdir()).open("ab") as file:
        file.write(pickle.dumps([Answer("t", 0, "x", "v")])[:20])  # what a kill leaves
    again = AnswerSheet(random, tmp_path / "Random")
    assert again.answers == sheets[1].answers and again.stats.removed
    assert vars(again.stats) == vars(sheets[1].stats)


@pytest.mark.parametrize("options", [{"do_sample": True}, {"temperature": 0.7}, {"num_beams": 3}, {"typical_p": 0.9}])
def test_anything_but_greedy_decoding_is_refused(lm: ReducedVideoModel, options: dict) -> None:
    with pytest.raises(CannotRun, match="greedily"):
        texts(lm, asked(lm, **options))


@pytest.mark.parametrize("protocol", [TINY, LLAVA_ONEVISION, LLAVA_VIDEO_PROTOCOL])
def test_generate_is_told_what_the_release_tells_it(lm: ReducedVideoModel, monkeypatch, protocol) -> None:
    """A copied generation_config is not heard, a task file of today that allows fewer tokens neither, and the releases
    ignore a task's stop strings."""
    plain, seen = texts(lm, asked(lm)), []
    conversation = protocol.conversation and lm.processor.text("{question}").replace("<video>", "{video}")
    monkeypatch.setattr(lm, "protocol", dataclasses.replace(protocol, conversation=conversation))
    before = lm.model.generation_config.to_dict()
    kind, own = type(lm.model), type(lm.model)._sample
    monkeypatch.setattr(kind, "_sample", lambda *a, **k: seen.append(k["generation_config"]) or own(*a, **k))
    lm.model.generation_config.update(repetition_penalty=5.0, do_sample=True, temperature=0.1, top_k=1, top_p=0.1)
    try:
        assert texts(lm, asked(lm)) == plain
    finally:
        lm.model.generation_config.update(**{name: before.get(name) for name in GENERATION})
    assert {name: getattr(seen[0], name) for name in GENERATION} == GENERATION
    assert seen[0].max_new_tokens == 4
    request = asked(lm, 1)[0]
    lm.task_dict["egoschema_subset"] = lm.task_dict["tiny_ego"]
    request.arguments = (*request.args[:4], "egoschema_subset", "test")
    assert lm._job(request).new_tokens == (4 if protocol is TINY else 1024)
    assert protocol.stops == (protocol is TINY)


@pytest.mark.parametrize(("protocol", "answer"), [(LLAVA_ONEVISION, None), (LLAVA_VIDEO_PROTOCOL, "can not load")])
def test_an_unreadable_video_is_told_or_counted_as_the_release_does(
    lm, monkeypatch, tmp_path, protocol, answer
) -> None:
    broken = tmp_path / "a: broken.mp4"
    broken.write_bytes(b"no video")
    other = asked(lm)[0].args[2]
    requests = asked(lm, 6, visual=lambda doc: [str(broken)] if doc["doc_id"] < 3 else other(doc))
    conversation = lm.processor.text("{question}").replace(lm.processor.video_token, "{video}")
    monkeypatch.setattr(lm, "processor", dataclasses.replace(lm.processor, conversation=conversation))
    monkeypatch.setattr(lm, "protocol", dataclasses.replace(TINY, broken=protocol.broken))
    with pytest.raises(BadVideo, match=r"question \d: .*broken\.mp4") as told:
        texts(lm, requests)
    assert "--skip-broken" in told.value.fix
    monkeypatch.setattr(lm, "skip_broken", True)
    given = texts(lm, requests)
    assert all(answer in text if answer else text for text in given[:3])
    found = [lm.sheets[0].answers["tiny_ego", k] for k in range(6)]
    assert [one.stats is None for one in found] == [True] * 3 + [False] * 3
    assert all("broken.mp4" in one.notes[0] for one in found[:3])
    with pytest.raises(CannotRun, match="no video reached"):
        texts(lm, requests[:3])


def test_arguments_of_lmms_evals_command_line() -> None:
    folder, own = str(paths.data("tiny", "onevision")), {"device": "cpu"}
    words = f"pretrained={folder},method=holitom,tau=0.7,budget=0.1,frames=4"
    made = ReducedVideoModel.create_from_arg_string(words, {"batch_size": "2", **own})
    assert made.sheets[0].reduction == Reduction("HoliTom", HoliTom(tau=0.7), 0.1)
    assert (made.frames, made.batch_size, made.protocol) == (4, 2, TINY)
    for wrong, what in (("method=holytom", "HoliTom"), ("method=FastV,tau=1", "ratio"), ("protocol=x", "tiny")):
        with pytest.raises(BadUsage, match=what):
            ReducedVideoModel.create_from_arg_string(f"pretrained={folder},{wrong}", own)
    preset = ReducedVideoModel(folder, **own, preset="table1:HoliTom:0.10").sheets[0].reduction
    assert preset.budget == 0.10 and preset.inner[0].layer == 4
    assert manifest().simple_class_path == f"{ReducedVideoModel.__module__}.ReducedVideoModel"


# --- the sweep
def test_groups_see_their_videos_once_and_a_large_one_is_cut() -> None:
    many = [cell(MERGE, frames=32, key=f"x@{k}") for k in range(40)] + [cell(FULL, "tiny_long", frames=32)]
    found = sweep.groups(many)
    assert [len(group) for group in found] == [40, 1]
    assert sorted(len(group) for group in sweep.shared(found, 2)) == [1, 20, 20]
    assert sweep.shared(found, 1) == found
    few = sweep.groups([cell(MERGE), cell(FULL), cell(FULL, "tiny_long")])
    assert sorted(map(len, sweep.shared(few, 2))) == [1, 2], "encoding videos twice would cost more"


def test_a_sweep_in_processes_of_its_own_measures_what_one_in_this_process_does(runs: Path, capfd) -> None:
    wanted, found = [cell(one, name) for name in ("tiny_ego", "tiny_actions") for one in (FULL, MERGE)], []
    sweep.measure_tiny(wanted, show=False)
    assert "lm" not in sweep._own and "Postprocessing" not in capfd.readouterr().err, (
        "a notebook's kernel is left alone"
    )
    found.append([Store("tiny").load(one.id) for one in wanted])
    shutil.rmtree(Store("tiny").folder)
    torch.set_num_threads(1)
    sweep.measure(wanted, lambda questions: None, sweep.Options())
    found.append([Store("tiny").load(one.id) for one in wanted])
    for (mine, lines), (theirs, others) in zip(*found, strict=True):
        assert lines == others and len(lines) == 6
        same = {"seconds", "created", "provenance"}
        assert mine.model_dump(exclude=same) == theirs.model_dump(exclude=same)
        assert mine.lmms_eval == pytest.approx(mine.value) and mine.protocol == "tiny 1" and mine.device == "cpu"
        assert mine.provenance["threads"] == theirs.provenance["threads"] == 1


def test_a_broken_file_is_told_or_skipped(tmp_path, monkeypatch, capsys) -> None:
    own = [benchmarks.video_path("tiny_ego", f"00{k}.mp4") for k in (0, 1)]
    monkeypatch.setattr(paths, "runs", lambda *parts: tmp_path.joinpath(*parts))
    folder = benchmarks.folder("tiny_ego")
    folder.mkdir(parents=True)
    for file in (*own, own[0].parent / "questions.jsonl"):
        shutil.copy(file, folder)
    (folder / "000.mp4").write_bytes(b"no video")
    monkeypatch.setattr(sweep, "measure_tiny", lambda cells, show: sweep.measure(cells, print, sweep.Options()))
    with pytest.raises(BadVideo, match=r"tiny_ego, question \d: .*000\.mp4.*--skip-broken") as told:
        evaluate("onevision", {}, ["tiny_ego"], frames=3, limit=6)
    assert "counted as answered wrongly" in told.value.fix
    monkeypatch.setenv(sweep.SKIP, "1")
    two = {("r", share): Reduction("r", RandomDrop(), share) for share in (0.25, 0.5)}
    frame = evaluate("onevision", two, ["tiny_ego"], frames=3, limit=6)
    said = "tiny_ego: 3 questions about videos that cannot be read are counted as answered wrongly"
    assert said in capsys.readouterr().err and unread(frame) == said and set(frame["n"]) == {6}
    assert samples(frame).query("doc_id < 3")["correct"].sum() == 0
    table = ablation_table(frame, "r@0.50")
    assert said in tables.save(table, "t", out=tmp_path).read_text(encoding="utf-8")
    assert said in tables.styled(table, "title").to_html()


class Lazy(RandomDrop):
    """An outer stage that keeps every token, defined where a notebook would."""

    __module__ = "__main__"  # other processes cannot import a test

    def __call__(self, video, budget):
        return RandomDrop()(video, 1.0)


def test_a_method_that_did_not_act_gives_no_score_and_the_error_of_a_process_is_raised_as_it_was(runs: Path) -> None:
    with pytest.raises(CannotRun, match="outer kept every token") as raised:
        sweep.measure_tiny([cell(Reduction("outer", Lazy(), 0.5), frames=5)], show=False)
    assert "_measure_group" in str(raised.value.__cause__), "with the traceback of the process"
    assert not list(runs.rglob("*.json"))


def test_edited_sources_are_measured_in_new_processes(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """joblib starts others where the environment is another."""
    pools = []
    monkeypatch.setattr("joblib.externals.loky.get_reusable_executor", lambda *_, **given: pools.append(given) or 1 / 0)
    for code in ("as it was", "as it was", "edited"):
        monkeypatch.setattr(sweep, "present_code", lambda code=code: code)
        with pytest.raises(ZeroDivisionError):
            sweep.measure_tiny([cell(limit=1, frames=2)], show=False)
    assert pools[0] == pools[1] != pools[2]


SCRIPT = """
import sys
from pathlib import Path
from holitom_repro import paths
from holitom_repro.evaluation import sweep
from holitom_repro.evaluation.cells import Cell
from holitom_repro.tiny import benchmarks
from holitom.methods import RandomDrop
from holitom.types import Reduction

class Mine(RandomDrop):
    "Defined in no module that a process of the sweep could import."

own = paths.runs
paths.runs = lambda *parts: own(*parts) if parts[:1] == ("cache",) else Path(sys.argv[1], *parts)
cells = [Cell(f"r@{k}", Reduction("r", Mine(seed=k), 0.5), "onevision", "tiny_ego", 8, 6) for k in range(60)]
try:
    sweep.measure_tiny(cells, show=False)
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_sweep_keeps_its_cells_and_leaves_nobody_behind(tmp_path: Path, way: signal.Signals) -> None:
    words = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True)
    until(lambda: list(tmp_path.rglob("*.json")) or process.poll() is not None, "a finished cell")
    process.send_signal(way)
    out, _ = process.communicate(timeout=60)
    assert (b"stopped" in out) == (way == signal.SIGINT)
    alive = ["ps", "-o", "pid=", "-g", str(process.pid)]
    until(lambda: not subprocess.run(alive, capture_output=True).stdout.strip(), "gone")
    done = [json.loads(path.read_text())["n"] for path in tmp_path.rglob("*.json")]
    assert 0 < len(done) < 60 and set(done) == {6}
