"""What lmms-eval logs about a question, in one form for all benchmarks: was it right, which video, which kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from holitom.errors import CannotRun

if TYPE_CHECKING:
    from holitom_repro.evaluation.lmms import Answered

_VIDEO = ("video", "videoID", "video_idx", "video_id", "video_path")
_KIND = ("type", "task_type", "question_category", "question_type")
_PREDICTED = ("pred_answer", "parsed_pred", "pred")
_TRUE = ("answer", "gt_answer", "ground_truth")


def correct(sample: Mapping[str, Any]) -> float:
    """1 or 0 (or partial credit) for one logged sample.

    Reads ``acc`` of the tiny benchmarks and what the tasks of MVBench, EgoSchema, LongVideoBench and VideoMME log
    (lmms-eval 0.7.3). CannotRun when the task does not know the right answer (EgoSchema's full set is judged by its
    server only).
    """
    if isinstance(sample.get("acc"), (int, float)):
        return float(sample["acc"])
    for value in sample.values():
        if not isinstance(value, Mapping):
            continue
        if isinstance(value.get("score"), (int, float)):
            return float(value["score"])
        predicted = next((value[name] for name in _PREDICTED if name in value), None)
        if predicted is None:
            continue
        truth = next((value[name] for name in _TRUE if name in value), None)
        if truth is None or str(truth) == "":
            raise CannotRun(
                "this benchmark's answers are not public, its server judges them",
                fix="use its public subset (for EgoSchema: egoschema_subset)",
            )
        return float(str(predicted).strip().lower() == str(truth).strip().lower())
    raise CannotRun(
        f"no score among what the task logged ({', '.join(sample)})", fix="use a task that scores every question"
    )


def video_of(sample: Mapping[str, Any], fallback: str) -> str:
    """The video a question is about, the unit of every interval: named by the document, else by its file."""
    return str(next((sample["doc"][name] for name in _VIDEO if sample.get("doc", {}).get(name)), fallback))


def kind_of(sample: Mapping[str, Any], task: str) -> str:
    """The question's type; benchmarks that split types into tasks (MVBench) name it by the task."""
    return str(next((sample["doc"][name] for name in _KIND if sample.get("doc", {}).get(name)), task))


def line(sample: Mapping[str, Any], task: str, answered: Answered) -> dict[str, Any]:
    """One line of the per-question log."""
    return {
        "doc_id": sample["doc_id"],
        "task": task,
        "video": video_of(sample, answered.video),
        "type": kind_of(sample, task),
        "question": sample["arguments"][0],
        "target": sample["target"],
        "answer": sample["filtered_resps"][0],
        "correct": correct(sample),
        "prompt": answered.sample.prompt_after,
        "kept": answered.sample.kept,
    }
