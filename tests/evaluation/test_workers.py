"""Workers of a sweep: the results of one process, its errors and its manners, and nothing left behind."""

from __future__ import annotations

import copy
import dataclasses
import fcntl
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from holitom_repro import machine
from holitom.errors import BadUsage, BadVideo, CannotRun
from holitom_repro.evaluation import workers
from holitom_repro.evaluation.cells import Cell, CellFiles
from holitom_repro.evaluation.sweep import finished, load_samples, run_cells
from holitom.methods import HoliTom, HoliTomMerge, RandomDrop
from holitom_repro.results import Record
from holitom_repro.tiny import benchmarks
from holitom.types import Reduction

SETTINGS = (
    Reduction("Vanilla"),
    Reduction("HoliTom", HoliTom(tau=0.8), 0.25, (HoliTomMerge(layer=4, ratio=0.5),)),
    Reduction("RandomDrop", RandomDrop(seed=3), 0.25),
)


def cell(model: Path | str, reduction: Reduction = SETTINGS[0], benchmark: str = "tiny_ego") -> Cell:
    return Cell("table1", reduction.name, str(model), reduction, benchmark, 8, 6)


@pytest.fixture
def there(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Workers look for the videos where this test's parent writes them; returns a file that each of them locks."""
    lock = cache / "workers.lock"
    before, own = workers._PROGRAM.split("; from holitom")
    monkeypatch.setattr(workers, "_PROGRAM", f"{before}; {start(cache, lock)}; from holitom{own}")
    return lock


def start(cache: Path, lock: Path) -> str:
    code = f"""
        import fcntl
        from pathlib import Path
        from holitom_repro.tiny import benchmarks
        held = open({str(lock)!r}, "w")
        fcntl.flock(held, fcntl.LOCK_SH)
        own = benchmarks.folder
        benchmarks.folder = lambda name, root=None: own(name, root or Path({str(cache)!r}))
        print("a warning", file=sys.stderr)
    """
    return f"exec({textwrap.dedent(code)!r})"


def nobody_holds(lock: Path, seconds: float | int) -> bool:
    """No worker is alive, or within so many seconds none is any more."""
    deadline = time.monotonic() + seconds
    with lock.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.05)


def compared(record: Record) -> dict[str, object]:
    """Without what is different in every run."""
    values = dataclasses.asdict(record)
    del values["extra"]["seconds"], values["created"], values["provenance"]["git"]
    return values


@pytest.mark.slow
def test_two_processes_measure_what_one_does_bit_for_bit(
    model_folder: Path, tmp_path: Path, there: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cells = [cell(model_folder, one, name) for one in SETTINGS for name in ("tiny_ego", "tiny_long")]
    alone = run_cells(cells, "tiny", runs=tmp_path / "one", progress=False, processes=1)
    assert torch.get_num_threads() == 1
    capfd.readouterr()
    together = run_cells(cells, "tiny", runs=tmp_path / "two", processes=2)
    out, err = capfd.readouterr()
    for one, other in zip(alone, together, strict=True):
        assert compared(other) == compared(one)
    assert all(record.provenance["threads"] == 1 and record.extra["seconds"] > 0 for record in together)
    for one in cells:
        samples = [CellFiles(tmp_path / name, "tiny").samples_path(one).read_bytes() for name in ("one", "two")]
        assert samples[0] == samples[1] and len(samples[0].splitlines()) == 6
    assert len({sample["answer"] for one in cells for sample in load_samples(one, "tiny", runs=tmp_path / "two")}) > 1
    assert nobody_holds(there, 0)
    assert out == "" and err.count("a warning") == 1  # what both have said is shown once
    bars = {line.split(":")[0] for line in err.replace("\r", "\n").splitlines() if "|" in line}
    assert bars <= {"  0%|          | 0/36 [00", *(f"{done} of 6 cells, 2 processes" for done in range(7))}
    assert "36/36" in err and "5 of 6 cells, 2 processes" in bars


@pytest.mark.slow
def test_an_error_of_a_worker_is_raised_as_it_was_and_the_others_stop(
    model_folder: Path, tmp_path: Path, there: Path
) -> None:
    good, bad = cell(model_folder), cell(model_folder, benchmark="tiny_actions")
    benchmarks.prepare(6, ["tiny_actions"], progress=False)
    video = benchmarks.video_path("tiny_actions", "001.mp4")
    whole = video.read_bytes()
    video.write_bytes(b"no video")
    try:
        said = []
        for processes in (1, 2):
            with pytest.raises(BadVideo, match=r"001\.mp4 is not a video") as raised:
                run_cells([good, bad], "tiny", runs=tmp_path, progress=False, processes=processes, fresh=True)
            said.append((str(raised.value), raised.value.exit_code))
            assert nobody_holds(there, 0)
    finally:
        video.write_bytes(whole)
    assert said[0] == said[1]
    assert "in a process of the sweep:\nTraceback" in raised.value.__notes__[0]
    assert not [path for path in (tmp_path / "tiny" / "cells").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("last_deed", "what"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"was ended from outside \(SIGKILL\)"),
        (
            "import os, signal; from holitom_repro.evaluation import workers;"
            "workers.code_fingerprint = lambda: os.kill(os.getpid(), signal.SIGTERM); workers.work({descriptor})",
            r"was ended from outside \(SIGTERM\)",
        ),
        ("import no_such_module", "exit code 1: ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_a_worker_that_dies_is_told_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, last_deed: str, what: str
) -> None:
    monkeypatch.setattr(workers, "_PROGRAM", last_deed)
    orders = workers.Orders((cell("model"), cell("model", benchmark="tiny_long")), tmp_path, 32, ())
    with pytest.raises(CannotRun, match=what) as raised, tqdm(disable=True) as bar:
        workers.compute(orders, 2, bar)
    assert "same command again" in raised.value.fix and "--processes 1" in raised.value.fix


def test_workers_measure_with_the_sources_that_their_parent_has_read(tmp_path: Path) -> None:
    orders = workers.Orders((cell("model"),), tmp_path, 32, (), code="another")
    with pytest.raises(CannotRun, match="sources were edited"), tqdm(disable=True) as bar:
        workers.compute(orders, 1, bar)


SCRIPT = """
from pathlib import Path
from holitom_repro.evaluation import workers
from holitom_repro.evaluation.sweep import Cell, run_cells
from holitom.methods import HoliTom
from holitom_repro.tiny import benchmarks
from holitom.types import Reduction
before, own = workers._PROGRAM.split("; from holitom")
workers._PROGRAM = before + "; " + {start!r} + "; from holitom" + own
own = benchmarks.folder
benchmarks.folder = lambda name, root=None: own(name, root or Path({cache!r}))
settings = [Reduction("HoliTom", HoliTom(tau=0.8), b / 100) for b in range(10, 90)]
cells = [
    Cell("table1", "row", {model!r}, setting, name, 8, 6) for name in ("tiny_ego", "tiny_long") for setting in settings
]
try:
    run_cells(cells, "tiny", runs=Path({runs!r}), progress=False, processes=2)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_running_after_a_sweep_was_stopped(
    model_folder: Path, tmp_path: Path, cache: Path, stop: signal.Signals
) -> None:
    """Also: a plain script without a guard around its main part may start workers."""
    done, lock, script = tmp_path / "tiny" / "cells", tmp_path / "lock", tmp_path / "script.py"
    values = {"start": start(cache, lock), "cache": str(cache), "model": str(model_folder), "runs": str(tmp_path)}
    script.write_text(SCRIPT.format(**values))
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    deadline = time.monotonic() + 120
    while len(list(done.glob("[!.]*.json"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, stop)  # as a terminal does at ctrl-C: the whole group
    said, complained = process.communicate(timeout=30)
    assert nobody_holds(lock, 0 if stop == signal.SIGINT else 10)
    assert "Traceback" not in complained
    assert said == ("interrupted\n" if stop == signal.SIGINT else "")
    records = sorted(done.glob("[!.]*.json"))
    assert 2 <= len(records) < 160
    assert len(list(done.glob("[!.]*.samples.jsonl"))) - len(records) in (0, 1, 2)
    if stop == signal.SIGINT:
        assert not list(done.glob(".*"))


def test_how_many_processes_suit(monkeypatch: pytest.MonkeyPatch, model_folder: Path) -> None:
    many = [cell(model_folder, one, name) for name in benchmarks.BENCHMARKS for one in SETTINGS * 25]  # 1800 questions
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(machine, "cores", lambda: 16)
    monkeypatch.setattr(machine, "available_gib", lambda: 64.0)
    assert workers.suited(many) == 6  # each answers 300 questions at least
    assert workers.suited([dataclasses.replace(one, limit=None) for one in many]) == 16
    assert workers.suited(many[:4]) == 1 and workers.suited(many[:4], 8) == 2
    assert workers.suited(many, 10**9) <= len(many)
    monkeypatch.setattr(machine, "cores", lambda: 2)
    assert workers.suited(many) == 2 and workers.suited(many, 5) == 5
    monkeypatch.setattr(machine, "available_gib", lambda: 2.0)
    assert workers.suited(many) == 1
    monkeypatch.setattr(machine, "available_gib", lambda: 64.0)
    with monkeypatch.context() as patch:
        patch.setattr(torch.accelerator, "is_available", lambda: True)
        assert workers.suited(many) == 1 and workers.suited(many, 2) == 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert workers.suited(many) == workers.suited(many, 4) == 1


def test_a_number_of_processes_that_makes_no_sense_is_refused(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match="processes=0"):
        run_cells([cell(model_folder)], "tiny", runs=tmp_path, processes=0)
    with pytest.raises(BadUsage, match="tiny tier"):
        run_cells([cell(model_folder, benchmark="videomme")], "paper", runs=tmp_path, processes=2)
    assert finished([cell(model_folder)], "tiny", runs=tmp_path) == 0


def test_free_memory_is_known() -> None:
    assert 0 < machine.available_gib() <= machine.memory_gib()


@pytest.mark.parametrize("send", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_keeps_its_words_when_it_is_sent(send: object) -> None:
    error = BadVideo("a.mp4 is not a video", fix="give one")
    error.add_note("where it was")
    got = send(error)
    assert type(got) is BadVideo and (got.what, got.fix, str(got)) == (error.what, error.fix, str(error))
    assert got.__notes__ == ["where it was"]


def test_what_cannot_be_sent_is_told_in_words() -> None:
    class Local(Exception):
        pass

    for error, kind, words in (
        (Local("odd"), RuntimeError, "Local: odd"),
        (OSError(28, "No space left on device", "x.json"), OSError, "x.json"),
        (MemoryError(), CannotRun, "no memory left"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 GB"), CannotRun, "no memory left"),
    ):
        try:
            raise error
        except Exception as caught:
            sent = pickle.loads(pickle.dumps(workers._portable(caught)))
        assert type(sent) is kind and words in str(sent) and type(error).__name__ in sent.__notes__[0]
