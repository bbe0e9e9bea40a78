"""What a notebook's first cell says a tier takes, from the registry: ``python -m holitom_repro.report.tiers`` writes it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from holitom_repro import paths
from holitom_repro.experiments.registry import EXPERIMENTS, TIERS, Cost, Experiment

ROW = re.compile(r"^\| (tiny|speed|paper)\b")


def minutes(experiment: Experiment, tier: str) -> str:
    """ "9, seconds when cached (estimate)", "40 h (estimate)", "0.5": the cell of a tier that offers the experiment."""
    cost = experiment.costs[tier]
    words = _number(cost.minutes)
    if experiment.name == "start":
        whole = sum(e.costs["tiny"].minutes for e in EXPERIMENTS.values() if "tiny" in e.costs)
        return f"{words} (this notebook), about {5 * round(whole / 5)} (all)"
    words += ", seconds when cached" if experiment.measures and tier == "tiny" else ""
    return words + ("" if cost.measured else " (estimate)")


def told(text: str, experiment: Experiment) -> str:
    """The first cell with the last two columns of its tier table, minutes and hardware, as the registry has them.

    Rows of a tier that does not offer the experiment stay as they are; so do the start page's rows of other tiers,
    which are about all experiments.
    """
    lines = text.split("\n")
    for place, line in enumerate(lines):
        found = ROW.match(line)
        offered = [
            tier for tier in TIERS if tier in experiment.costs and (experiment.name != "start" or tier == "tiny")
        ]
        if found and found[1] in offered:
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            cost: Cost = experiment.costs[found[1]]
            cells[-2:] = [minutes(experiment, found[1]), cost.hardware]
            lines[place] = "| " + " | ".join(cells) + " |"
    return "\n".join(lines)


def update(path: Path, experiment: Experiment) -> bool:
    """Write a notebook's table anew; True when that changed it."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    source = notebook["cells"][0]["source"]
    before = source if isinstance(source, str) else "".join(source)
    after = told(before, experiment)
    if after == before:
        return False
    notebook["cells"][0]["source"] = after if isinstance(source, str) else after.splitlines(keepends=True)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return True


def _number(minutes: float | int) -> str:
    return f"{minutes:g}" if minutes < 120 else f"{minutes / 60:g} h"


def main() -> int:
    for experiment in EXPERIMENTS.values():
        path = paths.root() / "notebooks" / f"{experiment.notebook}.ipynb"
        if path.is_file() and update(path, experiment):
            print(f"wrote {path.relative_to(paths.root())}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
