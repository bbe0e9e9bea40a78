"""Several processes of one thread each compute the cells of the tiny tier: its models are too small for threads.

A worker is a fresh interpreter with a pipe to the process that started it, not a ``multiprocessing.Process``: that one
runs the caller's main script again, which notebooks do not have and scripts without a guard do not survive, and ctrl-C
would reach it while it imports. Results are those of one process with one thread, bit for bit.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, Any, NoReturn

import torch
from tqdm import tqdm

from holitom_repro import machine
from holitom.errors import BadUsage, CannotRun
from holitom_repro.evaluation import measuring
from holitom_repro.evaluation.cells import Cell, CellFiles
from holitom_repro.evaluation.sharing import Shares, asked, useful
from holitom_repro.results import code_fingerprint

GIB_EACH = 1.5
"""Free memory wanted for a worker. Measured at its peak, on a CPU: 0.9 GB resident with 32 frames, 1.2 GB with 64."""
_START = 300  # questions: about what is answered in the 6 seconds in which a worker imports and loads
_PATIENCE = 3  # seconds that a worker has to leave by itself
_PROGRAM = "import sys; sys.path[:] = {path!r}; from holitom_repro.evaluation.workers import work; work({descriptor})"
_FIX = "run the same command again, it continues; with --processes 1 (in Python: processes=1) it needs least memory"


@dataclass(frozen=True)
class Orders:
    """What every worker of a sweep is told once; afterwards cells are called by their place."""

    cells: tuple[Cell, ...]
    runs: Path
    batch_size: int
    include: tuple[str, ...]
    code: str = field(default_factory=code_fingerprint)


@dataclass(frozen=True)
class _Worker:
    number: int
    process: subprocess.Popen[bytes]
    pipe: Connection
    said: IO[bytes]  # what it wrote to stdout and stderr


def suited(cells: Sequence[Cell], processes: int | None = None) -> int:
    """How many processes to compute these cells of the tiny tier in; 1 means this one, with its threads.

    processes: as asked, of which no more are taken than can be kept busy; None: one for every core that this process
    may use, as far as free memory reaches and the work is worth their start, but 1 where the models run on a GPU,
    which is not measured. Under ``accelerate launch`` always 1: the cells are shared out already.
    """
    if processes is not None and processes < 1:
        raise BadUsage(f"processes={processes}", fix="give 1 or more, or leave it out")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return 1
    if processes is None:
        if torch.accelerator.is_available():
            return 1
        room = int(machine.available_gib() / GIB_EACH)
        processes = max(1, min(machine.cores(), room, sum(map(asked, cells)) // _START))
    return useful(cells, processes)


def compute(orders: Orders, processes: int, bar: tqdm) -> None:
    """Have all cells computed and written by ``processes`` workers; ``bar`` counts the questions.

    An error of a worker is raised here, as it was; the others are stopped, and finished cells are kept. CannotRun when
    a worker was killed, or when the sources are not those that this process has read.
    """
    shares = Shares(orders.cells)
    with _crew(bar) as crew:
        first = [place for number in range(processes) if (place := shares.take(number)) is not None]
        for number in range(len(first)):
            crew.append(_started(number))
        for worker, place in zip(crew, first, strict=True):  # while they import: a pipe holds less than all orders
            _tell(worker, orders)
            _tell(worker, place)
        done, running = 0, {worker.pipe: worker for worker in crew}
        while running:
            bar.set_description(f"{done} of {len(orders.cells)} cells, {len(crew)} processes")
            for pipe in wait(list(running)):
                worker = running[pipe]
                kind, value = _heard(worker)
                if kind == "answered":
                    bar.update(value)
                elif kind == "failed":
                    raise value
                else:
                    done += 1
                    place = shares.take(worker.number)
                    _tell(worker, place)
                    if place is None:
                        del running[pipe]


def _started(number: int) -> _Worker:
    """A new worker, in a process group of its own: ctrl-C is for its parent."""
    ours, theirs = multiprocessing.Pipe()
    said = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the crew is dismissed)
    program = _PROGRAM.format(path=sys.path, descriptor=theirs.fileno())
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            process_group=0,
        )
    except OSError as error:
        raise CannotRun(f"a process for the sweep cannot be started ({error.strerror or error})", fix=_FIX) from error
    finally:
        theirs.close()
    return _Worker(number, process, ours, said)


def _tell(worker: _Worker, message: object) -> None:
    with contextlib.suppress(ConnectionError):  # it has died: the end of its pipe says so when it is read
        worker.pipe.send(message)


def _heard(worker: _Worker) -> tuple[str, Any]:
    try:
        return worker.pipe.recv()
    except (EOFError, OSError):
        code = worker.process.wait()
    if code < 0:
        how = f"was ended from outside ({signal.Signals(-code).name}), as happens when memory runs out"
    else:
        lines = _lines(worker)
        how = f"ended with exit code {code}" + (f": {lines[-1]}" if lines else "")
    raise CannotRun(f"a process of the sweep {how}. Finished cells are kept", fix=_FIX)


def _lines(worker: _Worker) -> list[str]:
    worker.said.seek(0)
    return [line.rstrip() for line in worker.said.read().decode(errors="replace").splitlines() if line.strip()]


@contextlib.contextmanager
def _crew(bar: tqdm) -> Iterator[list[_Worker]]:
    """The workers that were started; none of them outlives the block. What they wrote (warnings) is shown once."""
    crew: list[_Worker] = []
    try:
        yield crew
    except BaseException:
        for worker in crew:
            worker.process.terminate()
        raise
    finally:
        deadline = time.monotonic() + _PATIENCE
        try:
            for worker in crew:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            for worker in crew:
                worker.process.kill()
                worker.process.wait()
                worker.pipe.close()
    for line in dict.fromkeys(line for worker in crew for line in _lines(worker)):
        bar.write(line, file=sys.stderr)


def work(descriptor: int) -> None:
    """The life of a worker: its orders, then cell after cell until there is none. It leaves when its parent does."""
    signal.signal(signal.SIGTERM, _leave)
    pipe = Connection(descriptor)

    def tell(kind: str, value: object) -> None:
        try:
            pipe.send((kind, value))
        except OSError:
            os._exit(1)  # nobody is left to answer for

    try:
        orders: Orders = pipe.recv()
        if orders.code != code_fingerprint():
            raise CannotRun("the kit's sources were edited while the sweep started", fix="run the same command again")
        torch.set_num_threads(1)
        files, lm, before = CellFiles(orders.runs, "tiny"), None, None
        while (place := pipe.recv()) is not None:
            cell = orders.cells[place]
            if before is None or cell.model != before.model:
                lm = None  # two models are never needed
                mine = [other for other in orders.cells if other.model == cell.model]
                lm = measuring.load(cell.model, mine, orders.batch_size)
                lm.on_progress = lambda questions: tell("answered", questions)
            elif (cell.benchmark, cell.frames) != (before.benchmark, before.frames):
                lm.store.clear()
            files.save(cell, *measuring.measure(lm, cell, "tiny", orders.include))
            tell("finished", place)
            before = cell
    except EOFError:
        os._exit(1)
    except SystemExit:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)  # so that who waits for this process learns why it ended
    except Exception as error:
        tell("failed", _portable(error))
    sys.stderr.flush()
    os._exit(0)  # everything is written; taking torch apart would hold up the parent for a second


def _leave(*_: object) -> NoReturn:
    """At SIGTERM: an exception, so that a file that is being written is tidied away."""
    raise SystemExit(1)


def _portable(error: Exception) -> Exception:
    """The error as it will be raised in the parent, with this process's traceback as a note."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        error = CannotRun("a process of the sweep has no memory left. Finished cells are kept", fix=_FIX)
    note = "in a process of the sweep:\n" + traceback.format_exc()
    try:
        error.add_note(note)
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.add_note(note)
        return plain
