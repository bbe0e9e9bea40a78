"""The ledger as data: an entry for every claim, with what it says, how it was read, what would judge it, and at what
cost. ``python -m holitom_repro.claims.write`` makes data/papers/claims.yaml from the printed numbers and the declared trends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from holitom_repro import paper, paths
from holitom_repro.claims.judging import Judged
from holitom_repro.claims.ledger import all_claims
from holitom_repro.experiments.registry import CPU, EXPERIMENTS, Cost, target
from holitom_repro.results import Number

NOWHERE = "none"
"""The tier of a claim that this kit cannot judge: another model, an unnamed GPU, training, answers that nobody has."""
PAPERS = (
    "HoliTom",
    "MMG-Vid",
    "HieraVid",
    "FastV",
    "PyramidDrop",
    "DyCoke",
    "VisionZip",
    "PruneVid",
    "FastVID",
    "ToMe",
    "InfoMerge",
)
OURS = "this kit"
WHY = {
    "derived": "a calculation has no noise, only the rounding of the print",
    "score": "scores of one model move by as much between versions of harness, decoder and library",
    "time": "the paper does not name its GPU",
    "quoted": "nothing is compared",
}
_SCORES = tuple(f"/{name}" for name in paper.BENCHMARKS if name not in paper.OTHER_QUESTIONS)
_OWN = re.compile(r": (nothing printed|nothing;|no random row)|: nothing$")
"""How the place of a trend ends that no paper prints: it is this kit's."""
_HEADER = """\
# Every claim that this kit knows: what it says, where it stands, how it was read, what would judge it and at what cost.
# Written by python -m holitom_repro.claims.write from the tables beside it, trends*.yaml and headlines.yaml: edit those.
# Numbers (C1 ...) stay with their claims. tier "any": calculated everywhere; "none": this kit cannot judge it.
# Verdicts are not kept here: ./reproduce.sh claims
"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One claim. id: C1 ...; name: as ``Judged.id``; read: how the printed number was read; tier: that can judge it;
    minutes and hardware: of the experiment there, with everything that it shares."""

    id: str
    name: str
    paper: str
    place: str
    statement: str
    value: Number | None
    unit: str
    read: str
    tolerance: str
    why: str
    experiment: str
    tier: str
    minutes: Number
    hardware: str

    @property
    def command(self) -> str:
        """What judges it, "" where nothing does."""
        if self.tier in ("any", NOWHERE) or self.experiment not in EXPERIMENTS:
            return "" if self.tier == NOWHERE else "./reproduce.sh claims"
        return f"./reproduce.sh {target(self.experiment)} --tier {self.tier}"


def path() -> Path:
    return paths.data("papers", "claims.yaml")


def entries(file: Path | None = None) -> list[Entry]:
    """The ledger as committed."""
    held = yaml.load((file or path()).read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return [Entry(**values) for values in held["claims"]]


def made(numbers: Mapping[str, str] | None = None) -> list[Entry]:
    """The ledger as the data say it should be. numbers: name -> id of those that have one; others get the next."""
    held = dict(numbers or {})
    last = max((int(number[1:]) for number in held.values()), default=0)
    found = []
    for claim in all_claims([], "tiny"):
        if claim.id not in held:
            last += 1
            held[claim.id] = f"C{last}"
        found.append(entry(held[claim.id], claim))
    return found


def entry(number: str, claim: Judged) -> Entry:
    """What the ledger says about a claim, whatever its verdict here."""
    tier, kind = _tier(claim)
    cost = _cost(claim.experiment, tier)
    tolerance, _, why = claim.tolerance.partition(" (") if claim.id.startswith("trend-") else (claim.tolerance, "", "")
    return Entry(
        id=number,
        name=claim.id,
        paper=paper_of(claim),
        place=claim.place,
        statement=claim.statement,
        value=claim.printed,
        unit=claim.unit,
        read=claim.reading or ("declared" if claim.id.startswith("trend-") else "text"),
        tolerance=tolerance,
        why=why.removesuffix(")") or WHY[kind],
        experiment=claim.experiment,
        tier=tier,
        minutes=cost.minutes,
        hardware=cost.hardware,
    )


def paper_of(claim: Judged) -> str:
    """Whose claim it is: the paper that its place begins with, or this kit."""
    if claim.id.startswith("trend-") and _OWN.search(claim.place):
        return OURS
    return next((name for name in PAPERS if re.match(rf"{re.escape(name)}\b", claim.place)), OURS)


def text(found: Sequence[Entry]) -> str:
    """The file's content."""
    lines = [_HEADER, "claims:"]
    for one in found:
        values: dict[str, Any] = asdict(one)
        block = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100_000).rstrip("\n").split("\n")
        lines += [f"  {'- ' if place == 0 else '  '}{line}" for place, line in enumerate(block)]
    return "\n".join(lines) + "\n"


def _tier(claim: Judged) -> tuple[str, str]:
    """The tier that can judge a claim, and the kind of reason for its tolerance."""
    tier, kind = _wanted(claim)
    known = EXPERIMENTS.get(claim.experiment)
    offered = tier == "any" or (known is not None and tier in known.costs)
    return (tier if offered else NOWHERE), kind


def _wanted(claim: Judged) -> tuple[str, str]:
    if claim.id.startswith("trend-") or claim.tier == "tiny":
        return "tiny", "score"
    if claim.id.endswith("/measured") or claim.tier == "speed":
        return "speed", "time"
    if claim.source == "derived":
        return "any", "derived"
    if claim.unit == "points" and claim.experiment in ("table1", "table2") and claim.id.endswith(_SCORES):
        return "paper", "score"
    return NOWHERE, "time" if claim.unit in ("ms", "tokens/s", "x") else "quoted"


def _cost(experiment: str, tier: str) -> Cost:
    if tier in ("any", NOWHERE):
        return Cost(0 if tier == NOWHERE else 0.1, "" if tier == NOWHERE else CPU)
    return EXPERIMENTS[experiment].costs[tier]
