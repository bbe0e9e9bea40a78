"""Measure cells through lmms-eval, and never a finished one again.

Cells of one model, benchmark and number of frames form a group: its videos are decoded and encoded once for all of its
settings. Nothing is measured in a notebook's kernel, because libraries that change global state stay out of it. The
tiny tier's groups are shared out over processes of one thread each, its models being too small for threads; the paper
tier starts its own (``paper_tier``). Stopping (ctrl-C, kill, a full disk) loses at most the cells that run in the tiny
tier, and the few questions that run in the paper tier."""

import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from holitom.errors import CannotRun
from holitom_repro import machine, paths
from holitom_repro.code import present_code
from holitom_repro.evaluation.cells import Benchmark, Cell, device_kind, model_name, model_path, register, revision
from holitom_repro.evaluation.protocols import BROKEN
from holitom_repro.machine import provenance
from holitom_repro.records import UNREAD, Record, Sample, Store

GIB_EACH = 1.5
"""Free memory wanted for a process of the tiny tier: 0.9 GB at its peak with 32 frames, 1.2 GB with 64."""
STARTING = 400
"""What starting one more process costs, in questions of the tiny tier."""
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
    """Measure and store cells of the tiny tier in processes of one thread each. Raises what a process raised; CannotRun
    when one of them was killed. None of them goes on after an error or ctrl-C; finished cells are kept. For three
    minutes they wait for more cells, unless the sources are edited meanwhile."""
    from joblib.externals.loky import get_reusable_executor, wait
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    for group in groups(cells):
        if (prepare := group[0].kind.prepare) is not None:
            prepare(group[0].limit, show)
    total = sum(cell.asked for cell in cells)
    count = max(1, min(machine.cores(), int(machine.available_gib() / GIB_EACH), total // STARTING))
    environment = OFFLINE | paths.caches() | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"PYTHONSAFEPATH": "1", "TQDM_DISABLE": "1", "HOLITOM_CODE": present_code()}  # edited: others
    executor = get_reusable_executor(count, timeout=180, env=environment, initializer=_start, initargs=(os.getpid(),))
    options, left = Options(runs=paths.runs()), set()
    try:
        with tempfile.TemporaryDirectory() as told, tqdm(total=total, unit="question", disable=not show) as bar:
            for group in shared(groups(cells), count):
                left.add(executor.submit(_work, group, group[0].kind, options, told))
            while left:
                done, left = wait(left, timeout=0.3, return_when="FIRST_COMPLETED")
                bar.update(answered(told) - bar.n)
                for one in done:
                    one.result()
    except TerminatedWorkerError as error:
        raise CannotRun("a process of the sweep was ended from outside, as happens without memory", fix=_FIX) from error
    finally:
        if left:
            executor.shutdown(wait=True, kill_workers=True)


def tell(folder: str, questions: int) -> None:
    """Tell another process, which looks into this folder, that so many more questions are answered."""
    with open(Path(folder) / f"{os.getpid()}.count", "ab") as file:
        file.write(b"." * questions)


def answered(folder: str) -> int:
    """How many questions all processes have told of."""
    return sum(one.stat().st_size for one in Path(folder).glob("*.count"))


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
    """A process of the sweep begins: ctrl-C is for its parent, it ends when that is gone, and what lmms-eval logs is
    not shown (errors are raised in the parent)."""
    import torch

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()
    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the process ends)


def _work(cells: list[Cell], kind: Benchmark, options: Options, told: str) -> None:
    register(kind)
    try:
        measure(cells, partial(tell, told), options)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise CannotRun("a process of the sweep has no memory left. Finished cells are kept", fix=_FIX) from error
        raise


def _measure_group(cells: Sequence[Cell], progress: Callable[[int], object], options: Options) -> None:
    """Measure the settings of one group with one pass over its videos. In the tiny tier they are all kept in memory and
    a cell takes seconds; elsewhere a few videos are, and all settings are asked about them, with answers on disk."""
    from holitom_repro.evaluation.model import AnswerSheet

    first, on_disk = cells[0], cells[0].tier != "tiny"
    store, lm = Store(first.tier, options.runs), _loaded(first, options)
    lm.frames, lm.on_progress, lm.skip_broken = first.frames, progress, options.skip_broken
    outers = [cell.reduction.outer for cell in cells]
    lm.store.clear()
    lm.store.requires = frozenset().union(*(outer.requires for outer in outers if outer is not None))
    sheets = [AnswerSheet(cell.reduction, store.folder / f"{cell.id}.part" if on_disk else None) for cell in cells]
    progress(sum(len(sheet.answers) for sheet in sheets))
    for cell in cells:
        lm.sheets = sheets if on_disk else sheets[:1]
        record, samples = _evaluated(lm, cell, options)
        if lm.rank == 0:
            store.save(cell.id, record, samples)
        lm.accelerator.wait_for_everyone()
        if (folder := sheets.pop(0).folder) is not None and lm.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


_own: dict[str, Any] = {}
"""The model that this process has loaded."""


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


def _evaluated(lm: Any, cell: Cell, options: Options) -> tuple[Record, list[Sample]]:
    """One setting through lmms-eval's evaluator, scored per question; only the first process has the samples."""
    from accelerate.utils import gather_object
    from lmms_eval import evaluator

    from holitom_repro.evaluation.scoring import compared, line

    start = time.perf_counter()
    results = evaluator.simple_evaluate(
        model=lm,
        tasks=[cell.benchmark],
        task_manager=task_manager(cell.kind.folder, options.tasks, cell.protocol.variant),
        batch_size=lm.batch_size,
        limit=cell.limit,
        bootstrap_iters=0,
        log_samples=True,
        process_docs_parallel=1,
    )
    answers = dict(gather_object(list(lm.sheets[0].answers.items())))
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
    return {
        **{name: fmean(getattr(one, own) for one in stats) for name, own in names.items()},
        "layer_tokens": fmean(fmean(one.per_layer) for one in stats),
        "layer_newlines": fmean(fmean(one.newlines_per_layer) for one in stats),
        "farthest_off": max((one.off_per_frame for one in stats), key=abs),
    }
