"""Takes outputs, counters and traces of a run out of notebooks: ``python -m holitom_repro.strip notebooks/*.ipynb``.

For git: sources are stored without results (the pre-commit hook calls this). Needs nothing but the standard library.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LEFT_BY_RUNS = ("papermill", "widgets", "signature")
CELL_MARKS = ("execution", "papermill", "collapsed", "scrolled", "ExecuteTime")


def stripped(notebook: dict[str, Any]) -> dict[str, Any]:
    """A copy without outputs, execution counts, injected parameters and what runs leave in the metadata."""
    kept = {name: value for name, value in notebook["metadata"].items() if name not in LEFT_BY_RUNS}
    cells = [_cell(cell) for cell in notebook["cells"] if "injected-parameters" not in _tags(cell)]
    return {**notebook, "metadata": kept, "cells": cells}


def strip(path: Path) -> bool:
    """Strip a file in place; True when that changed it."""
    before = path.read_text(encoding="utf-8")
    notebook = json.loads(before)
    after = stripped(notebook)
    if after == notebook:
        return False
    path.write_text(json.dumps(after, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return True


def _cell(cell: dict[str, Any]) -> dict[str, Any]:
    metadata = {name: value for name, value in cell["metadata"].items() if name not in CELL_MARKS}
    made = {**cell, "metadata": metadata}
    return {**made, "outputs": [], "execution_count": None} if cell["cell_type"] == "code" else made


def _tags(cell: dict[str, Any]) -> list[str]:
    return list(cell.get("metadata", {}).get("tags", []))


def main(words: Sequence[str]) -> int:
    """Strip every file named; 1 when any had to be changed, so that a commit stops and can be looked at."""
    changed = [word for word in words if strip(Path(word))]
    for word in changed:
        print(f"{word}: outputs taken out; add it again")
    return int(bool(changed))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
