"""Shows the verdicts on claims: a count after each run, the ledger for ``claims``, and the exit code of --strict."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from holitom_repro import paths
from holitom.errors import BadUsage
from holitom_repro.experiments.registry import Experiment, missing_models
from holitom_repro.suggestions import nearest

if TYPE_CHECKING:
    from holitom_repro.claims import Judged
    from holitom_repro.claims.entries import Entry
    from holitom_repro.results import Record

MARKS = {"REPRODUCED": "✓", "WITHIN NOISE": "≈", "NOT REPRODUCED": "✗", "NOT RUN": "·", "QUOTED": "·"}
FAILED = "NOT REPRODUCED"


def of(experiment: Experiment, records: Sequence[Record], tier: str) -> list[Judged]:
    """The claims of one experiment, judged from its records."""
    from holitom_repro.claims import claims_of

    return claims_of(experiment.name, records, tier, runs=paths.runs())


def everything(tier: str, *, recorded: bool = True) -> list[Judged]:
    """Every claim, judged from what this machine has: calculations, finished cells of the tier, measurements kept in
    data/measured; recorded False leaves out the recorded verdicts of the tiny tier."""
    from holitom_repro.claims import all_claims
    from holitom_repro.claims.recorded import path

    return all_claims(cells_of(tier), tier, runs=paths.runs(), recorded=path() if recorded else None)


def cells_of(tier: str) -> list[Record]:
    """The finished cells of a tier on this machine."""
    if tier != "paper":
        from holitom_repro.claims.finished import finished_cells

        return finished_cells(paths.runs(), tier)
    from holitom_repro.experiments.registry import EXPERIMENTS  # printed scores are found by table and row: the plan knows

    return [record for experiment in EXPERIMENTS.values() for record in finished_records(experiment, tier)]


def finished_records(experiment: Experiment, tier: str) -> list[Record]:
    """The records of an experiment's finished cells; computes nothing."""
    if not experiment.measures or tier not in experiment.costs or missing_models(tier):
        return []
    from holitom_repro.evaluation.cells import CellFiles
    from holitom_repro.experiments import cells

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
        print("  all of them: ./reproduce.sh claims --details")
    return _code(judged, strict)


def line(claim: Judged, number: str = "") -> None:
    """One claim in one or two lines."""
    where = f" [{claim.tier} tier]" if claim.tier else ""
    print(f"  {MARKS[str(claim.verdict)]} {number:<5}{claim.verdict}{where}  {claim.statement} ({claim.place})")
    print(f"      {claim.reason}")


def show(tier: str, *, as_json: bool, strict: bool, details: bool = False, only: str = "") -> int:
    """The target ``claims``: the ledger with verdicts; computes nothing that takes time.

    One screen by paper; details: every claim in two lines; only: claims by number, name or pattern, in full. BadUsage
    for one that is not there.
    """
    both = with_entries(everything(tier))
    if only:
        both = [pair for word in only.split(",") for pair in _chosen(word.strip(), both)]
    shown = [claim for _, claim in both]
    if as_json:
        print(json.dumps([full(*pair) for pair in both], indent=1, ensure_ascii=False))
    elif only:
        for one, claim in both:
            _in_full(one, claim)
    elif details:
        _all_lines(both)
        print(f"\n{len(shown)} claims, {tier} tier: {counted(shown)}")
    else:
        _screen(both, tier)
    return _code(shown, strict)


def with_entries(judged: Sequence[Judged]) -> list[tuple[Entry, Judged]]:
    """Every claim with what the ledger says about it."""
    from holitom_repro.claims.entries import entries, entry

    ledger = {one.name: one for one in entries()}
    return [(ledger.get(claim.id) or entry("C?", claim), claim) for claim in judged]


def full(one: Entry, claim: Judged) -> dict[str, object]:
    """A claim with its verdict and what the ledger adds, as JSON."""
    beside = {"number": one.id, "paper": one.paper, "read": one.read, "why": one.why, "judged_by": one.tier}
    cost = {"minutes": one.minutes, "hardware": one.hardware, "command": one.command, "evidence": evidence(claim)}
    return {**claim.to_dict(), **beside, **cost}


def evidence(claim: Judged) -> list[str]:
    """Where the numbers behind a verdict lie, relative to the checkout: files of cells, recorded files, or the printed
    numbers that were calculated with."""
    if claim.records:
        plain = [record for record in claim.records if len(record) == 16 and "/" not in record]
        cells = [f"runs/{claim.tier}/cells/{record}.json" for record in plain]
        return cells + [record for record in claim.records if record not in plain]
    if claim.source != "derived":
        return []
    if claim.id.startswith("finding-"):
        return ["src/holitom_repro/claims/findings.py", "notebooks/findings.ipynb"]
    printed = paths.data("papers", f"{claim.experiment}.csv")
    return [
        f"data/papers/{printed.name}" if printed.is_file() else "data/papers/headlines.yaml",
        "data/papers/settings.csv",
    ]


def _chosen(word: str, pairs: Sequence[tuple[Entry, Judged]]) -> list[tuple[Entry, Judged]]:
    found = [pair for pair in pairs if word.upper() == pair[0].id or fnmatch.fnmatchcase(pair[1].id, word)]
    if not found:
        names = [name for one, claim in pairs for name in (one.id, claim.id)]
        fix = "./reproduce.sh claims --details lists all"
        raise BadUsage(f"there is no claim {word!r}{nearest(word, names)}", fix=fix)
    return found


def _in_full(one: Entry, claim: Judged) -> None:
    print(f"{one.id}  {claim.id}\n  {claim.statement}\n  {claim.place}; read from: {one.read}")
    print(
        f"  {MARKS[str(claim.verdict)]} {claim.verdict}{f' [{claim.tier} tier]' if claim.tier else ''}: {claim.reason}"
    )
    printed = f"printed {claim.printed:g} {claim.unit}" if claim.printed is not None else "no single number is printed"
    here = f", here {claim.computed:.4g} {claim.unit}" if claim.computed is not None else ""
    print(f"  {printed}{here}; allowed: {one.tolerance} ({one.why})")
    for place in evidence(claim)[:4]:
        print(f"  record  {place}")
    if len(evidence(claim)) > 4:
        print(f"          and {len(evidence(claim)) - 4} more (--json)")
    print(f"  judged  {judged_by(one)}\n")


def judged_by(one: Entry) -> str:
    """Command, time and hardware that judge a claim; or that nothing here does."""
    if not one.command:
        return "by nothing in this kit"
    took = (
        "under a minute"
        if one.minutes < 1
        else f"{one.minutes:g} min"
        if one.minutes < 120
        else f"{one.minutes / 60:g} h"
    )
    return f"{one.command}: {took}, {one.hardware}"


def _all_lines(pairs: Sequence[tuple[Entry, Judged]]) -> None:
    last = ""
    for one, claim in pairs:
        if claim.experiment != last:
            print(f"\n{claim.experiment or 'other'}")
            last = claim.experiment
        line(claim, one.id)
        if str(claim.verdict) == "NOT RUN":
            print(f"      would judge it: {judged_by(one)}")


def _screen(pairs: Sequence[tuple[Entry, Judged]], tier: str) -> None:
    from holitom_repro import screen
    from holitom_repro.claims.entries import OURS, PAPERS

    words = ("reproduced", "within noise", "not reproduced", "not run", "quoted")
    rows = []
    for paper in (*PAPERS, OURS):
        mine = [str(claim.verdict) for one, claim in pairs if one.paper == paper]
        if mine:
            rows.append((paper, str(len(mine)), *(str(mine.count(name) or "–") for name in MARKS), ""))
    screen.rows(rows, header=("paper", "claims", *words, ""))
    print()
    for one, claim in pairs:
        if str(claim.verdict) == FAILED:
            line(claim, one.id)
    waiting: dict[str, list[str]] = {}
    for one, claim in pairs:
        if str(claim.verdict) == "NOT RUN":
            waiting.setdefault(judged_by(one), []).append(one.id)
    if waiting:
        print("not run here; what would judge them:")
    for how, ids in waiting.items():
        print(f"  {how}\n      {', '.join(ids[:12])}{f' and {len(ids) - 12} more' if len(ids) > 12 else ''}")
    shown = [claim for _, claim in pairs]
    print(f"\n{len(shown)} claims, {tier} tier: {counted(shown)}")
    print("one in full: --only C12; all: --details; as data: --json; what each says: data/papers/claims.yaml")


def _code(judged: Sequence[Judged], strict: bool) -> int:
    return int(strict and any(str(claim.verdict) == FAILED for claim in judged))
