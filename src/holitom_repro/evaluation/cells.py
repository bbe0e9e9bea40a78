"""One cell of a sweep: a setting on a benchmark, the key that names its result, and the files that keep it.

A cell is finished when ``runs/<tier>/cells/<key>.json`` exists: one Record, written after ``<key>.samples.jsonl``,
which has a line for each question. The key hashes everything that can change the result, so a finished cell is never
computed twice and a changed one is never taken for it. Labels (experiment, row) are not part of it: experiments share
cells.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

from holitom_repro import paths
from holitom.errors import BadUsage, CannotRun, KitError
from holitom_repro.results import Record, code_fingerprint, write_atomic
from holitom_repro.tiny import benchmarks
from holitom.types import Reduction

TIERS = ("tiny", "paper")
CONTROL_TOWER = ("tiny", "control_tower")  # below data/
HUB = {
    "ov-7b": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "ov-72b": "llava-hf/llava-onevision-qwen2-72b-ov-hf",
    "video-7b": "lmms-lab/LLaVA-Video-7B-Qwen2",  # published in LLaVA-NeXT's format only: convert it, give the folder
}
CHECKPOINTS = "checkpoints"  # in the checkout: checkpoints/video-7b is taken before the hub's
UNJUDGED = {"egoschema": "egoschema_subset"}  # answers that are not public -> the task with those that are
_WEIGHTS = ("*.safetensors", "*.json", "*.txt", "*.jinja")


Saliency = Literal["own", "random", "control"]


def check_saliency(saliency: str) -> Saliency:
    """Own: of the model's tower; random: drawn per video; control: of another tower that sees the same frames."""
    if saliency not in get_args(Saliency):
        raise BadUsage(f"saliency {saliency!r} is not known", fix=f"choose one of {', '.join(get_args(Saliency))}")
    return saliency  # type: ignore[return-value]


@dataclass(frozen=True)
class Cell:
    """One setting on one benchmark.

    model: a folder, a name below data/tiny, one of HUB, or a hub id; limit: only the first so many questions; pixels:
    "file", or "rendered" for the tiny world's own frames, to see what writing and decoding files costs.
    """

    experiment: str
    row: str
    model: str
    reduction: Reduction
    benchmark: str
    frames: int
    limit: int | None = None
    saliency: str = "own"
    pixels: str = "file"

    @property
    def title(self) -> str:
        return f"{self.row}, {self.benchmark}"


def check(cell: Cell, tier: str) -> None:
    """Raises BadUsage for a cell that cannot exist, and CannotRun for a tiny model that is not there."""
    tiny = cell.benchmark in benchmarks.BENCHMARKS
    if tier not in TIERS:
        raise BadUsage(f"benchmarks cannot be run at tier {tier!r}", fix=f"use one of {', '.join(TIERS)}")
    if cell.limit is not None and cell.limit < 1:
        raise BadUsage(f"limit={cell.limit} is not a number of questions", fix="give 1 or more, or leave it out")
    if cell.benchmark in UNJUDGED:
        raise BadUsage(
            f"the answers of {cell.benchmark} are not public, its server judges them",
            fix=f"use {UNJUDGED[cell.benchmark]}",
        )
    check_saliency(cell.saliency)
    if cell.pixels not in ("file", "rendered"):
        raise BadUsage(f"pixels {cell.pixels!r} is not known", fix="choose file or rendered")
    if cell.pixels == "rendered" and not tiny:
        raise BadUsage(f"{cell.benchmark} has video files only", fix='use pixels="file"')
    if tier == "tiny":
        benchmarks.benchmark(cell.benchmark)
        if not Path(model_path(cell.model)).is_dir():
            fix = "give a model folder, or the name of one below data/tiny (./reproduce.sh train-tiny makes them)"
            raise CannotRun(f"there is no tiny model {cell.model!r}", fix=fix)


def model_path(model: str) -> str:
    """The folder that ``model`` names (as given, in the checkout, below checkpoints/ or data/tiny), else a hub id."""
    candidates = [Path(model)]
    if not Path(model).is_absolute():
        candidates += [paths.root() / model, paths.root() / CHECKPOINTS / model, paths.data("tiny", model)]
    for folder in candidates:
        if (folder / "config.json").is_file():
            return str(folder.resolve())
    return HUB.get(model, model)


@cache
def revision(model: str) -> str:
    """What identifies the weights: a hash over a folder's files, or the snapshot of a hub id ("main" if not here)."""
    folder = Path(model_path(model))
    if folder.is_dir():
        digest = hashlib.sha256()
        for path in sorted({p for pattern in _WEIGHTS for p in folder.glob(pattern)}):
            digest.update(path.name.encode() + b"\0")
            with path.open("rb") as file:
                while block := file.read(2**24):  # checkpoints are larger than memory
                    digest.update(block)
        return digest.hexdigest()[:16]
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model_path(model), "config.json")
    return Path(config).parent.name if isinstance(config, str) else "main"


def identity(cell: Cell, tier: str) -> dict[str, Any]:
    """Everything that can change the result of a cell, as JSON."""
    method = {key: value for key, value in cell.reduction.describe().items() if key != "name"}
    tiny = cell.benchmark in benchmarks.BENCHMARKS
    version = benchmarks.recipe_hash() if tiny else f"lmms-eval {metadata.version('lmms-eval')}"
    control = revision(str(paths.data(*CONTROL_TOWER))) if cell.saliency == "control" else ""
    limit = cell.limit
    if tiny and limit is not None and limit >= benchmarks.VIDEOS * benchmarks.QUESTIONS_PER_VIDEO:
        limit = None
    return {
        "tier": tier,
        "model": revision(cell.model),
        "hub_id": "" if Path(model_path(cell.model)).is_dir() else model_path(cell.model),
        "method": method,
        "benchmark": [cell.benchmark, version],
        "frames": cell.frames,
        "limit": limit,
        "saliency": [cell.saliency, control],
        "pixels": cell.pixels,
        "code": code_fingerprint(),
        "packages": {name: metadata.version(name) for name in ("torch", "transformers", "av")},
    }


def key(cell: Cell, tier: str) -> str:
    """Sixteen hex digits that name the cell's result."""
    return hashlib.sha256(json.dumps(identity(cell, tier), sort_keys=True).encode()).hexdigest()[:16]


class CellFiles:
    """The finished cells of one tier below ``runs``."""

    def __init__(self, runs: Path, tier: str) -> None:
        self.folder = Path(runs) / tier / "cells"
        self.tier = tier

    def record_path(self, cell: Cell) -> Path:
        return self.folder / f"{key(cell, self.tier)}.json"

    def samples_path(self, cell: Cell) -> Path:
        return self.folder / f"{key(cell, self.tier)}.samples.jsonl"

    def journal_path(self, cell: Cell) -> Path:
        """The folder with the answers of a cell that is being computed (holitom_repro.evaluation.journal)."""
        return self.folder / f"{key(cell, self.tier)}.part"

    def load(self, cell: Cell) -> Record | None:
        """The finished record under this cell's labels; None if there is none, or if its files are damaged."""
        record, samples = self.record_path(cell), self.samples_path(cell)
        if not record.is_file() or not samples.is_file():
            return None
        try:
            found = Record.from_json(record.read_text(encoding="utf-8"))
            whole = _whole(samples.read_bytes(), found.n)
        except (KitError, OSError, UnicodeDecodeError):
            return None
        if not whole:
            return None
        return dataclasses.replace(
            found, experiment=cell.experiment, row=cell.row, method=cell.reduction.describe(), model=cell.model
        )

    def save(self, cell: Cell, record: Record, samples: list[dict[str, Any]]) -> None:
        """Samples first: the record's file says that the cell is finished. CannotRun on a full disk."""
        lines = [json.dumps(sample, ensure_ascii=False) for sample in samples]
        write_atomic(self.samples_path(cell), "".join(line + "\n" for line in lines))
        write_atomic(self.record_path(cell), record.to_json() + "\n")


def _whole(log: bytes, n: int | float | None) -> bool:
    """Whether a log has an object on each of its n lines (n None: of an unknown number), the last one ended. Parsed at
    once, because a sweep looks at hundreds of logs before it starts."""
    lines = log.split(b"\n")
    try:
        rows = json.loads(b"[" + b",".join(lines[:-1]) + b"]")
    except ValueError:
        return False
    return (
        not lines[-1]
        and len(rows) == len(lines) - 1 == (len(rows) if n is None else n)
        and all(isinstance(row, dict) for row in rows)
    )


def load_samples(cell: Cell, tier: str, *, runs: Path = Path("runs")) -> list[dict[str, Any]]:
    """The per-question log of a finished cell: doc_id, video, type, question, target, answer, correct, prompt, kept.

    BadUsage when the cell is not finished.
    """
    path = CellFiles(runs, tier).samples_path(cell)
    if not path.is_file():
        raise BadUsage(f"the cell {cell.title} is not finished", fix="run it first: run_cells([cell], tier)")
    return [json.loads(line) for line in path.read_bytes().splitlines()]  # text has further ends of lines, as U+2028
