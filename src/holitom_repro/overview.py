"""``list``: every experiment with its question, the claims it touches, its cost in each tier, and its status here."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from holitom_repro import machine
from holitom_repro.experiments.registry import EXPERIMENTS, TIERS, Experiment
from holitom_repro.experiments.status import status
from holitom_repro.screen import duration


def entry(experiment: Experiment, tier: str) -> dict[str, Any]:
    """Everything ``list`` knows about one experiment, as JSON."""
    return {
        "target": experiment.target,
        "question": experiment.question,
        "notebook": f"notebooks/{experiment.notebook}.ipynb",
        "claims": experiment.claims,
        "costs": {name: asdict(cost) for name, cost in experiment.costs.items()},
        "tier": tier,
        "status": asdict(status(experiment, tier)),
    }


def show(tier: str, *, as_json: bool = False) -> int:
    """Print the overview; always exit code 0."""
    if as_json:
        print(json.dumps([entry(experiment, tier) for experiment in EXPERIMENTS.values()], indent=1))
        return 0
    print(f"{len(EXPERIMENTS)} experiments; status of the {tier} tier on this machine\n")
    for experiment in EXPERIMENTS.values():
        found = status(experiment, tier)
        took = f" (took {duration(found.seconds)} here)" if found.seconds and found.words == "done" else ""
        print(f"{experiment.target:<13} {experiment.question}")
        costs = "; ".join(f"{name}: {cost}" for name, cost in experiment.costs.items())
        print(f"{'':<13} cost    {costs}")
        print(f"{'':<13} claims  {experiment.claims}")
        print(f"{'':<13} status  {found.words}{took}\n")
    for name in TIERS:
        missing = machine.lacking(name)
        print(f"{name:<6} tier: {'can run here' if not missing else 'needs ' + ' and '.join(missing)}")
    print("\nrun one: ./reproduce.sh <name> [--tier tiny|speed|paper]; see first what it would do: --dry-run")
    return 0
