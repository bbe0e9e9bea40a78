"""One finished cell and everything needed to judge it: the record, and the store of a tier.

Files are written beside themselves and moved into place: a reader never meets half a file, and an interrupted run loses
nothing that was finished."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict

from holitom_repro import paths

UNREAD = "questions about videos that cannot be read"
"""In the note of a record that tables repeat below themselves."""
Tier = Literal["tiny", "speed", "paper"]
Sample = dict[str, Any]
"""One question: doc_id, task, video, kind, question, target, answer, correct (0 to 1), kept (visual tokens)."""


class Record(BaseModel):
    """One cell. key: of its setting; reduction: ``Reduction.describe()``; protocol: how it was asked
    (evaluation.protocols); device: "cpu" or the GPU's name; code: ``code_hash``; value: accuracy in points; lmms_eval:
    its own aggregate, in points; tokens: evaluation.sweep.spent; tokens_per_layer: visual tokens that enter each layer;
    flops_paper, flops_exact: of a prefill; all of these are means over the questions. seconds: of the whole cell;
    created: UTC; notes: what a reader should know, such as videos that could not be read."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    key: str
    reduction: dict[str, Any]
    model: str
    revision: str
    benchmark: str
    frames: int
    limit: int | None
    tier: Tier
    protocol: str
    dtype: str
    device: str
    attention: str
    code: str
    value: float
    lmms_eval: float
    n: int
    videos: int
    tokens: dict[str, float]
    tokens_per_layer: tuple[float, ...]
    flops_paper: float
    flops_exact: float
    seconds: float
    created: str
    provenance: dict[str, Any]
    notes: tuple[str, ...] = ()


class Store:
    """The finished cells of one tier: runs/<tier>/cells/<hash>.json, written after <hash>.samples.jsonl with a line for
    each question. A cell whose files are damaged counts as not finished."""

    def __init__(self, tier: str, runs: Path | None = None) -> None:
        self.folder = (runs or paths.runs()) / tier / "cells"

    def load(self, cell: str) -> tuple[Record, list[Sample]] | None:
        """A finished cell, None where there is none."""
        try:
            record = Record.model_validate_json((self.folder / f"{cell}.json").read_bytes())
            lines = (self.folder / f"{cell}.samples.jsonl").read_bytes().splitlines()
            samples = [json.loads(line) for line in lines]
        except (FileNotFoundError, ValueError):  # also pydantic's ValidationError
            return None
        whole = len(samples) == record.n and all("correct" in sample for sample in samples)
        return (record, samples) if whole else None

    def forget(self, cell: str) -> None:
        """Remove a cell, also what is answered of an unfinished one."""
        for suffix in ("json", "samples.jsonl"):
            (self.folder / f"{cell}.{suffix}").unlink(missing_ok=True)
        shutil.rmtree(self.folder / f"{cell}.part", ignore_errors=True)

    def save(self, cell: str, record: Record, samples: Sequence[Sample]) -> None:
        """Samples first: the record's file says that the cell is finished."""
        lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
        write_atomic(self.folder / f"{cell}.samples.jsonl", lines)
        write_atomic(self.folder / f"{cell}.json", record.model_dump_json(indent=1) + "\n")


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Replace a file as a whole, text as UTF-8: written under another name in the same folder, flushed to disk, moved
    into place. OSError on a full disk and in a folder that cannot be written; the old file is kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        with draft.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path
