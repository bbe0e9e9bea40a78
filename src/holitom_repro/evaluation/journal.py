"""The answers of a cell that is still being computed, one line each, so that a killed run continues at its question.

``runs/<tier>/cells/<key>.part/<rank>-<pid>.jsonl``: every process appends to a file of its own and reads all of them.
The key names everything that can change an answer, so lines of another setting are never taken for this one's.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holitom.attaching.stats import SampleStats
from holitom.flops import LLMShape

_TUPLES = ("per_layer", "newlines_per_layer", "prompt_per_layer", "cached_per_layer")


@dataclass(frozen=True)
class Entry:
    """One answered question: its task and document, the video file and its decoder's notes, the text before any
    scoring, and what the reduction did."""

    task: str
    doc_id: int
    video: str
    notes: tuple[str, ...]
    text: str
    output_tokens: int
    sample: SampleStats

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Entry:
        sample = dict(values["sample"])
        sample |= {name: tuple(sample[name]) for name in _TUPLES} | {"shape": LLMShape(**sample["shape"])}
        return cls(**{**values, "notes": tuple(values["notes"]), "sample": SampleStats(**sample)})


@dataclass
class Kept:
    """What earlier runs left: entries by task and document, and how often each stage ran and took tokens away."""

    entries: dict[tuple[str, int], Entry] = dataclasses.field(default_factory=dict)
    calls: Counter[str] = dataclasses.field(default_factory=Counter)
    removed: Counter[str] = dataclasses.field(default_factory=Counter)


class Journal:
    """The journal of one cell in ``folder``; ``rank``: of this process."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder = folder
        self.file = folder / f"{rank}-{os.getpid()}.jsonl"

    def read(self) -> Kept:
        """Everything that earlier runs finished, also those with another number of processes. A line that a kill cut
        short is left out, and its questions are asked again."""
        kept = Kept()
        for batch in self._batches():
            try:
                entries = [Entry.from_dict(values) for values in batch["answers"]]
                calls, removed = Counter(batch["calls"]), Counter(batch["removed"])
            except (KeyError, TypeError):
                continue
            kept.entries |= {(entry.task, entry.doc_id): entry for entry in entries}
            kept.calls.update(calls)
            kept.removed.update(removed)
        return kept

    def add(self, entries: Sequence[Entry], calls: Mapping[str, int], removed: Mapping[str, int]) -> None:
        """Append one batch, in one write; calls and removed are those of this batch."""
        self.folder.mkdir(parents=True, exist_ok=True)
        values = {"answers": [entry.as_dict() for entry in entries], "calls": dict(calls), "removed": dict(removed)}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, ensure_ascii=False) + "\n")

    def clear(self) -> None:
        """Forget everything: the cell is finished, or is to be computed afresh."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _batches(self) -> Iterator[dict[str, Any]]:
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    found = json.loads(line)
                except ValueError:
                    continue
                if isinstance(found, dict):
                    yield found
