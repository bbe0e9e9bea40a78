"""What a run of the paper tier will download and how long it will take, said before it starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from holitom_repro import machine, screen
from holitom.errors import CannotRun, KitError
from holitom_repro.evaluation import amounts
from holitom_repro.evaluation.cells import UNJUDGED, Cell, CellFiles, model_path
from holitom_repro.experiments.registry import EXPERIMENTS
from holitom.models.siglip_head import HUB, load_pooling_head
from holitom_repro.results import Record

_FILES = {
    "mvbench": "mvbench/_default_template_yaml",
    "egoschema_subset": "egoschema/_default_template_yaml",
    "longvideobench_val_v": "longvideobench/longvideobench_val_v.yaml",
    "videomme": "videomme/videomme.yaml",
}
_PATIENCE = 10.0  # seconds for one question to the hub


@dataclass(frozen=True)
class Source:
    """One repository of the hub. gib: its size, None when the hub does not say; here: it need not be fetched."""

    name: str
    repository: str
    kind: str
    gib: float | None
    here: bool


def sources(cells: Sequence[Cell]) -> list[Source]:
    """The checkpoints and data sets of these cells."""
    found = []
    for model in dict.fromkeys(cell.model for cell in cells):
        place = model_path(model)
        local = Path(place).is_dir()
        found.append(Source(model, place, "model", None if local else _gib(place, "model"), local))
    for task in dict.fromkeys(cell.benchmark for cell in cells):
        if task in _FILES:
            repository, revision, folder = _dataset(task)
            here = (_home() / folder).exists()
            gib = None if here else _gib(repository, "dataset", revision)
            found.append(Source(task, repository, "dataset", gib, here))
    return found


def describe(cells: Sequence[Cell], files: CellFiles, processes: int) -> list[str]:
    """Cells and questions left, disk and time, a line each. CannotRun when the downloads do not fit on the disk."""
    left = [cell for cell in cells if files.load(cell) is None]
    questions = sum(amounts.questions(cell.benchmark, cell.limit) for cell in left)
    lines = [f"cells  {len(cells)}, of which {len(cells) - len(left)} are finished; {questions} questions are left"]
    if not left:
        return lines
    needed, unknown = 0.0, []
    for source in sources(left):
        if source.here:
            lines.append(f"disk   {source.name}: here")
        elif source.gib is None:
            unknown.append(source.repository)
        else:
            unpacked = 2 if source.kind == "dataset" else 1  # archives stay beside what is unpacked from them
            needed += unpacked * source.gib
            lines.append(f"disk   {source.name}: {unpacked * source.gib:.0f} GiB from {source.repository}")
    if unknown:
        lines.append(f"disk   {', '.join(unknown)}: the hub does not say how much (./reproduce.sh doctor: about)")
    home = _home()
    while not home.exists():
        home = home.parent
    free = machine.free_gib(home)
    more = " and what the hub does not say" if unknown else ""
    lines.append(f"disk   {needed:.0f} GiB{more} to fetch in all, {free:.0f} GiB free in {home}")
    if needed > free:
        raise CannotRun(
            "\n".join(["the downloads do not fit on the disk", *lines]),
            fix="set HF_HOME to a folder on a larger disk, and keep it set for later runs",
        )
    return [*lines, f"time   {estimate(left, files, processes)}"]


def estimate(left: Sequence[Cell], files: CellFiles, processes: int) -> str:
    """Time for these cells: from finished ones of the same model where there are any, else a guess."""
    total, guessed = 0.0, False
    for cell in left:
        each = _seconds_per_question(cell, files)
        guessed |= each is None
        total += amounts.questions(cell.benchmark, cell.limit) * (
            each if each is not None else _guess(cell) / processes
        )
    basis = "a guess that nobody has timed; it is told again after the first cells" if guessed else "as timed here"
    return f"about {screen.duration(total)} on {processes} process{'es' if processes > 1 else ''} ({basis})"


def _seconds_per_question(cell: Cell, files: CellFiles) -> float | None:
    """Of the newest finished cell of this model and number of frames on this benchmark, else on any."""
    records = []
    for path in files.folder.glob("*.json"):
        try:
            record = Record.from_json(path.read_text(encoding="utf-8"))
        except (KitError, UnicodeDecodeError):
            continue
        if (record.model, record.frames) == (cell.model, cell.frames) and record.n and record.extra.get("seconds"):
            records.append(record)
    own = [record for record in records if record.benchmark == cell.benchmark] or records
    newest = max(own, key=lambda record: record.created, default=None)
    return None if newest is None else newest.extra["seconds"] / newest.n


def _guess(cell: Cell) -> float:
    """Seconds a question, from the registry's estimate of the whole experiment on one GPU."""
    from holitom_repro.experiments import cells

    name = cell.experiment if cell.experiment in EXPERIMENTS else "table1"
    everything = sum(amounts.questions(other.benchmark) for other in cells(name, "paper"))
    return 60 * EXPERIMENTS[name].costs["paper"].minutes / max(1, everything)


def _dataset(task: str) -> tuple[str, str | None, str]:
    """Repository, revision and video folder as lmms-eval's own task file names them."""
    from lmms_eval import tasks

    text = (Path(tasks.__file__).parent / _FILES[task]).read_text(encoding="utf-8")
    plain = "\n".join(line for line in text.splitlines() if "!function" not in line)
    values = yaml.safe_load(plain)
    return values["dataset_path"], values["dataset_kwargs"].get("revision"), values["dataset_kwargs"]["cache_dir"]


def _home() -> Path:
    return Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()


def _gib(repository: str, kind: str, revision: str | None = None) -> float | None:
    from huggingface_hub import HfApi

    ask = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
    try:
        info = ask(repository, revision=revision, files_metadata=True, timeout=_PATIENCE)
    except Exception:  # offline, gated, or a network fault of any kind: the size is not known
        return None
    return sum(file.size or 0 for file in info.siblings or ()) / 2**30


def runnable(cells: Sequence[Cell]) -> None:
    """CannotRun, before anything is fetched, for a model that cannot be loaded as it is."""
    from holitom.models.processing import load_config

    for model in dict.fromkeys(cell.model for cell in cells):
        load_config(model_path(model))
    wrong = {cell.benchmark for cell in cells} & set(UNJUDGED)
    if wrong:
        raise CannotRun(f"{', '.join(wrong)} cannot be scored here", fix=f"use {', '.join(UNJUDGED.values())}")


def pooling_head(cells: Sequence[Cell], source: str | Path = HUB) -> str | None:
    """Where FastVID's frame embeddings come from, in a line; None when no cell asks for them.

    CannotRun or UnsupportedModel, before anything is measured, where SigLIP's head cannot be had for one of the models:
    a substitute would not be FastVID.
    """
    from holitom.models.processing import load_config

    asking = [cell.model for cell in cells if getattr(cell.reduction.outer, "head", None) == "siglip"]
    for model in dict.fromkeys(asking):
        load_pooling_head(source, load_config(model_path(model)).vision_config.hidden_size)
    return f"head   FastVID compares frames by SigLIP's own pooling head, of {source}" if asking else None
