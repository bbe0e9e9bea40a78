"""Run the cells of an experiment through lmms-eval, in one process or several, and never a finished one again.

Stopping (ctrl-C, kill, a full disk) loses at most the cell that runs in the tiny tier, and the question that runs in
the paper tier: every finished one is on disk.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from holitom import paths
from holitom.attaching.stats import token_budget
from holitom.evaluation.amounts import questions
from holitom.evaluation.cells import CONTROL_TOWER, Cell, CellFiles, check, key, load_samples, model_path, revision
from holitom.evaluation.journal import Journal
from holitom.evaluation.scoring import line
from holitom.evaluation.statistics import interval
from holitom.results import Record, code_fingerprint, provenance
from holitom.tiny import benchmarks
from holitom.video import DECODER

if TYPE_CHECKING:
    from holitom.evaluation.lmms import Answered, ReducedVideoModel

__all__ = ["Cell", "finished", "load_samples", "run_cells"]

BATCH = {"tiny": 32, "paper": 1}
TASKS = Path(benchmarks.__file__).parent / "tasks"


def run_cells(
    cells: Sequence[Cell],
    tier: str,
    *,
    runs: Path | str = Path("runs"),
    fresh: bool = False,
    progress: bool = True,
    batch_size: int | None = None,
    include: Sequence[Path] = (),
) -> list[Record]:
    """The records of ``cells``, in their order; what is not finished below ``runs`` is computed and written there.

    fresh: compute also what is finished; include: folders whose task files are taken before lmms-eval's own of the same
    name, for data that lie elsewhere. Under ``accelerate launch`` each process answers its share of every benchmark
    and the first one writes. Raises BadUsage (unknown tier or benchmark, wrong limit) before anything runs, and
    CannotRun (no weights, a full disk, a method that did not act).
    """
    for cell in cells:
        check(cell, tier)
    files = CellFiles(Path(runs), tier)
    pending: dict[str, Cell] = {}
    for cell in cells:
        if fresh or files.load(cell) is None:
            pending.setdefault(key(cell, tier), cell)
    if pending:
        size, folders = batch_size or BATCH[tier], tuple(str(folder) for folder in include)
        _compute(list(pending.values()), tier, files, progress=progress, batch_size=size, fresh=fresh, include=folders)
    records = [files.load(cell) for cell in cells]
    return [record for record in records if record is not None]


def finished(cells: Sequence[Cell], tier: str, *, runs: Path | str = Path("runs")) -> int:
    """How many of ``cells`` ``run_cells`` would read from disk."""
    files = CellFiles(Path(runs), tier)
    return sum(files.load(cell) is not None for cell in cells)


def _compute(
    cells: list[Cell],
    tier: str,
    files: CellFiles,
    *,
    progress: bool,
    batch_size: int,
    fresh: bool,
    include: tuple[str, ...],
) -> None:
    if tier == "tiny":
        _stay_offline()
        limits: dict[str, int] = {}
        for cell in cells:
            most = benchmarks.VIDEOS * benchmarks.QUESTIONS_PER_VIDEO
            limits[cell.benchmark] = max(limits.get(cell.benchmark, 1), cell.limit or most)
        for name, limit in limits.items():
            benchmarks.prepare(limit, [name], progress=progress)
    with _progress(cells, tier, progress) as bar:
        models = dict.fromkeys(cell.model for cell in cells)
        for model in models:
            mine = [cell for cell in cells if cell.model == model]
            bar.set_description(f"loading {model}")
            with _quiet():
                lm = _load(model, mine, batch_size)
            lm.on_progress = partial(_advance, bar, lm.world_size)
            for cell in mine:
                bar.set_description(cell.title)
                journal = Journal(files.journal_path(cell), lm.rank) if tier == "paper" else None
                if journal is not None and fresh and lm.rank == 0:
                    journal.clear()
                lm.accelerator.wait_for_everyone()
                lm.journal = journal
                record, samples = _run(lm, cell, tier, include)
                if lm.rank == 0:
                    files.save(cell, record, samples)
                lm.accelerator.wait_for_everyone()
                if journal is not None and lm.rank == 0:
                    journal.clear()


def _advance(bar: tqdm, processes: int, questions: int) -> None:
    bar.update(min(questions * processes, bar.total - bar.n if bar.total else questions * processes))


def _load(model: str, cells: Sequence[Cell], batch_size: int) -> ReducedVideoModel:
    from holitom.evaluation.lmms import ReducedVideoModel

    control = paths.data(*CONTROL_TOWER) if any(cell.saliency == "control" for cell in cells) else None
    lm = ReducedVideoModel(model_path(model), batch_size=batch_size, control=str(control) if control else None)
    for cell in cells:  # what any of the cells will need is computed when a video is first seen
        outer = cell.reduction.outer
        wanted = frozenset(outer.requires) if outer is not None else frozenset()
        lm.store.requires |= wanted if cell.saliency == "own" else wanted - {"saliency"}
    return lm


@cache
def _tasks(tiny: bool, include: tuple[str, ...]) -> Any:
    """lmms-eval's index of task files, read once (seconds); of equal names the first folder's counts."""
    import lmms_eval.tasks

    own = [] if tiny else [f"{Path(lmms_eval.tasks.__file__).parent}/"]
    folders = [*include, str(TASKS), *own]
    return lmms_eval.tasks.TaskManager(include_path=folders, include_defaults=False, model_name="holitom")


def _run(
    lm: ReducedVideoModel, cell: Cell, tier: str, include: tuple[str, ...] = ()
) -> tuple[Record, list[dict[str, Any]]]:
    """One benchmark through lmms-eval's evaluator, scored per question; only the first process has the samples."""
    with _quiet():
        from accelerate.utils import gather_object
        from lmms_eval import evaluator

        lm.reduction, lm.frames, lm.saliency, lm.answered = cell.reduction, cell.frames, cell.saliency, {}
        lm.use_pixels(cell.pixels)
        start = time.perf_counter()
        tiny = cell.benchmark in benchmarks.BENCHMARKS
        results = evaluator.simple_evaluate(
            model=lm,
            tasks=[cell.benchmark],
            task_manager=_tasks(tiny, include),
            batch_size=lm.batch_size,
            limit=cell.limit,
            bootstrap_iters=0,
            log_samples=True,
            verbosity="WARNING",
            process_docs_parallel=1,
        )
        seconds = time.perf_counter() - start
        answered = dict(gather_object(list(lm.answered.items())))
    samples = [
        line(sample, task, answered[task, sample["doc_id"]])
        for task, logged in ((results or {}).get("samples") or {}).items()
        for sample in sorted(logged, key=lambda sample: sample["doc_id"])
    ]
    return _record(lm, cell, tier, samples, answered, seconds), samples


def _record(
    lm: ReducedVideoModel,
    cell: Cell,
    tier: str,
    samples: list[dict[str, Any]],
    answered: dict[tuple[str, int], Answered],
    seconds: float,
) -> Record:
    judged = [(s["correct"], f"{s['task']}/{s['video']}") for s in samples] or [(0.0, "none")]
    score = interval([c for c, _ in judged], [v for _, v in judged])
    told = [answer.sample for answer in answered.values()]
    budget = token_budget(told)
    kinds = sorted({s["type"] for s in samples})
    stages = (cell.reduction.outer, *cell.reduction.inner, cell.reduction.decode)
    tiny = cell.benchmark in benchmarks.BENCHMARKS
    extra = {
        "cell": key(cell, tier),
        "videos": score.groups,
        "limit": cell.limit,
        "saliency": cell.saliency,
        "by_type": {kind: 100 * fmean(s["correct"] for s in samples if s["type"] == kind) for kind in kinds},
        "questions_by_type": {kind: sum(s["type"] == kind for s in samples) for kind in kinds},
        "flops_paper": fmean(a.flops_paper for a in told),
        "flops_exact": fmean(a.flops_exact for a in told),
        "frames_used": budget.frames,
        "prompt_tokens": fmean(a.prompt_after for a in told),
        "pixels": cell.pixels,
        "decoder_notes": sorted({note for answer in answered.values() for note in answer.notes}),
        "recipe": benchmarks.recipe_hash() if tiny else None,
        "batch_size": lm.batch_size,
        "seconds": round(seconds, 2),
    }
    return Record(
        value=score.value,
        low=score.low,
        high=score.high,
        n=len(samples),
        unit="points",
        metric="accuracy",
        experiment=cell.experiment,
        row=cell.row,
        method=cell.reduction.describe(),
        requested_tokens=budget.asked_tokens,
        realised_tokens=budget.kept_tokens,
        budget=budget,
        tokens_per_layer=tuple(fmean(layer) for layer in zip(*(a.per_layer for a in told), strict=True)),
        model=cell.model,
        model_revision=revision(cell.model),
        benchmark=cell.benchmark,
        frames=cell.frames,
        scorer=f"lmms-eval {metadata.version('lmms-eval')}, {'exact match of one word' if tiny else cell.benchmark}",
        decoder=DECODER if cell.pixels == "file" else "none (rendered)",
        dtype=str(lm.model.dtype).removeprefix("torch."),
        attention=str(lm.model.config._attn_implementation),
        seed=next((s.seed for s in stages if isinstance(getattr(s, "seed", None), int)), None),
        tier=tier,
        source="measured",
        provenance=provenance(),
        code=code_fingerprint(),
        extra=extra,
    )


def _stay_offline() -> None:
    """The tiny tier needs no hub: say so before the Hugging Face libraries are imported, and keep their caches here."""
    home = str(paths.runs("cache", "huggingface"))
    for name, value in (
        ("HF_HUB_OFFLINE", "1"),
        ("HF_DATASETS_OFFLINE", "1"),
        ("TRANSFORMERS_OFFLINE", "1"),
        ("HF_HOME", home),
    ):
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lmms-eval's information messages and its own progress bars are left out; its warnings are not."""
    from loguru import logger

    terminal = sys.stderr
    logger.remove()
    logger.add(lambda message: terminal.write(str(message)), level="WARNING")
    with contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _progress(cells: Sequence[Cell], tier: str, progress: bool) -> Iterator[tqdm]:
    most = benchmarks.VIDEOS * benchmarks.QUESTIONS_PER_VIDEO
    if tier == "tiny":
        total = sum(min(cell.limit or most, most) for cell in cells)
    else:
        total = sum(questions(cell.benchmark, cell.limit) for cell in cells) or None
    first = int(os.environ.get("RANK", "0")) == 0
    with tqdm(total=total, unit="question", disable=not (progress and first), file=sys.stderr) as bar:
        yield bar
