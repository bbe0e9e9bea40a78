"""Shows the verdicts on claims: a count after each run, every claim for ``claims``, and the exit code of --strict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from holitom import paths
from holitom.experiments.registry import EXPERIMENTS, Experiment, missing_models

if TYPE_CHECKING:
    from holitom.claims import Judged
    from holitom.results import Record

MARKS = {"REPRODUCED": "✓", "WITHIN NOISE": "≈", "NOT REPRODUCED": "✗", "NOT RUN": "·", "QUOTED": "·"}
FAILED = "NOT REPRODUCED"


def of(experiment: Experiment, records: Sequence[Record], tier: str) -> list[Judged]:
    """The claims of one experiment, judged from its records."""
    from holitom.claims import claims_of

    return claims_of(experiment.name, records, tier, runs=paths.runs())


def everything(tier: str) -> list[Judged]:
    """Every claim, judged from all the cells of a tier that are finished on this machine."""
    from holitom.claims import all_claims

    records = [record for experiment in EXPERIMENTS.values() for record in finished_records(experiment, tier)]
    return all_claims(records, tier, runs=paths.runs())


def finished_records(experiment: Experiment, tier: str) -> list[Record]:
    """The records of an experiment's finished cells; computes nothing."""
    if not experiment.measures or tier not in experiment.costs or missing_models(tier):
        return []
    from holitom.evaluation.cells import CellFiles
    from holitom.experiments import cells

    files = CellFiles(paths.runs(), tier)
    return [record for cell in cells(experiment.name, tier) if (record := files.load(cell)) is not None]


def counted(judged: Sequence[Judged]) -> str:
    """``84 REPRODUCED, 2 WITHIN NOISE, 80 QUOTED``: the verdicts that occur, decisions first."""
    counts = {name: sum(str(claim.verdict) == name for claim in judged) for name in MARKS}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "no claim is judged here"


def summary(judged: Sequence[Judged], *, strict: bool) -> int:
    """Print how many claims have which verdict, and in words those that were measured or do not hold.

    Returns the exit code: 1 with ``strict`` when a checked claim does not hold, else 0.
    """
    if not judged:
        return 0
    by_source = {
        "derived (calculated again from the paper's settings and numbers)": [
            c for c in judged if c.source == "derived"
        ],
        "measured here": [c for c in judged if c.source == "measured"],
        "not checked": [c for c in judged if c.source == "quoted"],
    }
    print("claims of the paper")
    for name, claims in by_source.items():
        if claims:
            print(f"  {name}: {counted(claims)}")
    spoken = [c for c in judged if c.source == "measured" or str(c.verdict) == FAILED or c.tier == "tiny"]
    for claim in spoken:
        line(claim)
    if spoken:
        print("  all of them: ./reproduce.sh claims")
    return _code(judged, strict)


def line(claim: Judged) -> None:
    """One claim in one or two lines."""
    where = f" [{claim.tier} tier]" if claim.tier else ""
    print(f"  {MARKS[str(claim.verdict)]} {claim.verdict}{where}  {claim.statement} ({claim.place})")
    print(f"      {claim.reason}")


def show(tier: str, *, as_json: bool, strict: bool) -> int:
    """The target ``claims``: every claim with its verdict; computes nothing."""
    judged = everything(tier)
    if as_json:
        print(json.dumps([claim.to_dict() for claim in judged], indent=1, ensure_ascii=False))
        return _code(judged, strict)
    last = ""
    for claim in judged:
        if claim.experiment != last:
            print(f"\n{claim.experiment or 'other'}")
            last = claim.experiment
        line(claim)
    print()
    print(f"{len(judged)} claims, {tier} tier: {counted(judged)}")
    return _code(judged, strict)


def _code(judged: Sequence[Judged], strict: bool) -> int:
    return int(strict and any(str(claim.verdict) == FAILED for claim in judged))
