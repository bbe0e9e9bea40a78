"""One form for what six lmms-eval tasks log."""

from __future__ import annotations

import pytest

from holitom.errors import CannotRun
from holitom_repro.evaluation.scoring import correct, kind_of, video_of

MVBENCH = {"mvbench_accuracy": {"pred_answer": "A.", "gt_answer": "A", "score": 1}}
VIDEOMME = {"videomme_perception_score": {"pred_answer": "C", "answer": "B", "score": 0.0, "videoID": "x"}}
LONGVIDEO = {"lvb_acc": {"id": "1", "answer": "D", "parsed_pred": "D"}, "submission": {"1": "D"}}
EGOSCHEMA = {"submission": {"v": 2}, "score": {"pred": 2, "ground_truth": "2"}}


@pytest.mark.parametrize(
    ("logged", "expected"),
    [({"acc": 1.0}, 1), ({"acc": 0.0}, 0), (MVBENCH, 1), (VIDEOMME, 0), (LONGVIDEO, 1), (EGOSCHEMA, 1)],
)
def test_every_benchmark_says_whether_the_answer_was_right(logged: dict, expected: int) -> None:
    assert correct({"doc_id": 0, "doc": {"answer": "B"}, "target": "B", "arguments": [], **logged}) == expected


def test_a_wrong_option_is_wrong() -> None:
    assert correct({"lvb_acc": {"answer": "D", "parsed_pred": "A"}}) == 0
    assert correct({"score": {"pred": -1, "ground_truth": 3}}) == 0


@pytest.mark.parametrize("truth", [None, ""])
def test_answers_that_are_not_public_are_refused(truth: object) -> None:
    with pytest.raises(CannotRun, match="egoschema_subset"):
        correct({"score": {"pred": 2, "ground_truth": truth}})


def test_a_task_without_a_score_is_refused() -> None:
    with pytest.raises(CannotRun, match=r"[Nn]o score"):
        correct({"doc_id": 0, "bleu": [1, 2]})


def test_videos_and_kinds_come_from_the_document_else_from_file_and_task() -> None:
    assert video_of({"doc": {"videoID": "abc"}}, "f.mp4") == "abc" and video_of({"doc": {}}, "f.mp4") == "f.mp4"
    assert kind_of({"doc": {"type": "count"}}, "t") == "count" and kind_of({"doc": {}}, "mvbench_x") == "mvbench_x"
