"""The paper tier: the papers' models on the four public benchmarks, through lmms-eval, on as many GPUs as there are.

``evaluate(..., tier="paper")`` ends here, whoever called it: it writes the plan (the cells) to runs/paper/plans and
starts ``python -m holitom_repro.paper_tier PLAN``, with accelerate where there are several GPUs. A Slurm script starts
the same command itself, with --part. Options reach it from a terminal through HOLITOM_PAPER_TIER. See
docs/paper_tier.md.

The gate: the unreduced model must score what the paper prints for it, before a method is measured. Where it does not,
decoder, scorer or checkpoint differ from the paper's, and every score of a method would differ by that much too."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import pandas as pd
import yaml
from tqdm import tqdm

from holitom.errors import BadUsage, CannotRun, KitError
from holitom_repro import machine, papers, paths
from holitom_repro.evaluation import sweep
from holitom_repro.evaluation.cells import Cell, hub_info, model_path
from holitom_repro.evaluation.protocols import EXPECTED
from holitom_repro.evaluation.statistics import interval
from holitom_repro.records import Record, Sample, Store, write_atomic

TOLERANCE = 0.5
"""Points. Published scores of one model move by up to this much between versions of harness, decoder and library."""
OPTIONS = "HOLITOM_PAPER_TIER"
COLUMNS = {task: column for column, task in papers.TASKS.items()}
"""Benchmark -> its column of the printed tables."""
VIDEOS = {
    "mvbench": ("OpenGVLab/MVBench", "video", "mvbench_video"),
    "egoschema_subset": ("lmms-eval/egoschema", None, "egoschema"),
    "longvideobench_val_v": ("longvideobench/LongVideoBench", None, "datasets/longvideobench"),
    "videomme": ("lmms-eval/Video-MME", None, "videomme"),
}
"""Benchmark -> repository, revision, and folder below HF_HOME, as lmms-eval's task files have them."""


def parser() -> argparse.ArgumentParser:
    """The options of the paper tier, for its own command line and for OPTIONS."""
    p = argparse.ArgumentParser(prog="python -m holitom_repro.paper_tier", allow_abbrev=False)
    p.add_argument("plan", nargs="?", type=Path, help="the cells, as evaluate(..., tier='paper') wrote them")
    p.add_argument("--processes", type=int, help="GPUs, each with a whole model (default: all)")
    p.add_argument("--device-map", choices=["auto"], help="auto: one process, the model spread over all GPUs (72B)")
    p.add_argument("--part", default="0/1", metavar="I/N", help="one of N shares of the cells, from 0")
    p.add_argument("--gate-only", action="store_true", help="measure and judge the unreduced models only")
    p.add_argument("--no-gate", action="store_true", help="go on where an unreduced model is off its printed score")
    p.add_argument("--skip-broken", action="store_true", help="count questions about unreadable videos, do not stop")
    p.add_argument("--dry-run", action="store_true", help="say what would be fetched and asked, and stop")
    p.add_argument("--tasks", action="append", default=[], metavar="DIR", help="task files for data that lie elsewhere")
    p.add_argument("--cpu", action="store_true", help="without a GPU (tests)")
    p.add_argument("--runs", type=Path, help="where finished cells are kept (default: runs/ of the checkout)")
    return p


def measure_here(cells: Sequence[Cell], show: bool = True) -> None:
    """Measure those of the cells that are not finished, in processes of their own. CannotRun with what they say."""
    words = [*shlex.split(os.environ.get(OPTIONS, "")), "--runs", str(paths.runs())]
    asked = parser().parse_args(words)
    if not asked.cpu:
        machine.require("paper")
    plan = cloudpickle.dumps(list(cells))
    name = hashlib.sha256("".join(sorted(cell.id for cell in cells)).encode()).hexdigest()[:16]
    path = write_atomic(paths.runs("paper", "plans", f"{name}.plan"), plan)
    store = Store("paper")
    total = sum(cell.asked for cell in cells if not store.load(cell.id)) or None
    with tempfile.TemporaryDirectory() as told, tqdm(total=total, unit="question", disable=not show) as bar:
        environment = {**os.environ, **paths.caches(), "HOLITOM_TOLD": told, "PYTHONSAFEPATH": "1"}
        process = subprocess.Popen(command(asked, [str(path), *words]), env=environment)
        try:
            while (code := process.poll()) is None:
                bar.update(sweep.answered(told) - bar.n)
                time.sleep(0.5)
        except KeyboardInterrupt:
            process.wait()  # ctrl-C reached it as well: it stops and keeps what it has
            raise
        reason = Path(told) / "error.json"
        if reason.exists():
            what, fix = json.loads(reason.read_text(encoding="utf-8"))
            raise CannotRun(what, fix=fix)
    if code or asked.dry_run:
        what = "nothing was measured (--dry-run)" if asked.dry_run else f"the paper tier ended with exit code {code}"
        raise CannotRun(f"{what}; what it said stands above", fix="run it again: what is finished is kept")


def command(asked: argparse.Namespace, words: Sequence[str]) -> list[str]:
    """With several GPUs: accelerate launch. Without GPUs: torchrun, which is what accelerate starts beneath."""
    import torch

    tail = ["-m", "holitom_repro.paper_tier", *words]
    count = asked.processes or (1 if asked.device_map or asked.cpu or asked.dry_run else torch.cuda.device_count())
    if count == 1:
        return [sys.executable, *tail]
    start = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count), "--num_machines", "1"]
    start += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    if asked.cpu:
        start = ["torch.distributed.run", "--standalone", "--nnodes", "1", "--nproc_per_node", str(count)]
    return [sys.executable, "-m", *start, *tail]


def measure(cells: Sequence[Cell], asked: argparse.Namespace, progress: Callable[[int], object]) -> None:
    """What each process of the tier does: one model after the other, its unreduced cells first, then the gate.
    CannotRun: a baseline is off (with the reasons that are known), a checkpoint that has to be converted, no room on
    the disk."""
    number, _, parts = asked.part.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and int(number) < int(parts)):
        raise BadUsage(f"{asked.part!r} is not a part", fix="count parts from 0: 0/4, 1/4, 2/4, 3/4")
    store = Store("paper", asked.runs)
    skip = asked.skip_broken or sweep.SKIP in os.environ
    options = sweep.Options(skip, tasks=tuple(asked.tasks), device_map=asked.device_map, runs=asked.runs)
    first = os.environ.get("RANK", "0") == "0"
    full = [cell for cell in cells if unreduced(cell)]
    mine = [*full, *[cell for cell in cells if not unreduced(cell)][int(number) :: int(parts)]]
    left = [cell for cell in mine if not store.load(cell.id)]
    for text in [*first_contact(cells), *(downloads(left) if left else [])] if first else ():
        print(text, file=sys.stderr)
    if asked.dry_run:
        for cell in {(cell.model, cell.benchmark): cell for cell in cells}.values():
            print(first_question(cell, options), file=sys.stderr)
        return
    off: list[Baseline] = []
    for model in dict.fromkeys(cell.model for cell in cells):
        sweep.measure([cell for cell in left if cell.model == model and unreduced(cell)], progress, options)
        there = [(cell, store.load(cell.id)) for cell in full if cell.model == model]
        judged = [judge_baseline(cell, *found) for cell, found in there if found]
        for one in judged if first else ():
            print(f"gate   {one.cell.model}, {one.cell.benchmark}: {one.verdict} ({one.reason})", file=sys.stderr)
        off += [one for one in judged if one.verdict == "NOT REPRODUCED" and not asked.no_gate]
        if not asked.gate_only:
            require(off)
            sweep.measure([cell for cell in left if cell.model == model and not unreduced(cell)], progress, options)
    require(off)


def unreduced(cell: Cell) -> bool:
    made = cell.reduction
    return not (made.outer or made.inner or made.decode or made.tower)


class Baseline(NamedTuple):
    """One unreduced score beside the print."""

    cell: Cell
    verdict: str
    reason: str


def judge_baseline(cell: Cell, record: Record, samples: Sequence[Sample]) -> Baseline:
    """REPRODUCED within TOLERANCE; WITHIN NOISE: the printed score is in the 95 % interval; NOT REPRODUCED: neither;
    QUOTED: nothing is printed of these questions; NOT RUN: only the first questions were asked, which are no sample."""
    column = COLUMNS.get(cell.benchmark, "")
    if column in papers.OTHER_QUESTIONS:
        return Baseline(cell, "QUOTED", papers.OTHER_QUESTIONS[column])
    rows = pd.concat([papers.printed("table1"), papers.printed("table2")])
    rows = rows[(rows["model"] == cell.model) & (rows["key"] == "all tokens")]
    if not column or rows.empty or cell.frames != cell.protocol.frames:
        return Baseline(cell, "QUOTED", "no score is printed")
    if cell.limit is not None:
        return Baseline(cell, "NOT RUN", f"only the first {cell.limit} questions were asked")
    printed = float(rows.iloc[0][column])
    found = interval([s["correct"] for s in samples], [f"{s['task']}/{s['video']}" for s in samples])
    said = f"{record.value:.1f} [{found.low:.1f}, {found.high:.1f}] against {printed:.1f}"
    close = abs(record.value - printed) <= TOLERANCE + 1e-9
    verdict = "REPRODUCED" if close else "WITHIN NOISE" if found.low <= printed <= found.high else "NOT REPRODUCED"
    return Baseline(cell, verdict, f"{said} ({record.value - printed:+.1f} points, tolerance {TOLERANCE:g})")


def require(off: Sequence[Baseline]) -> None:
    """CannotRun where a baseline is off, with what others measured and which causes are known."""
    if not off:
        return
    known = yaml.safe_load(paths.data("papers", "known_offsets.yaml").read_text(encoding="utf-8"))
    lines = ["the unreduced model is off the printed baseline, so scores of methods would be too:"]
    for one in off:
        column = COLUMNS[one.cell.benchmark]
        lines.append(f"  {papers.MODELS[one.cell.model]}, {papers.BENCHMARKS[column]}: {one.reason}")
        others = [m for m in known["measured"] if (m["model"], m["benchmark"]) == (one.cell.model, column)]
        lines += [f"    others measured {m['value']:g} ({m['setting']}; {m['source']})" for m in others]
    causes = [c for c in known["causes"] if {COLUMNS[one.cell.benchmark] for one in off} & set(c["benchmarks"])]
    lines += ["  known causes:", *(f"    {c['what']}: {c['why']} ({c['source']})" for c in causes)]
    fix = "find the reason among the above, or go on and compare shares of the full model only: --no-gate"
    raise CannotRun("\n".join(lines), fix=fix)


def first_contact(cells: Sequence[Cell]) -> list[str]:
    """How each model is asked, and one table of what its checkpoint's own files say otherwise than the protocol. Raises
    UnsupportedModel and CannotRun for a checkpoint that cannot be loaded or asked as it is."""
    from holitom.models.inputs import VideoProcessor

    said, rows = [], []
    for cell in {cell.model: cell for cell in cells}.values():
        place, protocol = model_path(cell.model), cell.protocol
        processor = VideoProcessor.from_pretrained(place)
        protocol.check(processor.config)
        processor.prompts(["?"])  # refuses a tokenizer that does not know the video's token
        said.append(f"asked  {cell.model} by the protocol {protocol}, {cell.dtype}, frames {protocol.sampling}")
        for file, expected in EXPECTED.items():
            says = _says(place, file, processor)
            done = "used, unlike the release" if file in ("config.json", "preprocessor_config.json") else "not heard"
            for field, wanted in (expected | {"dtype": cell.dtype}).items():
                if says.get(field) not in (None, wanted):
                    what = "converted when it is loaded" if field == "dtype" else done
                    rows.append((cell.model[-40:], file, field, says[field], wanted, what))
    names = ["model", "file", "field", "found", "protocol expects", "what is done"]
    table = pd.DataFrame([[str(value)[:40] for value in row] for row in rows], columns=names)
    return [*said, table.to_string(index=False) if rows else "files  say what the protocol expects"]


def _says(place: str, name: str, processor: Any) -> dict[str, Any]:
    """What a file of a checkpoint says, flat; nothing where there is none. The config and the preprocessing as they are
    understood, from whichever files have them."""
    from transformers.utils import cached_file

    if name == "preprocessor_config.json":
        return vars(processor.image_processor)
    if name == "config.json":
        return pd.json_normalize(processor.config.to_dict()).to_dict("records")[0]
    try:
        file = cached_file(place, name, _raise_exceptions_for_missing_entries=False)
    except OSError:
        file = None
    held = Path(file).read_text(encoding="utf-8") if file else "{}"
    return {"chat_template": held} if file and name.endswith("jinja") else json.loads(held)


def first_question(cell: Cell, options: sweep.Options) -> str:
    """The first question of a benchmark as the model would get it: prompt, frames with their times, tensor shapes. Asks
    for no download."""
    from lmms_eval.tasks import get_task_dict

    from holitom.models.inputs import VideoProcessor
    from holitom.video import load_frames

    if not _has_videos(cell.benchmark):
        return f"first  {cell.benchmark}: shown when its videos are here"
    tasks = sweep.task_manager(cell.kind.folder, options.tasks, cell.protocol.variant)
    found: Any = get_task_dict([cell.benchmark], tasks, "simple")
    while isinstance(found, dict):
        found = next(iter(found.values()))
    doc = found.eval_docs[0]
    processor = replace(VideoProcessor.from_pretrained(model_path(cell.model)), conversation=cell.protocol.conversation)
    frames = load_frames(found.doc_to_visual(doc)[0], cell.frames, cell.protocol.sampling)
    inputs = processor(frames.pixels, found.doc_to_text(doc))
    places = ", ".join(f"{i} ({t:.2f} s)" for i, t in zip(frames.index, frames.seconds, strict=True))
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
    said = f"first  {cell.benchmark}, {cell.model}: {processor.text(found.doc_to_text(doc))!r}\n"
    said += f"frames {places} of {frames.total}{''.join(f'; {note}' for note in frames.notes)}\n"
    return f"{said}shapes {shapes}, before any reduction"


def downloads(cells: Sequence[Cell]) -> list[str]:
    """What these cells fetch, a line each. CannotRun when it does not fit on the disk."""
    wanted = {place: ("model", None) for cell in cells if not Path(place := model_path(cell.model)).is_dir()}
    absent = [VIDEOS[name] for name in sorted({cell.benchmark for cell in cells}) if not _has_videos(name)]
    wanted |= {repository: ("dataset", revision) for repository, revision, _ in absent}
    lines, needed = [], 0.0
    for repository, (kind, revision) in wanted.items():
        gib = _gib(repository, kind, revision) * (2 if kind == "dataset" else 1)  # archives stay beside their files
        needed += gib
        lines.append(f"disk   {repository}: {f'{gib:.0f} GiB' if gib else 'the hub does not say how much'}")
    free = machine.free_gib(_home())
    lines.append(f"disk   {needed:.0f} GiB and what is not known to fetch, {free:.0f} GiB free in {_home()}")
    if needed > free:
        fix = "set HF_HOME to a folder on a larger disk, and keep it set for later runs"
        raise CannotRun("\n".join(["the downloads do not fit on the disk", *lines]), fix=fix)
    return lines


def _home() -> Path:
    return Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()


def _has_videos(benchmark: str) -> bool:
    """Whether they are here; of a benchmark that is none of the papers' nothing is known."""
    return benchmark not in VIDEOS or (_home() / VIDEOS[benchmark][2]).exists()


def _gib(repository: str, kind: str, revision: str | None) -> float:
    """Its size, 0 where the hub does not say."""
    info = hub_info(repository, kind, revision)
    return sum(file.size or 0 for file in info.siblings or ()) / 2**30 if info else 0.0


def main(words: Sequence[str] | None = None) -> int:
    """One process of the tier. Returns the exit code; what stopped it is left for who started it, or said."""
    import torch

    told, rank = os.environ.get("HOLITOM_TOLD"), os.environ.get("RANK", "0")
    asked = parser().parse_args(words)
    progress = partial(sweep.tell, told) if told else tqdm(unit="question", disable=rank != "0").update
    try:
        if asked.plan is None or not asked.plan.is_file():
            raise BadUsage(f"there is no plan {asked.plan}", fix="--dry-run of a notebook at the paper tier writes it")
        measure(cloudpickle.loads(asked.plan.read_bytes()), asked, progress)
    except KeyboardInterrupt:
        return 130
    except torch.OutOfMemoryError:
        stopped = CannotRun("the model does not fit on this GPU", fix="spread it over all of them: --device-map auto")
    except KitError as error:
        stopped = error
    else:
        return 0
    if told:
        write_atomic(Path(told) / "error.json", json.dumps([stopped.what, stopped.fix]))
    else:
        print(f"paper tier{f', process {rank}' if rank != '0' else ''}: {stopped}", file=sys.stderr)
    return stopped.exit_code


if __name__ == "__main__":
    sys.exit(main())
