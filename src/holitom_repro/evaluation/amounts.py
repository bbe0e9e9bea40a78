"""How many questions the benchmarks of the papers have: for progress and estimates, never for a result."""

from __future__ import annotations

QUESTIONS = {
    "mvbench": (20, 200),
    "egoschema_subset": (1, 500),
    "longvideobench_val_v": (1, 1337),
    "videomme": (1, 2700),
}
"""lmms-eval task -> how many tasks it consists of, and questions in each: for estimates of time only."""


def questions(task: str, limit: int | None = None) -> int:
    """Questions of a task of QUESTIONS, or as many as ``limit`` lets through of each of its parts; 0: not known."""
    parts, each = QUESTIONS.get(task, (1, limit or 0))
    return parts * min(each, limit or each)
