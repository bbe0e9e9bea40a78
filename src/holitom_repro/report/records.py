"""The records that claims rest on, as a page of the site: what was measured, with what, on what."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from holitom_repro import paths
from holitom_repro.claims import Judged
from holitom_repro.evaluation.cells import CellFiles

PAGE = "records.html"


@dataclass(frozen=True)
class Kept:
    """One record: its key (the cell's file name), and the JSON as it is stored."""

    key: str
    values: dict[str, Any]

    @property
    def anchor(self) -> str:
        return f"record-{self.key}"

    @property
    def setting(self) -> str:
        parts = (self.values.get("model"), self.values.get("benchmark"), f"{self.values.get('frames')} frames")
        return " · ".join(str(part) for part in parts if part)

    @property
    def value(self) -> str:
        low, high = self.values.get("low"), self.values.get("high")
        span = f" [{low:.1f}, {high:.1f}]" if low is not None and high is not None else ""
        return f"{self.values['value']:.1f}{span}, n = {self.values.get('n')}"

    @property
    def origin(self) -> str:
        """Hardware, commit, code."""
        facts = self.values.get("provenance") or {}
        commit = ((facts.get("git") or {}).get("commit") or "")[:9]
        parts = (facts.get("gpu") or facts.get("cpu"), f"commit {commit}" if commit else "")
        return " · ".join(part for part in (*parts, f"code {self.values.get('code', '')}") if part)

    @property
    def text(self) -> str:
        return json.dumps(self.values, indent=1, ensure_ascii=False)


def behind(judged: Iterable[Judged], tier: str) -> list[Kept]:
    """The records that any claim names and that are on this machine, once each."""
    keys = dict.fromkeys(key for claim in judged for key in claim.records)
    folder = CellFiles(paths.runs(), tier).folder if keys else paths.runs(tier, "cells")
    found = []
    for key in keys:
        path = folder / f"{key}.json"
        try:
            found.append(Kept(key, json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError):
            continue
    return found
