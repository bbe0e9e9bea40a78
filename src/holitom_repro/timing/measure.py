"""One row timed: warm-up, peak memory, repeats. Running out of memory, or being refused, is a result.

All rows of a tier, into a file: ``python -m holitom_repro.timing.measure speed FILE``.
"""

import gc
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch
from tqdm import tqdm

from holitom import Reduction
from holitom.errors import KitError
from holitom_repro.code import present_code
from holitom_repro.machine import provenance
from holitom_repro.timing.rows import STAGES, TimedRow, append, read
from holitom_repro.timing.settings import Task, plan
from holitom_repro.timing.shapes import CONTENT, Model, make_inputs
from holitom_repro.timing.stages import clock_of, run_pass


def measure(
    model: Model,
    reduction: Reduction,
    frames: int,
    batch: int = 1,
    *,
    at: str = "",
    repeats: int = 20,
    warmup: int = 3,
    new_tokens: int = 100,
    decode_repeats: int = 2,
) -> TimedRow:
    """The row of one setting on a loaded model; without stages it is the full model. at: its budget in words.

    Behind the first ``decode_repeats`` of ``repeats`` prefills new_tokens are generated. Raises CannotRun when a method
    leaves the video as it was: its times would be those of something else.
    """
    cuda, done, outcome, reason, above = model.device == "cuda", [], "measured", "", None
    cells = model.grid[0] * model.grid[1]
    try:
        inputs = make_inputs(model, frames, batch)
        for _ in range(warmup):
            run_pass(model, reduction, inputs)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            run_pass(model, reduction, inputs)
            above = torch.cuda.max_memory_allocated() - held
        for repeat in range(repeats):
            done.append(run_pass(model, reduction, inputs, new_tokens if repeat < decode_repeats else 0))
    except KitError as error:
        outcome, reason, done = "unsupported", error.what, []
    except RuntimeError as error:  # CUDA's libraries say in words that they could not allocate
        if not isinstance(error, torch.OutOfMemoryError) and "alloc" not in str(error).lower():
            raise
        outcome, reason, done = "out of memory", str(error)[:200], []
    gc.collect()
    torch.cuda.empty_cache()
    samples, layers = {}, []
    if done:
        stages = {name: [one.stages[name] for one in done] for name in STAGES}
        decoded = [one.decode for one in done[:decode_repeats]] if new_tokens else []
        samples = {"ttft": [one.ttft for one in done], "stages": stages, "decode": decoded}
        layers = [[frames * cells] * model.depth]
        if (stats := done[0].stats) is not None:
            stats.check_acted()
            layers = [sample.per_layer for sample in stats.samples]
    weights = sum(x.nbytes for x in [*model.module.parameters(), *model.module.buffers()])
    return TimedRow(
        **model.facts(),
        row=reduction.name,
        at=at,
        budget=reduction.budget,
        setting=reduction.describe(),
        clock=clock_of(model.device)[0],
        frames=frames,
        cells=cells,
        batch=batch,
        new_tokens=new_tokens,
        content=CONTENT,
        outcome=outcome,
        reason=reason,
        tokens_per_layer=[sum(each) / len(each) for each in zip(*layers, strict=True)],
        samples=samples,
        memory={"weights": weights, "above": above, "kv": done[0].kv_bytes if done else None},
        provenance=provenance() | ({} if cuda else {"gpu": None, "gpus": 0, "cuda": None}),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        code=present_code(),
    )


def measure_all(out: Path, tasks: list[Task], *, quiet: bool = False) -> list[TimedRow]:
    """The rows of these tasks, in their order. What ``out`` does not hold, from this code and device, is measured and
    added to it, row by row, so it may be stopped and called again. A CPU runs with one thread. quiet: no progress bar
    with its estimate, and no line for each row."""
    threads, loaded = torch.get_num_threads(), None
    held = {row.key: row for row in read(out)}
    todo = [task for task in tasks if task.key not in held]
    torch.set_num_threads(1 if todo and todo[0].model.device == "cpu" else threads)
    total = sum(task.frames * task.batch for task in todo)
    try:
        with tqdm(total=total, unit="frame", desc="timing", disable=quiet) as bar:
            for task in todo:
                if loaded != task.model:
                    loaded = None
                    gc.collect()
                    loaded = task.model.load()
                row = measure(loaded, task.reduction, task.frames, task.batch, at=task.at, **task.timing)
                append(out, row)
                held[row.key] = row
                bar.update(task.frames * task.batch)
                if not quiet:
                    bar.write(str(row), file=sys.stderr)
    finally:
        torch.set_num_threads(threads)
    return [held[task.key] for task in tasks if task.key in held]


if __name__ == "__main__":
    measure_all(Path(sys.argv[2]), plan(sys.argv[1]))
