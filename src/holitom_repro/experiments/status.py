"""How far an experiment got on this machine: which of its cells are finished, and when it last ran to its end.

Reading needs no torch: what an experiment consists of is written to runs/<tier>/plans/<name>.json when it is run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holitom_repro import machine, paths
from holitom_repro.experiments.registry import Experiment
from holitom_repro.provenance import code_fingerprint
from holitom_repro.results import write_atomic

if TYPE_CHECKING:
    from holitom_repro.evaluation.cells import Cell

_NUMBERS = ("measuring_seconds", "notebook_seconds", "computed", "processes", "cores")


@dataclass(frozen=True)
class Status:
    """done and total cells (0 and 0: it only calculates, or was never run); seconds and ended of the last full run."""

    words: str
    done: int = 0
    total: int = 0
    seconds: float | None = None
    ended: str | None = None


def plan_path(experiment: Experiment, tier: str) -> Path:
    """Where the plan of an experiment lives."""
    return paths.runs(tier, "plans", f"{experiment.name}.json")


def remember_plan(experiment: Experiment, tier: str, cells: Sequence[Cell]) -> None:
    """Note which cells the experiment consists of, so that ``list`` can count them."""
    from holitom_repro.evaluation.cells import key

    keys = list(dict.fromkeys(key(cell, tier) for cell in cells))
    _update(experiment, tier, {"code": code_fingerprint(), "keys": keys})


def remember_run(
    experiment: Experiment,
    tier: str,
    measuring: float | int,
    notebook: float | int,
    computed: int,
    processes: int = 1,
) -> None:
    """Note how long a run to the end took. The time to compute, and in how many processes, stays that of the last run
    that computed something."""
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    update: dict[str, Any] = {"ended": ended, "ended_code": code_fingerprint(), "notebook_seconds": round(notebook, 1)}
    if computed:
        update |= {"measuring_seconds": round(measuring, 1), "computed": computed, "processes": processes}
        update |= {"cores": machine.cores()}
    _update(experiment, tier, update)


def seconds_per_cell(experiment: Experiment, tier: str) -> float | None:
    """What a cell of this experiment took one process here the last time, or None. N processes need an N-th of it,
    the time in which they start included, which is what several runs have in common."""
    plan = _plan(experiment, tier)
    if not plan.get("computed"):
        return None
    return plan["measuring_seconds"] * plan.get("processes", 1) / plan["computed"]


def status(experiment: Experiment, tier: str) -> Status:
    """In words: done, cached cells k of n, not run, or what the tier lacks here."""
    if tier not in experiment.costs:
        return Status("not in this tier")
    plan = _plan(experiment, tier)
    folder = paths.runs(tier, "cells")
    keys = plan.get("keys", [])
    done = sum((folder / f"{key}.json").is_file() for key in keys)
    seconds = plan.get("measuring_seconds", 0.0) + plan.get("notebook_seconds", 0.0) or None
    numbers = {"done": done, "total": len(keys), "seconds": seconds, "ended": plan.get("ended")}
    current = code_fingerprint()
    if plan.get("ended_code") == current and done == len(keys):
        return Status("done", **numbers)
    if plan.get("code") == current and keys:
        return Status(f"{done} of {len(keys)} cells cached", **numbers)
    if missing := machine.lacking(tier):
        return Status("needs " + " and ".join(text.split(" (")[0] for text in missing), **numbers)
    return Status("not run since the code changed" if plan else "not run", **numbers)


def _plan(experiment: Experiment, tier: str) -> dict[str, Any]:
    """What was noted, or nothing where it is damaged: the next run notes it again."""
    try:
        plan = json.loads(plan_path(experiment, tier).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return plan if isinstance(plan, dict) and _readable(plan) else {}


def _readable(plan: dict[str, Any]) -> bool:
    keys = plan.get("keys", [])
    numbers = [plan[name] for name in _NUMBERS if name in plan]
    return (
        isinstance(keys, list)
        and all(isinstance(key, str) for key in keys)
        and all(isinstance(number, (int, float)) for number in numbers)
        and isinstance(plan.get("ended"), (str, type(None)))
        and ("computed" not in plan or "measuring_seconds" in plan)
    )


def _update(experiment: Experiment, tier: str, values: dict[str, Any]) -> None:
    path = plan_path(experiment, tier)
    write_atomic(path, json.dumps(_plan(experiment, tier) | values, indent=1) + "\n")
