"""The claims for the site: by paper and experiment, each verdict with its reason, its rule and where it comes from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from holitom_repro import verdicts
from holitom_repro.claims import Judged, Verdict
from holitom_repro.claims.entries import OURS, PAPERS, Entry
from holitom_repro.report.outline import SHORT, NotebookPage
from holitom_repro.tables.verdicts import COUNTS, readable

KEYS = {
    Verdict.REPRODUCED: "reproduced",
    Verdict.WITHIN_NOISE: "noise",
    Verdict.NOT_REPRODUCED: "not",
    Verdict.NOT_RUN: "notrun",
    Verdict.QUOTED: "quoted",
}
GLYPHS = dict(zip(KEYS, "✓≈✗–·", strict=True))
MEANINGS = {
    Verdict.REPRODUCED: "calculated again or measured here, inside the tolerance that was stated first",
    Verdict.WITHIN_NOISE: "the measurement allows the claim and its contrary",
    Verdict.NOT_REPRODUCED: "calculated again or measured here, outside the tolerance",
    Verdict.NOT_RUN: "this machine has no measurement of it; the reason names the command that would make one",
    Verdict.QUOTED: "printed in a paper and not checked here",
}
TITLES = {OURS: "This kit's own questions"}
PARTS = {"headlines": "Headlines"}
SHOWN = 6  # pieces of evidence that are listed; the rest is counted
Address = Callable[[str], str | None]


@dataclass(frozen=True)
class Line:
    """One claim, ready for the page. href: the page of its experiment; evidence: (name, address in the site or None)
    of what its verdict rests on."""

    entry: Entry
    claim: Judged
    href: str
    evidence: tuple[tuple[str, str | None], ...] = ()

    @property
    def key(self) -> str:
        return KEYS[self.claim.verdict]

    @property
    def glyph(self) -> str:
        return GLYPHS[self.claim.verdict]

    @property
    def anchor(self) -> str:
        return "claim-" + re.sub(r"[^\w-]+", "-", self.claim.id)

    @property
    def judge(self) -> str:
        """As HTML: the command, time and hardware that judge it."""
        return commands(verdicts.judged_by(self.entry))

    @property
    def printed(self) -> str:
        return f"{self.claim.printed:g} {unit(self.claim.unit)}".strip() if self.claim.printed is not None else "–"

    @property
    def here(self) -> str:
        """Our value with its interval, which may stand in a line of its own but is never broken."""
        claim = self.claim
        if claim.computed is None:
            return "–"
        text = f"{claim.computed:z.{0 if claim.unit in COUNTS else 2}f} {unit(claim.unit)}".strip()
        known = claim.low is not None and claim.high is not None
        return readable(f"{text} [{claim.low:z.2f},\N{NO-BREAK SPACE}{claim.high:z.2f}]" if known else text)

    @property
    def reason(self) -> str:
        """As HTML: commands are set as code."""
        return commands(readable(self.claim.reason))

    @property
    def origin(self) -> str:
        """Where the value comes from, in words."""
        if self.claim.source == "measured":
            return f"measured, {self.claim.tier} tier"
        return {"derived": "calculated again from printed settings and numbers"}.get(self.claim.source, "not checked")


@dataclass(frozen=True)
class Group:
    """The claims of one paper in one experiment."""

    paper: str
    title: str
    href: str
    lines: tuple[Line, ...]

    def count(self, verdict: Verdict) -> int:
        return sum(line.claim.verdict is verdict for line in self.lines)

    @property
    def verdicts(self) -> list[tuple[str, str, int]]:
        """(key, glyph and word, count) of the verdicts that occur."""
        return [(KEYS[v], f"{GLYPHS[v]} {v}", n) for v in KEYS if (n := self.count(v))]


def groups(both: Sequence[tuple[Entry, Judged]], pages: Iterable[NotebookPage], address: Address) -> list[Group]:
    """address: a piece of evidence, as ``verdicts.evidence`` names it -> where it is in the site, or None."""
    by_experiment = {page.experiment.name: page for page in pages if page.experiment}
    parts: dict[tuple[str, str], list[Line]] = {}
    for one, claim in both:
        page = by_experiment.get(claim.experiment)
        found = verdicts.evidence(claim)
        shown = tuple((name.split("/")[-1], address(name)) for name in found[:SHOWN])
        shown += ((f"and {len(found) - SHOWN} more", None),) if len(found) > SHOWN else ()
        line = Line(one, claim, f"{page.href}#verdict" if page else "", shown)
        parts.setdefault((one.paper, claim.experiment), []).append(line)
    made = []
    for (paper, experiment), lines in parts.items():
        page = by_experiment.get(experiment)
        title = page.short if page else PARTS.get(experiment) or SHORT.get(experiment, experiment or "Others")
        made.append(Group(TITLES.get(paper, paper), title, page.href if page else "", tuple(lines)))
    order = [TITLES.get(paper, paper) for paper in (*PAPERS, OURS)]
    return sorted(made, key=lambda group: order.index(group.paper))  # stable: within a paper as the ledger has them


def matrix(made: Sequence[Group]) -> list[tuple[str, list[int]]]:
    """Paper -> how many claims have each verdict, in the order of KEYS."""
    rows: dict[str, list[int]] = {}
    for group in made:
        row = rows.setdefault(group.paper, [0] * len(KEYS))
        for place, verdict in enumerate(KEYS):
            row[place] += group.count(verdict)
    return list(rows.items())


def unit(name: str) -> str:
    return {"points": "", "% of the score": "%"}.get(name, name)


def commands(text: str) -> str:
    """Plain text as HTML, with ./reproduce.sh and its words set as code."""
    pattern = r"\./reproduce\.sh [\w-]+(?: --?[\w-]+(?: (?:tiny|speed|paper|\d+))?)*"
    return re.sub(pattern, lambda found: f"<code>{found[0]}</code>", escape(text, quote=False))
