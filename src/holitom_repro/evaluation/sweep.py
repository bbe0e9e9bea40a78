"""Measure cells through lmms-eval, and never a finished one again.

Cells of one model, benchmark and number of frames form a group: its videos are decoded and encoded once for all of its
settings. The tiny tier's groups are shared out over processes of one thread each, its models being too small for
threads, and libraries that change global state stay out of a notebook's kernel. Fewer than ``ALONE`` questions are
asked in the kernel itself, and its global state is put back. Stopping (ctrl-C, kill, a full disk) loses at most the
cells that run in the tiny tier, and the question that runs in the paper tier."""

import io
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

import holitom
from holitom.errors import CannotRun
from holitom_repro import machine, paths
from holitom_repro.code import MEASURING, code_hash
from holitom_repro.evaluation.cells import Benchmark, Cell, device_kind, model_name, model_path, revision
from holitom_repro.evaluation.protocols import BROKEN
from holitom_repro.machine import provenance
from holitom_repro.records import UNREAD, Record, Sample, Store

GIB_EACH = 1.5
"""Free memory wanted for a process of the tiny tier: 0.9 GB at its peak with 32 frames, 1.2 GB with 64."""
STARTING = 400
"""What starting one more process costs, in questions of the tiny tier."""
ALONE = 300
"""Fewer questions are asked in this process: the first other one would take longer to start."""
READ = time.time()
"""When this process had read the sources."""
SKIP = "HOLITOM_SKIP_BROKEN"
"""The variable by which --skip-broken reaches every process."""
ENCODING = 7
"""What decoding and encoding a group's videos costs, in median cells of the tiny tier."""
OFFLINE = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
_FIX = "free some memory and run the same command again: it continues"


@dataclass(frozen=True)
class Options:
    """skip_broken: count questions about videos that cannot be read as the protocol does, instead of stopping; tasks:
    folders of task files that are taken before lmms-eval's own; device_map: "auto" spreads a model over all GPUs; runs:
    where finished cells are kept."""

    skip_broken: bool = field(default_factory=lambda: SKIP in os.environ)
    tasks: tuple[str, ...] = ()
    device_map: str | None = None
    runs: Path | None = None


def measure(cells: Sequence[Cell], progress: Callable[[int], object], options: Options) -> None:
    """Measure and store these cells in this process, or in each of those that ``accelerate launch`` started; progress
    is told how many questions were answered."""
    for group in groups(cells):
        _measure_group(group, progress, options)


def groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that see the same videos through the same model, in the order of their first."""
    found: dict[tuple[Any, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        found[cell.model, cell.benchmark, cell.frames, cell.limit].append(cell)
    return list(found.values())


def measure_tiny(cells: Sequence[Cell], show: bool = True) -> None:
    """Measure and store cells of the tiny tier in processes of one thread each; a few questions in this one. Raises
    what a process raised; CannotRun when one of them was killed. None of them goes on after an error or ctrl-C;
    finished cells are kept."""
    from joblib.externals.loky import get_reusable_executor, wait
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    for group in groups(cells):
        if (prepare := group[0].kind.prepare) is not None:
            prepare(group[0].limit, show)
    total = sum(cell.asked for cell in cells)
    if total < ALONE and not _edited():
        with tqdm(total=total, unit="question", disable=not show) as bar, _as_a_process():
            measure(cells, bar.update, Options())
        return
    count = min(machine.cores(), int(machine.available_gib() / GIB_EACH), max(_own.get("count", 1), total // STARTING))
    _own["count"] = count = max(1, count)
    environment = OFFLINE | paths.caches() | {"TQDM_DISABLE": "1", "PYTHONSAFEPATH": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {name: value for name, value in os.environ.items() if name == SKIP}  # or older processes are taken
    executor = get_reusable_executor(count, timeout=180, env=environment, initializer=_start, initargs=(os.getpid(),))
    code, left = code_hash((), MEASURING), set()
    try:
        with tempfile.TemporaryDirectory() as told, tqdm(total=total, unit="question", disable=not show) as bar:
            counts = [Path(told) / str(number) for number in range(len(cells))]
            for group, path in zip(shared(groups(cells), count), counts, strict=False):
                left.add(executor.submit(_work, group, group[0].kind, str(paths.runs()), str(path), code))
            while left:
                done, left = wait(left, timeout=0.3, return_when="FIRST_COMPLETED")
                answered = sum(path.stat().st_size for path in counts if path.exists())
                if answered > bar.n:
                    bar.update(answered - bar.n)
                for one in done:
                    one.result()
    except TerminatedWorkerError as error:
        raise CannotRun("a process of the sweep was ended from outside, as happens without memory", fix=_FIX) from error
    finally:
        if not all(one.done() for one in left):
            executor.shutdown(wait=True, kill_workers=True)


def _edited() -> bool:
    """Whether this process may have read other sources than are there now."""
    folders = Path(holitom.__file__).parent, Path(__file__).parents[1]
    return any(path.stat().st_mtime >= READ for folder in folders for path in folder.rglob("*.py"))


@contextmanager
def _as_a_process() -> Iterator[None]:
    """One thread; what lmms-eval changes, the environment and which warnings are shown, is as before afterwards."""
    import torch

    environment, threads = dict(os.environ), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        torch.set_num_threads(threads)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)


def shared(parts: list[list[Cell]], processes: int) -> list[list[Cell]]:
    """The groups for so many processes, largest first; one that alone would take longer than its share is cut in two,
    where that is worth encoding its videos twice."""

    def cost(part: Sequence[Cell]) -> float:
        return (len(part) + ENCODING) * part[0].asked * part[0].frames

    while True:
        parts = sorted(parts, key=cost, reverse=True)
        largest, half = parts[0], len(parts[0]) // 2
        if cost(largest) * processes <= sum(map(cost, parts)) or half <= ENCODING:
            return parts
        parts = [largest[:half], largest[half:], *parts[1:]]


def _start(parent: int) -> None:
    """A process of the sweep begins: ctrl-C is for its parent, and it ends when that is gone."""
    import torch

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()
    torch.set_num_threads(1)


_own: dict[str, Any] = {}
"""What a process of the sweep keeps between groups, the model that it has loaded; of its parent: how many there are."""


def _work(cells: list[Cell], kind: Benchmark, runs: str, told: str, code: str) -> None:
    if "code" not in _own:
        _own["code"] = code_hash((), MEASURING)
    if _own["code"] != code:
        raise CannotRun(
            "the sources were edited after this python had read them", fix="restart it (in a notebook: its kernel)"
        )

    def progress(questions: int) -> None:
        with open(told, "ab") as file:
            file.write(b"." * questions)

    try:
        _measure_group(cells, progress, Options(runs=Path(runs)), kind)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise CannotRun("a process of the sweep has no memory left. Finished cells are kept", fix=_FIX) from error
        raise


def _measure_group(
    cells: list[Cell], progress: Callable[[int], object], options: Options, kind: Benchmark | None = None
) -> None:
    """Measure the settings of one group with one pass over its videos."""
    from holitom_repro.evaluation.model import AnswerSheet

    first = cells[0]
    kind, store, lm = kind or first.kind, Store(first.tier, options.runs), _loaded(first, options)
    lm.frames, lm.on_progress, lm.skip_broken = first.frames, progress, options.skip_broken
    outers = [cell.reduction.outer for cell in cells]
    lm.store.clear()
    lm.store.requires = frozenset().union(*(outer.requires for outer in outers if outer is not None))
    on_disk = first.tier != "tiny"  # answers, question by question: a tiny cell takes seconds
    sheets = [AnswerSheet(cell.reduction, store.folder / f"{cell.id}.part" if on_disk else None) for cell in cells]
    for sheet in sheets:
        sheet.read()
        progress(len(sheet.answers))
    for number, (cell, sheet) in enumerate(zip(cells, sheets, strict=True)):
        lm.sheets = sheets[number:]
        record, samples = _evaluated(lm, cell, sheet, task_manager(kind.folder, options.tasks, first.protocol.variant))
        if lm.rank == 0:
            store.save(cell.id, record, samples)
        lm.accelerator.wait_for_everyone()
        if sheet.folder is not None and lm.rank == 0:
            shutil.rmtree(sheet.folder, ignore_errors=True)
        sheet.answers.clear()


def _loaded(cell: Cell, options: Options) -> Any:
    """The model of a cell; the one before it is forgotten first."""
    from holitom_repro.evaluation.model import ReducedVideoModel

    wanted = (revision(cell.model), cell.protocol, options.device_map)
    if _own.get("model") != wanted:
        _own.pop("lm", None)
        device = "cpu" if cell.tier == "tiny" else None
        made = ReducedVideoModel(
            model_path(cell.model), protocol=cell.protocol, device=device, device_map=options.device_map
        )
        _own.update(model=wanted, lm=made)
    return _own["lm"]


@cache
def task_manager(folder: str, before: tuple[str, ...], variant: str) -> Any:
    """lmms-eval's index of the task files in these folders; of equal names the first one counts."""
    import lmms_eval.tasks

    return lmms_eval.tasks.TaskManager(
        include_path=[f"{one}/" for one in (*before, folder)], include_defaults=False, model_name=variant
    )


def _evaluated(lm: Any, cell: Cell, sheet: Any, tasks: Any) -> tuple[Record, list[Sample]]:
    """One setting through lmms-eval's evaluator, scored per question; only the first process has the samples."""
    from accelerate.utils import gather_object
    from lmms_eval import evaluator

    from holitom_repro.evaluation.scoring import compared, line

    start = time.perf_counter()
    with quiet() if cell.tier == "tiny" else nullcontext():  # elsewhere downloads are worth watching
        results = evaluator.simple_evaluate(
            model=lm,
            tasks=[cell.benchmark],
            task_manager=tasks,
            batch_size=lm.batch_size,
            limit=cell.limit,
            bootstrap_iters=0,
            log_samples=True,
            process_docs_parallel=1,
        )
    answers = dict(gather_object(list(sheet.answers.items())))
    logged = (results or {}).get("samples") or {}
    samples = []
    for task, lines in logged.items():
        for sample in sorted(lines, key=lambda sample: sample["doc_id"]):
            answer = answers[task, sample["doc_id"]]
            samples.append(line(sample, task, answer.video, answer.stats.kept if answer.stats else None))
    own, notes = compared(results["results"], samples) if samples else (0.0, ())
    stats = [answer.stats for answer in answers.values() if answer.stats]
    broken = sum(answer.stats is None for answer in answers.values())
    if broken:
        notes += (f"{broken} {UNREAD} are {BROKEN[cell.protocol.broken]}",)
    record = Record(
        key=cell.key,
        reduction=cell.reduction.describe(),
        model=model_name(cell.model),
        revision=revision(cell.model),
        benchmark=cell.benchmark,
        frames=cell.frames,
        limit=cell.limit,
        tier=cell.tier,
        protocol=str(cell.protocol),
        dtype=str(lm.model.dtype).removeprefix("torch."),
        device=device_kind(cell.tier),
        attention=str(lm.model.config._attn_implementation),
        code=cell.code,
        value=100 * fmean([sample["correct"] for sample in samples] or [0]),
        lmms_eval=own,
        n=len(samples),
        videos=len({(sample["task"], sample["video"]) for sample in samples}),
        tokens=spent(stats),
        tokens_per_layer=tuple(fmean(layer) for layer in zip(*(one.per_layer for one in stats), strict=True)),
        flops_paper=fmean(one.flops_paper for one in stats),
        flops_exact=fmean(one.flops_exact for one in stats),
        seconds=round(time.perf_counter() - start, 2),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        provenance=provenance(),
        notes=(*notes, *sorted({note for answer in answers.values() for note in answer.notes})),
    )
    return record, samples


def spent(stats: Sequence[Any]) -> dict[str, float]:
    """Tokens of the videos of one prompt, as means over the prompts of a run: asked by the outer stage (1 and all
    tokens without one), of the full video, kept before the language model and in a layer of it (mean over layers), and
    kept minus asked per frame, with the prompt where that is farthest from 0. CannotRun without a prompt."""
    if not stats:
        raise CannotRun("no video could be read, so there is nothing to record", fix="check the benchmark's videos")
    names = {"asked_share": "budget", "asked_tokens": "requested", "full_tokens": "full", "kept_tokens": "kept"}
    names |= {"kept_newlines": "newlines"} | {name: name for name in ("full_newlines", "frames", "off_per_frame")}
    layers = {"layer_tokens": "per_layer", "layer_newlines": "newlines_per_layer"}
    return {
        **{name: fmean(getattr(one, own) for one in stats) for name, own in names.items()},
        **{name: fmean(fmean(getattr(one, own)) for one in stats) for name, own in layers.items()},
        "farthest_off": max((one.off_per_frame for one in stats), key=abs),
    }


@contextmanager
def quiet() -> Iterator[None]:
    """lmms-eval says nothing inside the block, and what else is said comes without progress bars."""
    from loguru import logger

    logger.disable("lmms_eval")
    try:
        with redirect_stderr(_WithoutBars(sys.stderr)):
            yield
    finally:
        logger.enable("lmms_eval")


class _WithoutBars(io.TextIOBase):
    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        if "\r" not in text and text.strip():
            self.stream.write(text)
        return len(text)
