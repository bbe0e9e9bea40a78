"""What a run would compute and write, said beforehand: ``--dry-run``, and the line before a run's first cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from holitom_repro import paths, screen
from holitom.errors import CannotRun
from holitom_repro.experiments.registry import Experiment
from holitom_repro.experiments.status import seconds_per_cell

if TYPE_CHECKING:
    from holitom_repro.evaluation.cells import Cell
    from holitom_repro.runner import Options


def show(experiment: Experiment, options: Options) -> None:
    """Print what a run of one experiment would compute and write; computes nothing."""
    from holitom_repro.evaluation import sweep
    from holitom_repro.experiments import cells

    wanted = cells(experiment.name, options.tier, options.limit)
    print(f"{experiment.target}: {experiment.question}")
    if wanted:
        lacking = sweep.unfinished(wanted, options.tier, runs=paths.runs(), fresh=options.fresh)
        print(f"  cells     {line(experiment, options, wanted, lacking, processes(lacking, options))}")
        for words in _settings(wanted):
            print(f"            {words}")
        for words in _paper_plan(wanted, options) if options.tier == "paper" else ():
            print(f"  {words}")
    elif experiment.times:
        print(f"  timing    what runs/{options.tier}/latency.jsonl lacks ({experiment.costs[options.tier]})")
    else:
        print(f"  cells     none: it only calculates ({experiment.costs[options.tier]})")
    copies = f"runs/{options.tier}/notebooks/" if options.limit is None else f"runs/{options.tier}/trial/notebooks/"
    print(f"  notebook  notebooks/{experiment.notebook}.ipynb -> {copies}")
    place = f"figures/{options.tier}/" if options.limit is None else f"runs/{options.tier}/trial/"
    print(f"  writes    {place}\n")


def show_all(experiments: Sequence[Experiment], options: Options) -> None:
    """The same for several experiments, a row each. They share cells: each is counted where it is computed first."""
    from holitom_repro.evaluation import sweep
    from holitom_repro.evaluation.cells import key
    from holitom_repro.experiments import cells

    seen: set[str] = set()
    rows, left, seconds = [], 0, 0.0
    for experiment in experiments:
        wanted = cells(experiment.name, options.tier, options.limit)
        lacking = sweep.unfinished(wanted, options.tier, runs=paths.runs(), fresh=options.fresh)
        lacking = [cell for cell in lacking if key(cell, options.tier) not in seen]
        seen |= {key(cell, options.tier) for cell in wanted}
        left += len(lacking)
        taking = ""
        if lacking and not options.limit:
            each, _ = _seconds(experiment, options, len(wanted), processes(lacking, options))
            seconds += each * len(lacking)
            taking = screen.duration(each * len(lacking))
        counts = (str(len(wanted)), str(len(lacking)), taking) if wanted else ("none", "", "")
        rows.append((experiment.target, *counts, experiment.question))
    screen.rows(rows, header=("experiment", "cells", "to compute", "time", "question"))
    total = f"{len(seen)} different cells (settings x benchmarks) in all, {left} to compute"
    basis = "as timed here, else by the costs that ./reproduce.sh list names"
    print(f"\n{total}" + (f": about {screen.duration(seconds)} ({basis})" if seconds else ""))
    print("one experiment in full, with its settings: ./reproduce.sh <name> --dry-run\n")


def processes(lacking: Sequence[Cell], options: Options) -> int:
    """How many processes will share the cells that are not finished."""
    from holitom_repro.evaluation import workers

    return (options.processes or 1) if options.tier == "paper" else workers.suited(lacking, options.processes)


def line(experiment: Experiment, options: Options, cells: Sequence[Cell], lacking: Sequence[Cell], sharing: int) -> str:
    """How many cells there are, how many are left, and how long ``sharing`` processes will need for those."""
    left = len(lacking)
    text = f"{len(cells)} cells (settings x benchmarks), {len(cells) - left} finished, {left} to compute"
    if not left:
        return text
    text += f" in {sharing} processes" if sharing > 1 else ""
    if options.limit:
        return f"{text}, {options.limit} questions each"
    each, basis = _seconds(experiment, options, len(cells), sharing)
    return f"{text}: about {screen.duration(each * left)} ({basis})"


def _seconds(experiment: Experiment, options: Options, cells: int, sharing: int) -> tuple[float, str]:
    """Seconds per cell, and where that is known from."""
    if here := seconds_per_cell(experiment, options.tier):
        return here / sharing, "as timed here"
    cost = experiment.costs[options.tier]
    return 60 * cost.minutes / cells, f"on {cost.hardware}" + ("" if cost.measured else ", a guess")


def _settings(cells: Sequence[Cell]) -> list[str]:
    """A line for each method on each model, with its budgets: "onevision, 32 frames: VisionZip at 25, 20, 15, 10%"."""
    budgets: dict[str, dict[float, None]] = {}
    for cell in cells:
        name = f"{cell.model}, {cell.frames} frames: {cell.row}"
        budgets.setdefault(name, {})[cell.reduction.budget] = None
    return [
        name if set(values) == {1.0} else f"{name} at {', '.join(f'{100 * value:g}' for value in values)}%"
        for name, values in budgets.items()
    ]


def _paper_plan(cells: Sequence[Cell], options: Options) -> list[str]:
    """Disk and time; a download that does not fit is said, not raised: the run itself may be meant for elsewhere."""
    from holitom_repro.evaluation.cells import CellFiles
    from holitom_repro.paper_tier import planning

    try:
        return planning.describe(cells, CellFiles(paths.runs(), options.tier), options.processes or 1)[1:]
    except CannotRun as error:
        return [f"disk   {words}" for words in str(error).splitlines()]
