"""One cell, measured: the model made ready, the benchmark put to it through lmms-eval, and the record of it."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from holitom_repro import paths
from holitom.attaching.stats import token_budget
from holitom_repro.evaluation.cells import CONTROL_TOWER, Cell, key, model_path, revision
from holitom_repro.evaluation.scoring import line
from holitom_repro.evaluation.statistics import interval
from holitom_repro.results import Record, code_fingerprint, provenance
from holitom_repro.tiny import benchmarks
from holitom.video import DECODER

if TYPE_CHECKING:
    from holitom_repro.evaluation.lmms import Answered, ReducedVideoModel

TASKS = Path(benchmarks.__file__).parent / "tasks"


def load(model: str, cells: Sequence[Cell], batch_size: int) -> ReducedVideoModel:
    """A model made ready for ``cells``, which are all that will be asked of it. Raises CannotRun (no weights)."""
    control = paths.data(*CONTROL_TOWER) if any(cell.saliency == "control" for cell in cells) else None
    with quiet():
        from holitom_repro.evaluation.lmms import ReducedVideoModel

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


def measure(
    lm: ReducedVideoModel, cell: Cell, tier: str, include: tuple[str, ...] = ()
) -> tuple[Record, list[dict[str, Any]]]:
    """One benchmark through lmms-eval's evaluator, scored per question; only the first process has the samples."""
    with quiet():
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


def stay_offline() -> None:
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
def quiet() -> Iterator[None]:
    """lmms-eval's information messages and its own progress bars are left out; its warnings are not."""
    from loguru import logger

    terminal = sys.stderr
    logger.remove()
    logger.add(lambda message: terminal.write(str(message)), level="WARNING")
    with contextlib.redirect_stderr(io.StringIO()):
        yield
