"""One number and everything needed to judge it: the record, its file format, and where it came from.

A record is one JSON line. Files are written beside themselves and moved into place, so a reader never meets half a
file and an interrupted run loses nothing that was finished.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from holitom.budgets import TokenBudget
from holitom.errors import BadUsage, CannotRun
from holitom_repro.provenance import code_fingerprint, provenance

__all__ = [
    "Number",
    "Record",
    "Source",
    "Tier",
    "code_fingerprint",
    "load_records",
    "provenance",
    "save_records",
    "write_atomic",
]

Tier = Literal["tiny", "speed", "paper"]
Source = Literal["measured", "derived", "quoted"]
Number = int | float


@dataclass(frozen=True, kw_only=True)
class Record:
    """A number with its source. Refused (BadUsage) when a field is unknown, out of range, or measured without
    provenance.

    value in ``unit`` of ``metric``; low and high: the 95 % interval; n: samples behind it. method:
    ``Reduction.describe()``. requested_tokens and realised_tokens: visual tokens per video after the outer stage
    (the realised one is a mean); tokens_per_layer: mean visual tokens entering each layer; budget: what was asked and
    spent, with newlines, over layers and against each other (None: in records from before there was this field, and
    where tokens play no part). created: UTC, ISO 8601. code: ``code_fingerprint()``.
    """

    value: Number
    unit: str
    metric: str
    experiment: str
    row: str
    tier: Tier | str
    source: Source | str
    n: int | None = None
    low: Number | None = None
    high: Number | None = None
    method: dict[str, Any] | None = None
    requested_tokens: Number | None = None
    realised_tokens: Number | None = None
    tokens_per_layer: Sequence[Number] = ()
    budget: TokenBudget | Mapping[str, Any] | None = None
    model: str = ""
    model_revision: str = ""
    benchmark: str = ""
    frames: int | None = None
    scorer: str = ""
    decoder: str = ""
    dtype: str = ""
    attention: str = ""
    seed: int | None = None
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    provenance: dict[str, Any] = field(default_factory=dict)
    code: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in (("tier", Tier), ("source", Source)):
            if getattr(self, name) not in get_args(kind):
                raise BadUsage(
                    f"a record's {name} cannot be {getattr(self, name)!r}",
                    fix=f"use one of {', '.join(get_args(kind))}",
                )
        for name in ("unit", "metric", "experiment", "row"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise BadUsage(f"a record's {name} is {getattr(self, name)!r}", fix="name it in words")
        for name in ("value", "low", "high", "n", "requested_tokens", "realised_tokens"):
            _number(name, getattr(self, name), optional=name != "value")
        if (self.low is None) != (self.high is None) or (self.low is not None and not self.low <= self.high):
            raise BadUsage(
                f"the interval [{self.low}, {self.high}] is not one", fix="give both ends, the lower one first"
            )
        if self.n is not None and self.n < 0:
            raise BadUsage(f"n is {self.n}", fix="give the number of samples behind the value")
        if self.source == "measured" and not self.provenance:
            raise BadUsage(
                f"{self.experiment}/{self.row}: a measured number says on what it was measured",
                fix="pass provenance=provenance()",
            )
        object.__setattr__(self, "tokens_per_layer", tuple(self.tokens_per_layer))
        if isinstance(self.budget, Mapping):
            object.__setattr__(self, "budget", TokenBudget.from_dict(self.budget))

    @property
    def key(self) -> str:
        """Sixteen hex digits that name this record; when it was made, and on which machine, do not change them."""
        identity = {k: v for k, v in self._plain().items() if k not in ("created", "provenance")}
        return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """One line. BadUsage when a value in method, provenance or extra is not JSON."""
        try:
            return json.dumps(self._plain(), allow_nan=False, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise BadUsage(
                f"record {self.experiment}/{self.row} holds something that is not JSON ({error})",
                fix="store plain values",
            ) from error

    @classmethod
    def from_json(cls, line: str) -> Record:
        """The record of one line. BadUsage when it is not JSON, has a field that a record has not, lacks one, or holds
        another kind of value in one."""
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadUsage(f"not a JSON line ({error})", fix="a records file holds one JSON object per line") from error
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Any) -> Record:
        """As ``from_json``, from a mapping."""
        if not isinstance(values, Mapping):
            raise BadUsage(
                f"a record is a JSON object, not {type(values).__name__}",
                fix="a records file holds one JSON object per line",
            )
        known = {f.name: f for f in dataclasses.fields(cls)}
        required = {
            n for n, f in known.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        unknown, missing = sorted(set(values) - set(known)), sorted(required - set(values))
        if unknown:
            raise BadUsage(
                f"a record has no field {', '.join(map(repr, unknown))}",
                fix="put what has no field of its own into extra",
            )
        if missing:
            raise BadUsage(f"a record needs {', '.join(map(repr, missing))}", fix="add what is missing")
        _kinds(values)
        return cls(**values)

    def _plain(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        budget = values.pop("budget")
        if budget is not None:  # left out where there is none: such a record keeps the key it had
            values["budget"] = budget.as_dict()
        return {**values, "tokens_per_layer": list(self.tokens_per_layer)}


def save_records(path: str | Path, records: Iterable[Record], *, append: bool = False) -> Path:
    """Write records as JSON lines, all or nothing. append=True keeps what the file already holds, also when several
    processes append at once. CannotRun on a full disk or a folder that cannot be written; the old file is then
    untouched."""
    path = Path(path)
    lines = [record.to_json() for record in records]
    if not append:
        return write_atomic(path, "".join(line + "\n" for line in lines))
    with _locked(path.parent):
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        before += "\n" if before and not before.endswith("\n") else ""
        return write_atomic(path, before + "".join(line + "\n" for line in lines))


def load_records(path: str | Path) -> list[Record]:
    """The records of one file, or of every .json and .jsonl below a folder in the order of their names (per-sample
    logs, *.samples.jsonl, are left out; a folder that does not exist yet holds none). Errors name the file and the
    line."""
    path = Path(path)
    if path.is_dir() or (not path.exists() and not path.suffix):
        files = sorted(
            f
            for f in path.rglob("*.json*")
            if f.suffix in (".json", ".jsonl") and not f.name.endswith(".samples.jsonl")
        )
        return [record for file in files for record in load_records(file)]
    if not path.exists():
        raise CannotRun(
            f"there is no records file {path}", fix="run the experiment that writes it; ./reproduce.sh list names them"
        )
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                records.append(Record.from_json(line))
            except BadUsage as error:
                raise CannotRun(
                    f"{path}, line {number}: {error.what}", fix="delete the file and run its experiment again"
                ) from error
    return records


def write_atomic(path: str | Path, content: str | bytes) -> Path:
    """Replace a file as a whole: written under another name in the same folder, flushed to disk, moved into place. Text
    is written as UTF-8."""
    path = Path(path)
    draft: Path | None = None
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
    except BaseException as error:
        if draft is not None:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _cannot_write(path, error) from error
        raise
    return path


def _cannot_write(path: Path, error: OSError) -> CannotRun:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CannotRun(
            f"the disk is full: {path} could not be written. Everything finished before it is kept",
            fix="free some space and run the same command again, it continues where it stopped",
        )
    return CannotRun(
        f"{path} cannot be written ({error.strerror or error})",
        fix="make its folder writable, or run from a checkout that is",
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's advisory lock; where the file system has none (some network mounts), go on without."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("model", "model_revision", "benchmark", "scorer", "decoder", "dtype"), (str,)),
    **dict.fromkeys(("attention", "created", "code"), (str,)),
    **dict.fromkeys(("frames", "seed"), (int, type(None))),
    **dict.fromkeys(("provenance", "extra"), (Mapping,)),
    **dict.fromkeys(("method", "budget"), (Mapping, type(None))),
    "tokens_per_layer": (list, tuple),
}
"""What a field holds in a file, for the fields that ``Record`` itself takes as they are."""


def _kinds(values: Mapping[str, Any]) -> None:
    """A file is written by anybody: what has another shape is refused here, not where it is used."""
    for name, kinds in _KINDS.items():
        if name in values and not isinstance(values[name], kinds):
            raise BadUsage(f"a record's {name} is {values[name]!r}", fix="write the file again with holitom_repro.results")
    for name in ("budget", "tokens_per_layer"):
        held = values.get(name) or ()
        for number in held.values() if isinstance(held, Mapping) else held:
            _number(name, number, optional=False)


def _number(name: str, value: Any, *, optional: bool) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadUsage(f"a record's {name} is {value!r}", fix="give a finite number")
