"""The ledger data/papers/claims.yaml with its verdicts: judged in notebooks, kept, corrected, shown.

Three kinds of words, never counted together: a calculation from printed numbers is CHECKED or DIFFERS; a score or a
time of the papers' models is REPRODUCED, WITHIN NOISE, NOT REPRODUCED or NOT RUN; a trend HOLDS, FAILS or stays OPEN on
the tiny model. A measurement is judged in the notebook that made it (``judged``); the command ``claims`` reads what
notebooks left here, or what the repository has recorded.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from holitom.errors import CannotRun
from holitom_repro import paths
from holitom_repro.code import present_code
from holitom_repro.evaluation.statistics import holm
from holitom_repro.judging import TIER, WORDS, Claim, Verdict, judge, load
from holitom_repro.records import write_atomic
from holitom_repro.style import VERDICTS

__all__ = ["Claim", "Verdict", "claims_command", "judge", "judged", "ledger", "load", "record"]


def judged(notebook: str, scores: pd.DataFrame | None = None, times: pd.DataFrame | None = None) -> pd.DataFrame:
    """The verdicts on a notebook's claims: its calculations, its times, and what the tier of ``scores`` can judge. A
    row each: id, claim, printed, ours, interval, verdict, expected, why.

    Also written to runs/<tier>/verdicts/<notebook>.json under "now"; what was decided before and cannot be now stays
    there under "decided", which is what ``ledger`` reads.
    """
    measured = next((frame for frame in (scores, times) if frame is not None and len(frame)), None)
    tier = "tiny" if measured is None else str(measured["tier"].iloc[0])
    mine = [c for c in load() if c.notebook == notebook and (c.kind in ("checked", "time") or TIER[c.kind] == tier)]
    found = _corrected([judge(claim, scores, times) for claim in mine], _kept().values())
    path = paths.runs(tier, "verdicts", f"{notebook}.json")
    decided = {one.id: one for one in (*read(path), *found) if one.verdict != "NOT RUN"}
    _write(path, now=found, decided=decided.values())
    interval = ["" if one.low is None else f"[{one.low:z.2f}, {one.high:z.2f}]" for one in found]
    rows = [
        (claim.id, claim.statement, claim.printed, one.ours, between, one.verdict, claim.expected, one.why)
        for claim, one, between in zip(mine, found, interval, strict=True)
    ]
    return pd.DataFrame(rows, columns=["id", "claim", "printed", "ours", "interval", "verdict", "expected", "why"])


def read(path: Path, part: str = "decided") -> list[Verdict]:
    """What a file of verdicts holds; nothing where there is none. CannotRun for a damaged one."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))[part] if path.is_file() else []
        return [Verdict(**one) for one in held]
    except (ValueError, TypeError, KeyError) as error:
        raise CannotRun(f"{path} holds no verdicts, it is damaged", fix="delete it, or restore it from git") from error


def ledger() -> list[tuple[Claim, Verdict]]:
    """Every claim with its verdict: calculated now, else as a notebook left it here with the present code, else as
    recorded in data/measured/verdicts.json, else NOT RUN."""
    kept = _kept()
    found = [judge(claim) if claim.kind == "checked" else kept.get(claim.id) or judge(claim) for claim in load()]
    return list(zip(load(), _corrected(found), strict=True))


def record() -> Path:
    """Keep what notebooks decided here with the present code as the recorded verdicts. CannotRun when a recorded one of
    a kind that was measured here would stay as another code left it."""
    here, path, kinds = _kept(recorded=False), paths.data("measured", "verdicts.json"), {c.id: c.kind for c in load()}
    before = {one.id: one for one in read(path) if one.id in kinds}
    measured = {kinds[name] for name in here}
    if lost := [name for name in before if name not in here and kinds[name] in measured]:
        raise CannotRun(f"not measured with the present code: {', '.join(lost)}", fix="run ./reproduce.sh all first")
    return _write(path, decided=(before | here).values())


def claims_command(as_json: bool = False, strict: bool = False) -> int:
    """The target ``claims``: print the ledger, as a list of objects with ``as_json``. The exit code: 1 with ``strict``
    when a verdict is not the expected one, else 0."""
    pairs = ledger()
    odd = unexpected(one for _, one in pairs)
    if as_json:
        names = ("id", "paper", "kind", "statement", "verdict", "expected")
        rows = [{**claim.model_dump(), "verdict": one.verdict} for claim, one in pairs]
        print(json.dumps([{name: row[name] for name in names} for row in rows], indent=1, ensure_ascii=False))
    else:
        for kind in WORDS:
            mine = [one for claim, one in pairs if claim.kind == kind]
            Console().print(table(mine, f"{kind}: {counted(mine)}"), "")
        print("\n".join(odd))
    return int(strict and bool(odd))


def table(verdicts: Iterable[Verdict], title: str | None = None) -> Table:
    """Verdicts for a terminal: the word, the claim, and why."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False)
    for one in verdicts:
        glyph, colour = VERDICTS[one.verdict]
        said = Text(f"{one.id}: {one.statement}\n").append(one.why, "dim")
        made.add_row(Text(f"{glyph} {one.verdict}", colour, no_wrap=True), said)
    return made


def counted(verdicts: Iterable[Verdict]) -> str:
    """ "18 HOLDS, 13 OPEN"."""
    counts = Counter(one.verdict for one in verdicts)
    return ", ".join(f"{counts[word]} {word}" for word in VERDICTS if word in counts)


def unexpected(verdicts: Iterable[Verdict]) -> list[str]:
    """A line for each verdict that is not the one that the ledger expects."""
    expected = {claim.id: claim.expected for claim in load()}
    odd = [one for one in verdicts if one.verdict != expected[one.id]]
    return [f"{one.id}: {one.verdict}, expected {expected[one.id]}" for one in odd]


def _corrected(verdicts: Iterable[Verdict], others: Iterable[Verdict] = ()) -> list[Verdict]:
    """Trends after Holm's correction over all trends of the ledger that can be decided. others: what was reached
    elsewhere; a trend that nobody measured counts with p = 1."""
    found = list(verdicts)
    known = {one.id: one.p for one in (*others, *found) if one.p is not None}
    family = [claim.id for claim in load() if claim.kind == "trend" and not claim.undecided]
    adjusted = dict(zip(family, holm([known.get(name, 1.0) for name in family]), strict=True))
    for number, one in enumerate(found):
        if one.p is not None:
            said = f"p = {one.p:.2g}, {adjusted[one.id]:.2g} after Holm's correction for {len(family)} trends"
            word = one.leans if adjusted[one.id] < 0.05 else "OPEN"
            why = f"{one.why.partition('; p = ')[0]}; {said}"
            found[number] = one.model_copy(update={"verdict": word, "why": why})
    return found


def _kept(recorded: bool = True) -> dict[str, Verdict]:
    """What notebooks decided here with the present code, else what is recorded, on claims worded as they are now."""
    found = {}
    for one in read(paths.data("measured", "verdicts.json")) if recorded else ():
        found[one.id] = one.model_copy(update={"why": f"recorded {one.day}, code {one.code[:8]}: {one.why}"})
    for path in sorted(paths.runs().glob("*/verdicts/*.json")):
        found |= {one.id: one for one in read(path) if one.code == present_code()}
    return {claim.id: one for claim in load() if (one := found.get(claim.id)) and one.statement == claim.statement}


def _write(path: Path, **lists: Iterable[Verdict]) -> Path:
    held = {name: [one.model_dump() for one in verdicts] for name, verdicts in lists.items()}
    return write_atomic(path, json.dumps(held, indent=1, ensure_ascii=False) + "\n")
