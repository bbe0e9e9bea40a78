"""Runs an experiment from its cells to its verdicts: measure in the terminal, execute the notebook, show the table."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holitom_repro import caches, execution, machine, paths, planned, screen, verdicts
from holitom.errors import CannotRun, KitError
from holitom_repro.experiments import inference
from holitom_repro.experiments.registry import EXPERIMENTS, ORDER, Experiment, check_tier, missing_models
from holitom_repro.experiments.status import remember_plan, remember_run

if TYPE_CHECKING:
    from holitom_repro.evaluation.cells import Cell
    from holitom_repro.results import Record


@dataclass(frozen=True)
class Options:
    """How to run: tier; limit: only the first so many questions of each benchmark; fresh: nothing from the cache;
    processes: how many share the cells (None: what suits this machine; in the paper tier 1, each needs a GPU); gate: of
    the paper tier, whether unreduced models must score what is printed."""

    tier: str = "tiny"
    limit: int | None = None
    fresh: bool = False
    dry_run: bool = False
    strict: bool = False
    processes: int | None = None
    gate: bool = True


@dataclass
class Outcome:
    """How far one experiment got; ``error`` says why it went no further."""

    experiment: Experiment
    seconds: float | int = 0.0
    cells: int = 0
    files: list[Path] = field(default_factory=list)
    judged: list[Any] = field(default_factory=list)
    error: KitError | None = None


def run(experiment: Experiment, options: Options) -> int:
    """One experiment; returns the exit code. Raises KitError before any work when it cannot run here."""
    _prepare([experiment], options)
    if options.dry_run:
        planned.show(experiment, options)
        _say_what_lacks(options.tier)
        return 0
    outcome = perform(experiment, options)
    screen.show(outcome.files)
    return verdicts.summary(outcome.judged, strict=options.strict)


def run_all(options: Options) -> int:
    """Every experiment of the tier in order, each as far as it gets; ends with one screen and the worst exit code."""
    chosen = [EXPERIMENTS[name] for name in ORDER if options.tier in EXPERIMENTS[name].costs]
    _prepare(chosen, options)
    if options.dry_run:
        planned.show_all(chosen, options)
        _say_what_lacks(options.tier)
        return 0
    outcomes = []
    for number, experiment in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {experiment.target}: {experiment.question}", file=sys.stderr)
        try:
            outcomes.append(perform(experiment, options))
        except KitError as error:
            print(f"{experiment.target}: {error}", file=sys.stderr)
            outcomes.append(Outcome(experiment, error=error))
    return closing_screen(outcomes, strict=options.strict)


def closing_screen(outcomes: Sequence[Outcome], *, strict: bool) -> int:
    """One line for each experiment, then the verdicts of all; 2 when one could not run, else what the verdicts say."""
    lines = [
        (
            outcome.experiment.target,
            "failed" if outcome.error else "done",
            screen.duration(outcome.seconds),
            outcome.error.what if outcome.error else verdicts.counted(outcome.judged),
        )
        for outcome in outcomes
    ]
    screen.rows(lines, header=("experiment", "", "time", "verdicts"))
    print()
    code = verdicts.summary([verdict for outcome in outcomes for verdict in outcome.judged], strict=strict)
    return 2 if any(outcome.error for outcome in outcomes) else code


def _say_what_lacks(tier: str) -> None:
    for lack in machine.lacking(tier):
        print(f"this machine lacks {lack}")


def perform(experiment: Experiment, options: Options) -> Outcome:
    """Measure the experiment's cells, execute its notebook, collect its tables and verdicts."""
    from holitom_repro.experiments import cells

    started, moment = time.monotonic(), time.time()
    wanted = cells(experiment.name, options.tier, options.limit)
    records, computed, processes = _measure(experiment, wanted, options) if wanted else ([], 0, 1)
    if experiment.times:
        _, origin = inference.available(options.tier, options.limit, fresh=options.fresh)
        print(f"{experiment.target}: {origin.words}", file=sys.stderr)
    measured = time.monotonic()
    parameters = {"tier": options.tier, "limit": options.limit}
    copy = execution.execute(experiment.notebook, options.tier, parameters, progress=sys.stderr.isatty())
    execution.trust(copy)
    ended = time.monotonic()
    if options.limit is None:
        remember_run(experiment, options.tier, measured - started, ended - measured, computed, processes)
    took = screen.duration(ended - started)
    print(f"{experiment.target}: {took}; executed notebook: {copy.relative_to(paths.root())}", file=sys.stderr)
    judged = verdicts.of(experiment, records, options.tier) if options.limit is None else []
    return Outcome(experiment, ended - started, len(wanted), screen.written_since(options.tier, moment), judged)


def _prepare(experiments: Sequence[Experiment], options: Options) -> None:
    """Everything that can be refused is refused here, before any work."""
    if not options.dry_run and not all(experiment.times for experiment in experiments):
        machine.require(options.tier)
    for experiment in experiments:
        check_tier(experiment, options.tier)
        if experiment.times and not options.dry_run:
            inference.require(options.tier)
    if any(one.measures or one.times for one in experiments) and (absent := missing_models(options.tier)):
        raise CannotRun(
            f"the tiny tier's models are missing below data/tiny: {', '.join(absent)}",
            fix="restore them with git checkout -- data/tiny, or train them again: ./reproduce.sh train-tiny",
        )
    if not experiments:
        raise CannotRun(f"no experiment is offered in the {options.tier} tier", fix="use --tier tiny")
    caches.keep_inside(options.tier)


def _measure(experiment: Experiment, cells: Sequence[Cell], options: Options) -> tuple[list[Record], int, int]:
    """Compute what is not finished; returns the records of all cells, how many had to be computed, and by how many
    processes."""
    from holitom_repro.evaluation import sweep

    if options.tier == "paper":
        from holitom_repro.paper_tier.planning import runnable

        runnable(cells)  # names the checkpoints' revisions, which are part of every cell's key
    if options.limit is None:
        remember_plan(experiment, options.tier, cells)
    lacking = sweep.unfinished(cells, options.tier, runs=paths.runs(), fresh=options.fresh)
    processes = planned.processes(lacking, options)
    print(f"{experiment.target}: {planned.line(experiment, options, cells, lacking, processes)}", file=sys.stderr)
    with _interruptible(cells, options.tier):
        if options.tier == "paper":
            records = _measure_paper(experiment, cells, options)
        else:
            records = sweep.run_cells(cells, options.tier, runs=paths.runs(), fresh=options.fresh, processes=processes)
    return records, len(lacking), processes


def _measure_paper(experiment: Experiment, cells: Sequence[Cell], options: Options) -> list[Record]:
    from holitom_repro.paper_tier import launching
    from holitom_repro.paper_tier.measuring import Settings, measure

    if (options.processes or 1) == 1:
        return measure(cells, Settings(gate=options.gate, fresh=options.fresh))
    words = [experiment.target, *(["--limit", str(options.limit)] if options.limit else [])]
    words += [*([] if options.gate else ["--no-gate"]), *(["--fresh"] if options.fresh else [])]
    launching.run(options.processes, words, gpus=machine.gpu().ok)
    return measure(cells, Settings(gate=False))


@contextmanager
def _interruptible(cells: Sequence[Cell], tier: str) -> Iterator[None]:
    from holitom_repro.evaluation import sweep

    try:
        yield
    except KeyboardInterrupt as stop:
        kept = sweep.finished(cells, tier, runs=paths.runs())
        raise KeyboardInterrupt(
            f"\nstopped; {kept} of {len(cells)} cells done and kept; run the same command to continue"
        ) from stop
