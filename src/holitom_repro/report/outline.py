"""Which pages the site has, in which order, and what each is called."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from holitom_repro import paths
from holitom_repro.experiments.registry import EXPERIMENTS, Experiment

GROUPS = {
    "Overview": ("00_start_here", "01_method", "02_flops"),
    "Tables": ("table1", "table2"),
    "Figures": ("fig_tradeoff", "fig_inner", "fig_frames", "fig_inference"),
    "Later papers": ("mmg_vid", "hieravid"),
    "Beyond the papers": ("ablations", "findings", "explore"),
}
SHORT = {
    "00_start_here": "What can be reproduced here",
    "01_method": "Notebook of the method",
    "02_flops": "FLOPs",
    "table1": "Table 1",
    "table2": "Table 2",
    "fig_tradeoff": "Score over cost",
    "fig_inner": "Inner stage",
    "fig_frames": "More frames",
    "fig_inference": "Time and memory",
    "mmg_vid": "MMG-Vid",
    "hieravid": "HieraVid",
    "ablations": "Ablations",
    "findings": "Consistency findings",
    "explore": "Explorer",
}


@dataclass(frozen=True)
class NotebookPage:
    """One notebook: the executed copy of a tier if there is one, else its source."""

    name: str
    tier: str

    @property
    def href(self) -> str:
        return f"{self.name}.html"

    @property
    def short(self) -> str:
        return SHORT.get(self.name, self.name.replace("_", " "))

    @property
    def source(self) -> Path:
        return paths.root() / "notebooks" / f"{self.name}.ipynb"

    @property
    def copy(self) -> Path:
        return paths.runs(self.tier, "notebooks", f"{self.name}.ipynb")

    @property
    def experiment(self) -> Experiment | None:
        """The experiment that executes it; None for the explorer, which is none."""
        return next((e for e in EXPERIMENTS.values() if e.notebook == self.name), None)

    @property
    def command(self) -> str:
        """What a reader types to execute it; nothing but a report executes the explorer, which is for looking."""
        if self.experiment is None:
            return "./reproduce.sh report --execute" + (f" --tier {self.tier}" if self.tier != "tiny" else "")
        return f"./reproduce.sh {self.experiment.target}" + (f" --tier {self.tier}" if self.tier != "tiny" else "")

    @property
    def cost(self) -> str:
        """Minutes and hardware of its run in this tier, in words; empty where the tier does not offer it."""
        cost = self.experiment.costs.get(self.tier) if self.experiment else None
        return str(cost) if cost else ""

    @cached_property
    def notebook(self) -> dict[str, Any]:
        """The notebook as JSON: the executed copy, else the source."""
        return json.loads((self.copy if self.executed else self.source).read_text(encoding="utf-8"))

    @cached_property
    def executed(self) -> bool:
        return self.copy.is_file() and bool(_run_of(self.copy).get("end_time"))

    @cached_property
    def ended(self) -> str:
        """When the executed copy was finished, to the minute (UTC); empty for a source."""
        return _run_of(self.copy)["end_time"][:16].replace("T", " ") if self.executed else ""

    @cached_property
    def trial(self) -> bool:
        """Whether the copy was executed on the first few questions only."""
        return bool(self.executed and _run_of(self.copy).get("parameters", {}).get("limit"))

    @cached_property
    def failed(self) -> bool:
        return bool(self.executed and _run_of(self.copy).get("exception"))

    @cached_property
    def title(self) -> str:
        return _first(r"^# (.+)$", self.notebook) or self.short

    @cached_property
    def question(self) -> str:
        return _first(r"\*\*Question\.\*\* (.+)$", self.notebook).replace("*", "")


def notebooks(tier: str) -> dict[str, list[NotebookPage]]:
    """Group -> its pages; a notebook that no group names comes last, so that none can be forgotten."""
    there = {path.stem for path in (paths.root() / "notebooks").glob("*.ipynb")}
    grouped = {group: [name for name in names if name in there] for group, names in GROUPS.items()}
    rest = sorted(there - {name for names in GROUPS.values() for name in names})
    grouped |= {"Others": rest} if rest else {}
    return {group: [NotebookPage(name, tier) for name in names] for group, names in grouped.items() if names}


def _run_of(copy: Path) -> dict[str, Any]:
    """What papermill wrote about the run."""
    try:
        return json.loads(copy.read_text(encoding="utf-8"))["metadata"].get("papermill", {})
    except (OSError, ValueError, KeyError):
        return {}


def _first(pattern: str, notebook: dict[str, Any]) -> str:
    """The first match in the first cell that is prose."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            found = re.search(pattern, "".join(cell["source"]), flags=re.MULTILINE)
            return found[1].strip() if found else ""
    return ""
