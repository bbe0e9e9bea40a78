"""One finished cell and everything needed to judge it: the record, the store of a tier, on what it was measured, and a
hash of the code that made it.

Files are written beside themselves and moved into place: a reader never meets half a file, and an interrupted run loses
nothing that was finished."""

from __future__ import annotations

import ast
import dataclasses
import errno
import hashlib
import inspect
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from types import CodeType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

import holitom
from holitom.errors import CannotRun
from holitom_repro import paths

Tier = Literal["tiny", "speed", "paper"]
Sample = dict[str, Any]
"""One question: doc_id, task, video, kind, question, target, answer, correct (0 to 1), kept (visual tokens)."""


class Record(BaseModel):
    """One cell. key: of its setting; reduction: ``Reduction.describe()``; protocol: how it was asked
    (evaluation.protocols); device: "cpu" or the GPU's name; code: ``code_hash``; value: accuracy in points; lmms_eval:
    its own aggregate, in points; tokens: TokenBudget's fields; tokens_per_layer: visual tokens that enter each layer;
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
    each question. ``damaged`` lists files that could not be understood; their cells count as not finished."""

    def __init__(self, tier: str, runs: Path | None = None) -> None:
        self.folder = (runs or paths.runs()) / tier / "cells"
        self.damaged: list[Path] = []

    def has(self, cell: str) -> bool:
        """Whether the cell is finished, without reading it."""
        return (self.folder / f"{cell}.json").is_file() and (self.folder / f"{cell}.samples.jsonl").is_file()

    def load(self, cell: str) -> tuple[Record, list[Sample]] | None:
        """A finished cell; None where there is none, or where its files are damaged. CannotRun for files that may not
        be read."""
        if not self.has(cell):
            return None
        try:
            record = Record.model_validate_json((self.folder / f"{cell}.json").read_bytes())
            lines = (self.folder / f"{cell}.samples.jsonl").read_bytes().split(b"\n")
            samples = json.loads(b"[" + b",".join(lines[:-1]) + b"]")
            if lines[-1] or len(samples) != record.n or not all("correct" in sample for sample in samples):
                raise ValueError("not the questions of its record")
        except OSError as error:
            raise _refused(self.folder, error, "read") from error
        except (ValidationError, ValueError, TypeError):
            self.damaged.append(self.folder / f"{cell}.json")
            return None
        return record, samples

    def forget(self, cell: str) -> None:
        """Remove a cell, also what is answered of an unfinished one."""
        for suffix in ("json", "samples.jsonl"):
            (self.folder / f"{cell}.{suffix}").unlink(missing_ok=True)
        shutil.rmtree(self.folder / f"{cell}.part", ignore_errors=True)

    def save(self, cell: str, record: Record, samples: Sequence[Sample]) -> None:
        """Samples first: the record's file says that the cell is finished. CannotRun on a full disk."""
        lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
        write_atomic(self.folder / f"{cell}.samples.jsonl", lines)
        write_atomic(self.folder / f"{cell}.json", record.model_dump_json(indent=1) + "\n")


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Replace a file as a whole, text as UTF-8: written under another name in the same folder, flushed to disk, moved
    into place. CannotRun on a full disk and in a folder that cannot be written."""
    draft = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".part", delete=False
        ) as file:
            draft = Path(file.name)
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        draft.chmod(0o644)
        os.replace(draft, path)
    except OSError as error:
        raise _refused(path, error, "written") from error
    finally:
        if draft is not None:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
    return path


def _refused(path: Path, error: OSError, what: str) -> CannotRun:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CannotRun(
            f"the disk is full: {path} could not be written. Everything finished before it is kept",
            fix="free some space and run the same command again, it continues where it stopped",
        )
    return CannotRun(
        f"{path} cannot be {what} ({error.strerror or error})",
        fix=f"use a checkout of your own, or give {paths.runs()} to the user who runs this",
    )


def provenance() -> dict[str, Any]:
    """Versions, python, processor, GPU, threads and git commit, as plain JSON; no host name, user or path.
    ``git.dirty``: tracked files under src/ or data/ differ from the commit. Without git, ``git`` is None."""
    import torch

    return {**_machine(), "threads": torch.get_num_threads()}


@cache
def _machine() -> dict[str, Any]:
    import torch

    packages = ("torch", "transformers", "lmms-eval", "av", "numpy", "tokenizers")
    cpu = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: version(name) for name in packages},
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "gpus": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
        "git": _git(),
    }


def version(package: str) -> str | None:
    """The installed version of a package, None where it is missing."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def _git() -> dict[str, Any] | None:
    def ask(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        root = paths.root()
        if not (root / ".git").exists():  # a download inside somebody else's repository is not that repository
            return None
        changed = ask("status", "--porcelain", "--untracked-files=no", "--", "src", "data")
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (CannotRun, OSError, subprocess.SubprocessError):
        return None


def code_hash(stages: Iterable[Any], kit: Sequence[str] = ()) -> str:
    """Sixteen hex digits over the sources that can change a result: all of src/holitom but the files of methods that
    these stages do not use, and the files ``kit`` of this package. Comments, docstrings and layout do not count. A
    stage that is defined elsewhere (in a notebook) counts with all of the user's code that it reaches."""
    classes = [type(stage) for stage in _with_parts(stages)]
    used = frozenset(Path(inspect.getfile(cls)) for cls in classes if cls.__module__.startswith("holitom."))
    sources = [*Path(holitom.__file__).parent.rglob("*.py"), *(Path(__file__).parent / name for name in kit)]
    digest = hashlib.sha256(_meaning_of(used, tuple((path, path.stat().st_mtime_ns) for path in sorted(sources))))
    seen: list[Any] = []
    digest.update("\n".join(part for cls in classes for part in _own_code(cls, seen)).encode())
    return digest.hexdigest()[:16]


@cache
def _meaning_of(used: frozenset[Path], sources: tuple[tuple[Path, int], ...]) -> bytes:
    """Of all sources (with the times of their last change), but of the methods' files only those used."""
    shelf, texts = Path(holitom.__file__).parent / "methods", {}
    todo = [path for path, _ in sources if shelf not in path.parents] + [shelf / "base.py", *used]
    while todo:
        path = todo.pop()
        if path.is_file() and path not in texts:
            texts[path] = source = path.read_text(encoding="utf-8")
            if shelf in path.parents:
                found = [node.module or "" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
                todo += [shelf / f"{name.split('.')[2]}.py" for name in found if name.startswith("holitom.methods.")]
    parts = [f"{path.name}\0{_cached_meaning(texts[path])}" for path in sorted(texts)]
    return "\n".join(parts).encode()


def _with_parts(stages: Iterable[Any]) -> Iterable[Any]:
    """Stages, and those that they hold."""
    for stage in stages:
        if dataclasses.is_dataclass(stage):
            yield stage
            yield from _with_parts(vars(stage).values())


def _own_code(thing: Any, seen: list[Any]) -> Iterable[str]:
    """What a class, function or constant of the user's says and does, and everything of the user's that it reaches."""
    thing = getattr(thing, "__func__", getattr(thing, "fget", thing))
    if thing is None or isinstance(thing, (bool, int, float, str, bytes)):
        yield repr(thing)
    elif isinstance(thing, (tuple, list)):
        for part in thing:
            yield from _own_code(part, seen)
    elif isinstance(thing, CodeType):
        yield f"{thing.co_code.hex()} {thing.co_names}"
        yield from _own_code(thing.co_consts, seen)
    elif (inspect.isclass(thing) or inspect.isfunction(thing)) and thing not in seen and _users(thing.__module__):
        seen.append(thing)
        if inspect.isclass(thing):
            parts = [*thing.__bases__, *(value for _, value in sorted(vars(thing).items()))]
        else:
            names = sorted(_names(thing.__code__) & set(thing.__globals__))
            reached = [thing.__globals__[name] for name in names]
            reached += [cell.cell_contents for cell in thing.__closure__ or ()]
            parts = [thing.__code__, thing.__defaults__, *(thing.__kwdefaults__ or {}).values(), *reached]
        for part in parts:
            yield from _own_code(part, seen)


def _users(module: str | None) -> bool:
    """Whether a module is the user's: neither of this kit, nor python's, nor installed."""
    package = (module or "builtins").partition(".")[0]
    if package in {"holitom", "holitom_repro", *sys.stdlib_module_names} - {"__main__"}:
        return False
    return "site-packages" not in Path(getattr(sys.modules.get(str(module)), "__file__", None) or "").parts


def _names(code: CodeType) -> set[str]:
    return {*code.co_names}.union(*(_names(part) for part in code.co_consts if isinstance(part, CodeType)))


@cache
def present_code() -> str:
    """Sixteen hex digits over what can change a measurement: src/holitom and the evaluation, without comments."""
    kit = [Path(__file__).parent / "evaluation" / f"{name}.py" for name in ("model", "features", "scoring")]
    files = [*sorted(Path(holitom.__file__).parent.rglob("*.py")), *kit]
    text = "".join(path.name + meaning(path.read_text(encoding="utf-8")) for path in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def meaning(source: str) -> str:
    """The syntax tree of python source as text, without docstrings; the same on every supported python."""

    def text(node: Any) -> str:
        if isinstance(node, list):
            return "[" + ",".join(map(text, node)) + "]"
        if not isinstance(node, ast.AST):
            return repr(node)
        fields = dict(ast.iter_fields(node))
        holder = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if holder and ast.get_docstring(node, clean=False) is not None:
            fields["body"] = node.body[1:]
        present = ",".join(f"{name}={text(value)}" for name, value in fields.items() if value not in (None, []))
        return f"{type(node).__name__}({present})"

    return text(ast.parse(source))


_cached_meaning = cache(meaning)
