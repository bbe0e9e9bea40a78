"""What lmms-eval logs about a question, in one form for all benchmarks, and its own score beside ours."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from holitom.errors import CannotRun

PERCENT = ("mvbench_accuracy", "videomme_perception_score")
"""Metrics of lmms-eval 0.7.3 that run to 100; the others run to 1."""
READ = "videomme_perception_score"
"""What VideoMME's task logs: lmms-eval 0.7.3 reads letters out of answers in another way than the release does."""
# (the others of its list miss a comma and so never match)
_PHRASES = ("The best answer is", "The correct answer is", "The answer is", "The answer")
_VIDEO = ("video", "videoID", "video_idx", "video_id", "video_path")
_KIND = ("type", "task_type", "question_category", "question_type")
_PREDICTED = ("pred_answer", "parsed_pred", "pred")
_TRUE = ("answer", "gt_answer", "ground_truth")


def correct(sample: Mapping[str, Any]) -> float:
    """1 or 0 (or partial credit) for one logged sample: ``acc``, or what the tasks of MVBench, EgoSchema,
    LongVideoBench and VideoMME log. CannotRun where the right answer is not known (EgoSchema's full set)."""
    if isinstance(sample.get("acc"), (int, float)):
        return float(sample["acc"])
    for value in sample.values():
        if not isinstance(value, Mapping):
            continue
        if isinstance(value.get("score"), (int, float)):
            return float(value["score"])
        found = [next((value[name] for name in names if name in value), None) for names in (_PREDICTED, _TRUE)]
        predicted, truth = (str(one).strip().lower() for one in found)
        if None not in found and truth:
            return float(predicted == truth)
    fix = "use a task whose answers are public (for EgoSchema: egoschema_subset) and that scores every question"
    raise CannotRun(f"no score among what the task logged ({', '.join(sample)})", fix=fix)


def line(sample: Mapping[str, Any], task: str, video: str, kept: int | None) -> dict[str, Any]:
    """One line of the log. The video, by which intervals are clustered, is named by the document, else by its file;
    benchmarks that split kinds of question into tasks (MVBench) name the kind by the task."""
    doc = sample.get("doc", {})
    answer = sample["filtered_resps"][0]
    letters = {"letters": (sample[READ]["pred_answer"], released_letter(answer))} if READ in sample else {}
    return letters | {
        "doc_id": sample["doc_id"],
        "task": task,
        "video": str(next((doc[name] for name in _VIDEO if doc.get(name)), video)),
        "kind": str(next((doc[name] for name in _KIND if doc.get(name)), task)),
        "question": sample["arguments"][0],
        "target": sample["target"],
        "answer": answer,
        "correct": correct(sample),
        "kept": kept,
    }


def released_letter(answer: str) -> str:
    """The letter that the release reads out of an answer to VideoMME: the first of A to D, some phrases left out
    (extract_characters_regex in its lmms_eval/tasks/videomme/utils.py)."""
    for phrase in _PHRASES:
        answer = answer.replace(phrase, "")
    return next((letter for letter in answer if letter in "ABCD"), "")


def compared(results: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> tuple[float, tuple[str, ...]]:
    """lmms-eval's own score of a benchmark in points (the mean of its tasks', which ask equally many questions), and
    what should be said about it. CannotRun where it is not the mean of the questions' scores.

    MVBench leaves empty answers out of its score, here they count as wrong: said, and checked without them.
    LongVideoBench rounds to five digits.
    """
    own, empty = [], 0
    for task in dict.fromkeys(line["task"] for line in lines):
        scores = {k.split(",")[0]: v for k, v in results[task].items() if "stderr" not in k and k.endswith(",none")}
        known = {name: value for name, value in scores.items() if isinstance(value, (int, float))}
        if len(known) != 1:
            raise CannotRun(f"{task} has the scores {', '.join(scores)}", fix="use a task with one score")
        (name, value), mine = next(iter(known.items())), [line for line in lines if line["task"] == task]
        counted = [line for line in mine if str(line["answer"]).strip() or name != "mvbench_accuracy"]
        empty += len(mine) - len(counted)
        points = value * (1 if name in PERCENT else 100)
        ours = 100 * fmean([line["correct"] for line in counted] or [0])
        if abs(points - ours) > (1e-3 if name == "lvb_acc" else 1e-6):
            raise CannotRun(
                f"lmms-eval scores {task} {points:.6f}, its questions' scores give {ours:.6f}: one of them is wrong",
                fix="compare the lines of holitom_repro.evaluation.scoring with the task's process_results",
            )
        own.append(points)
    notes = [f"{empty} empty answers count as wrong; lmms-eval's own score leaves them out"] if empty else []
    if read := [(*line["letters"], line["target"]) for line in lines if "letters" in line]:
        other, points = sum(a != b for a, b, _ in read), 100 * fmean(b == target for _, b, target in read)
        notes.append(f"the release reads {other} of {len(read)} answers as another letter and would score {points:.2f}")
    return fmean(own), tuple(notes)
