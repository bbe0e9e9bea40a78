"""Run the cells of an experiment through lmms-eval, in one process or several, and never a finished one again.

Stopping (ctrl-C, kill, a full disk) loses at most the cells that run in the tiny tier, and the question that runs in
the paper tier: every finished one is on disk.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from holitom.errors import BadUsage
from holitom_repro.evaluation import measuring, workers
from holitom_repro.evaluation.amounts import questions
from holitom_repro.evaluation.cells import Cell, CellFiles, check, key, load_samples
from holitom_repro.evaluation.journal import Journal
from holitom_repro.evaluation.sharing import asked
from holitom_repro.results import Record
from holitom_repro.tiny import benchmarks

__all__ = ["Cell", "finished", "load_samples", "run_cells", "unfinished"]

BATCH = {"tiny": 32, "paper": 1}


def run_cells(
    cells: Sequence[Cell],
    tier: str,
    *,
    runs: Path | str = Path("runs"),
    fresh: bool = False,
    progress: bool = True,
    batch_size: int | None = None,
    include: Sequence[Path] = (),
    processes: int | None = None,
) -> list[Record]:
    """The records of ``cells``, in their order; what is not finished below ``runs`` is computed and written there.

    fresh: compute also what is finished; include: folders whose task files are taken before lmms-eval's own of the same
    name, for data that lie elsewhere; processes: of the tiny tier, how many share the cells (None:
    ``workers.suited``). Under ``accelerate launch`` each process answers its share of every benchmark and the first one
    writes. Raises BadUsage (unknown tier or benchmark, wrong limit) before anything runs, and CannotRun (no weights, a
    full disk, a method that did not act).
    """
    for cell in cells:
        check(cell, tier)
    if tier != "tiny" and processes is not None:
        raise BadUsage("processes belong to the tiny tier", fix="start the paper tier with accelerate launch")
    pending: dict[str, Cell] = {}
    for cell in unfinished(cells, tier, runs=runs, fresh=fresh):
        pending.setdefault(key(cell, tier), cell)
    if pending:
        size, folders = batch_size or BATCH[tier], tuple(str(folder) for folder in include)
        orders = workers.Orders(tuple(pending.values()), Path(runs), size, folders)
        crew = 1
        if tier == "tiny":
            crew = workers.suited(orders.cells, processes)
            _prepare(orders.cells, progress)
        with _progress(orders.cells, tier, progress) as bar:
            if crew > 1:
                workers.compute(orders, crew, bar)
            else:
                _compute(orders, tier, fresh, bar)
    files = CellFiles(Path(runs), tier)
    records = [files.load(cell) for cell in cells]
    return [record for record in records if record is not None]


def unfinished(cells: Sequence[Cell], tier: str, *, runs: Path | str = Path("runs"), fresh: bool = False) -> list[Cell]:
    """Those of ``cells`` that ``run_cells`` would compute; fresh: all."""
    files = CellFiles(Path(runs), tier)
    return [cell for cell in cells if fresh or files.load(cell) is None]


def finished(cells: Sequence[Cell], tier: str, *, runs: Path | str = Path("runs")) -> int:
    """How many of ``cells`` ``run_cells`` would read from disk."""
    return len(cells) - len(unfinished(cells, tier, runs=runs))


def _prepare(cells: Sequence[Cell], progress: bool) -> None:
    """Write the tiny tier's videos, before the libraries are imported that would look for a model hub."""
    measuring.stay_offline()
    limits: dict[str, int] = {}
    for cell in cells:
        limits[cell.benchmark] = max(limits.get(cell.benchmark, 1), asked(cell))
    for name, limit in limits.items():
        benchmarks.prepare(limit, [name], progress=progress)


def _compute(orders: workers.Orders, tier: str, fresh: bool, bar: tqdm) -> None:
    """In this process, or in this one of those that ``accelerate launch`` has started."""
    files = CellFiles(orders.runs, tier)
    for model in dict.fromkeys(cell.model for cell in orders.cells):
        mine = [cell for cell in orders.cells if cell.model == model]
        bar.set_description(f"loading {model}")
        lm = measuring.load(model, mine, orders.batch_size)
        lm.on_progress = partial(_advance, bar, lm.world_size)
        for cell in mine:
            bar.set_description(cell.title)
            journal = Journal(files.journal_path(cell), lm.rank) if tier == "paper" else None
            if journal is not None and fresh and lm.rank == 0:
                journal.clear()
            lm.accelerator.wait_for_everyone()
            lm.journal = journal
            record, samples = measuring.measure(lm, cell, tier, orders.include)
            if lm.rank == 0:
                files.save(cell, record, samples)
            lm.accelerator.wait_for_everyone()
            if journal is not None and lm.rank == 0:
                journal.clear()


def _advance(bar: tqdm, processes: int, questions: int) -> None:
    bar.update(min(questions * processes, bar.total - bar.n if bar.total else questions * processes))


@contextlib.contextmanager
def _progress(cells: Sequence[Cell], tier: str, progress: bool) -> Iterator[tqdm]:
    if tier == "tiny":
        total = sum(map(asked, cells))
    else:
        total = sum(questions(cell.benchmark, cell.limit) for cell in cells) or None
    first = int(os.environ.get("RANK", "0")) == 0
    with tqdm(total=total, unit="question", disable=not (progress and first), file=sys.stderr) as bar:
        yield bar
