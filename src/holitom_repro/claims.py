"""The ledger data/papers/claims.yaml with its verdicts: judged in notebooks, kept, corrected, shown.

Three kinds of words, never counted together: a calculation from printed numbers is CHECKED or DIFFERS; a score or a
time of the papers' models is REPRODUCED, WITHIN NOISE, NOT REPRODUCED or NOT RUN; a trend HOLDS, FAILS or stays OPEN on
the tiny model. A measurement is judged in the notebook that made it (``judged``); the command ``claims`` reads what
notebooks left here, or what the repository has recorded.

A measurement decides only what it is about: the setting with the claim's parameters, on every question, with the
unreduced model of the same model, questions and frames beside it. All else is NOT RUN, with the reason.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from holitom.errors import CannotRun
from holitom_repro import papers, paths
from holitom_repro.code import present_code
from holitom_repro.evaluation.statistics import Estimate, balanced, holm, paired_difference, retained_share
from holitom_repro.papers import STANDS_FOR
from holitom_repro.records import Record, Store, write_atomic
from holitom_repro.style import VERDICTS
from holitom_repro.timing.rows import SAME

WORDS = {
    "checked": ("CHECKED", "DIFFERS"),
    "score": ("REPRODUCED", "WITHIN NOISE", "NOT REPRODUCED", "NOT RUN"),
    "time": ("REPRODUCED", "WITHIN NOISE", "NOT REPRODUCED", "NOT RUN"),
    "trend": ("HOLDS", "FAILS", "OPEN", "NOT RUN"),
}
TIER = {"score": "paper", "time": "speed", "trend": "tiny"}
COMPARED = {column: task for column, task in papers.TASKS.items() if column not in papers.OTHER_QUESTIONS}
"""Score column of Tables 1 and 2 -> the paper tier's task that asks the same questions."""
FRAMES = {"video": 64, "video-7b": 64}  # the others see 32
WIDEST = 10.0  # points; a wider 95 % interval agrees with nearly any score
FEWEST_VIDEOS = 30  # with fewer the intervals themselves are not to be trusted


class Claim(BaseModel):
    """One entry of the ledger; the head of its file says what the fields mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    paper: str
    kind: Literal["checked", "score", "time", "trend"]
    statement: str
    place: str
    notebook: str
    test: str
    model: str = "onevision"
    benchmarks: tuple[str, ...] = tuple(papers.TINY_TASKS.values())
    compute: str = ""
    a: str = ""
    b: str = ""
    c: str = ""
    d: str = ""
    printed: str = ""
    threshold: float
    reason: str
    undecided: str = ""
    note: str = ""
    takes: str
    expected: str

    @property
    def sides(self) -> list[str]:
        """The settings that it compares."""
        return [side for side in (self.a, self.b, self.c, self.d) if side]


class Verdict(BaseModel):
    """What came out for a claim. ours: our number with its 95 % interval [low, high]; p: of a trend, two-sided, against
    its threshold, uncorrected; leans: its verdict where p is small enough. code, day: of the judging."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    statement: str
    verdict: str
    why: str
    ours: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    leans: str = ""
    code: str = ""
    day: str = ""


@cache
def load() -> list[Claim]:
    """The ledger."""
    return [Claim(**entry) for entry in _file()["claims"]]


@cache
def _file() -> dict[str, Any]:
    return yaml.safe_load(paths.data("papers", "claims.yaml").read_text(encoding="utf-8"))


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
    rows = [claim.model_dump() | one.model_dump() for claim, one in zip(mine, found, strict=True)]
    frame = pd.DataFrame(rows, columns=["id", "statement", "printed", "ours", "verdict", "expected", "why"])
    frame.insert(4, "interval", ["" if one.low is None else f"[{one.low:z.2f}, {one.high:z.2f}]" for one in found])
    return frame.rename(columns={"statement": "claim"})


def read(path: Path, part: str = "decided") -> list[Verdict]:
    """What a file of verdicts holds; nothing where there is none."""
    held = json.loads(path.read_text(encoding="utf-8"))[part] if path.is_file() else []
    return [Verdict(**one) for one in held]


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
    """The command ``claims``: print the ledger, as a list of objects with ``as_json``. The exit code: 1 with ``strict``
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
        for line in odd:
            print(line)
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


# --- how a claim is judged


class _NotRun(Exception):
    """Why a claim cannot be judged from what is there."""


def judge(claim: Claim, scores: pd.DataFrame | None = None, times: pd.DataFrame | None = None) -> Verdict:
    """One claim, from the printed numbers, a frame of ``scores.evaluate`` or one of ``timing.rows.table``. NOT RUN,
    with the reason, where they lack what it is about. A trend is not corrected for the number of trends yet."""
    try:
        if claim.kind == "checked":
            return _checked(claim)
        if claim.kind == "time":
            return _timed(claim, times)
        return _scored(claim, scores) if claim.kind == "score" else _trend(claim, scores)
    except _NotRun as why:
        return _verdict(claim, "NOT RUN", str(why))


def _verdict(claim: Claim, verdict: str, why: str, **numbers: Any) -> Verdict:
    why = f"{why}; {claim.note}" if claim.kind == "score" and claim.note else why
    made = {"code": present_code(), "day": datetime.now(UTC).date().isoformat()} if claim.kind in TIER else {}
    return Verdict(id=claim.id, statement=claim.statement, verdict=verdict, why=why, **made, **numbers)


def _checked(claim: Claim) -> Verdict:
    """compute: one of papers.CALCULATIONS, or arithmetic on printed numbers."""
    calculation = papers.CALCULATIONS.get(claim.compute)
    value, why = calculation() if calculation else (float(pd.eval(claim.compute)), claim.compute)
    if claim.test == "equal":
        holds = papers.rounds_to(value, claim.printed)
    else:
        holds = value > claim.threshold if claim.test == "above" else value < claim.threshold
    return _verdict(claim, "CHECKED" if holds else "DIFFERS", f"{value:.4g}: {why}", ours=value)


def _scored(claim: Claim, scores: pd.DataFrame | None) -> Verdict:
    """A row of a table: each comparable score against the printed one, the row as its worst; ours: their mean. No
    verdict where one of them cannot be judged: from too few questions, or where the unreduced model misses its own
    printed score, for then the evaluation differs, and not the method."""
    printed = _where(papers.printed(claim.notebook), model=claim.model).set_index("key")
    base, rows = (_rows(claim, scores, key) for key in ("all tokens", claim.a))
    worst_first = ("NOT REPRODUCED", "NOT RUN", "WITHIN NOISE", "REPRODUCED")
    words, parts = [], []
    for column, task in COMPARED.items():
        wanted, full = (float(printed.loc[key, column]) for key in (claim.a, "all tokens"))
        row = rows.loc[task]
        word, off = _near(row, wanted, claim.threshold), _near(base.loc[task], full, claim.threshold)
        if claim.a != "all tokens" and off == "NOT REPRODUCED":
            word = "the unreduced model is off"
        words.append(word if word in worst_first else "NOT RUN")
        parts.append(f"{column} {row['accuracy']:.1f} [{row['low']:.1f}, {row['high']:.1f}] for {wanted:.1f}: {word}")
    worst = min(words, key=worst_first.index)
    return _verdict(claim, worst, "; ".join(parts), ours=float(rows["accuracy"].mean()))


def _near(row: pd.Series, printed: float, tolerance: float) -> str:
    if row["high"] - row["low"] > WIDEST:
        return "too few questions"
    if abs(row["accuracy"] - printed) <= tolerance + 1e-9:
        return "REPRODUCED"
    return "WITHIN NOISE" if row["low"] <= printed <= row["high"] else "NOT REPRODUCED"


def _timed(claim: Claim, times: pd.DataFrame | None) -> Verdict:
    """A ratio of medians on one GPU with all layers of the model, its interval from quartiles."""
    columns = [f"summary.{claim.compute}.{part}" for part in ("q1", "median", "q3")]
    if times is None or not {*columns, *SAME} <= set(times):
        raise _NotRun(f"not timed; {_command(claim)}")
    fit = _where(times, model=claim.model, frames=32, batch=1, outcome="measured").dropna(subset=columns)
    fit = fit[fit["layers"].eq(fit["full_layers"]) & fit["device"].ne("CPU")]
    row, _, share = claim.a.rpartition("@")
    mine = _where(fit, row=row, at=f"printed, {float(share):.0%}")
    pairs = mine.merge(_where(fit, at="all tokens"), on=SAME, suffixes=("", " full"))
    if pairs.empty:
        raise _NotRun(f"not timed on a GPU beside the full model by the same code; {_command(claim)}")
    ours, full = ([pairs.iloc[-1][f"{column}{end}"] for column in columns] for end in ("", " full"))
    over, under = (full, ours) if claim.compute == "ttft_ms" else (ours, full)
    low, value, high = (a / b for a, b in zip(over, reversed(under), strict=True))
    near, far = (float(claim.printed) * (1 + sign * claim.threshold) for sign in (-1, 1))
    word = "REPRODUCED" if near <= value <= far else "WITHIN NOISE" if low <= far and high >= near else "NOT REPRODUCED"
    why = f"on {pairs['device'].iloc[-1]}, interval from quartiles; the paper's GPU is not named"
    return _verdict(claim, word, f"{value:.2f} {why}", ours=value, low=low, high=high)


def _trend(claim: Claim, scores: pd.DataFrame | None) -> Verdict:
    """Settings on the same questions. p is that of the interval, so that both say the same: below 0.05 where the 95 %
    interval clears the threshold."""
    sides: list[pd.DataFrame] = []
    for side in claim.sides:
        sides.append(_side(claim, scores, side, sides))
    found = _estimate(claim, sides)
    if found.groups < FEWEST_VIDEOS:
        raise _NotRun(f"only {found.groups} videos were answered, {FEWEST_VIDEOS} are needed")
    unit = "% of the score" if claim.test == "retained" else "points"
    kept = " against ".join(f"{side['kept_pct'].mean():.1f}" for side in sides)
    why = f"{found.value:z.2f} {unit} [{found.low:z.2f}, {found.high:z.2f}], {found.groups} videos, {kept} % of tokens"
    numbers = {"ours": found.value, "low": found.low, "high": found.high}
    if claim.undecided:
        return _verdict(claim, "OPEN", f"{why}; {claim.undecided}", **numbers)
    equal = claim.test == "equal"
    clear = claim.threshold - abs(found.value) if equal else found.value - claim.threshold
    half = found.value - found.low if (found.value < 0 if equal else clear > 0) else found.high - found.value
    p = math.erfc(1.96 * abs(clear) / half / math.sqrt(2))
    return _verdict(claim, "OPEN", why, p=p, leans="HOLDS" if clear > 0 else "FAILS", **numbers)


def _estimate(claim: Claim, sides: Sequence[pd.DataFrame]) -> Estimate:
    """By question, clustered by video, every benchmark with the same weight: as ``scores.paired``."""
    from holitom_repro.scores import samples  # it needs torch, which the ledger does without

    rows = pd.concat([side.reset_index().assign(key=letter) for letter, side in zip("abcd", sides, strict=False)])
    asked = ["benchmark", "task", "doc_id", "video"]
    right = samples(rows).pivot(index=asked, columns="key", values="correct").astype(float)
    if right.isna().any(axis=None):
        raise _NotRun("the settings answered different questions")
    groups = ["/".join(map(str, video)) for video in right.index.droplevel("doc_id")]
    weights = balanced(list(right.index.get_level_values("benchmark")))
    if claim.test == "retained":
        return retained_share(right["a"], right["b"], groups, weights)
    a, b, c, d = (right.get(letter, 0.0) for letter in "abcd")
    return paired_difference(a + d, b + c, groups, weights)  # (a - b) - (c - d)


def _side(claim: Claim, scores: pd.DataFrame | None, side: str, before: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of a setting as the ledger writes it."""
    key, frames = re.fullmatch(r"(.*?)(?:, (\d+) frames)?", side).groups()  # type: ignore[union-attr]
    name, _, budget = key.rpartition("@")
    if budget != "at least a":
        return _rows(claim, scores, key, int(frames or 0))
    there = scores[scores["key"].str.startswith(f"{name}@") & scores["model"].eq(claim.model)]["key"].unique()
    least = before[0]["kept_pct"].mean()
    for key in sorted(there, key=lambda one: float(one.rpartition("@")[2])):
        if (rows := _rows(claim, scores, key, int(frames or 0)))["kept_pct"].mean() >= least - 1e-6:
            return rows
    raise _NotRun(f"{name} was not measured with at least {least:.1f} % of the tokens; {_command(claim)}")


def _rows(claim: Claim, scores: pd.DataFrame | None, key: str, frames: int = 0) -> pd.DataFrame:
    """A setting's rows by benchmark, all that the claim is about: every question, with the parameters it names, and
    with the unreduced model beside it."""
    tier, frames = TIER[claim.kind], frames or FRAMES.get(claim.model, 32)
    wanted = list(COMPARED.values() if claim.kind == "score" else claim.benchmarks)
    if scores is None or scores.empty:
        raise _NotRun(f"not measured; {_command(claim)}")
    here = _where(scores, tier=tier, model=claim.model, key=key, frames=frames)
    here = here.drop_duplicates("benchmark", keep="last").set_index("benchmark")
    if absent := [name for name in wanted if name not in here.index]:
        raise _NotRun(f"{key} with {frames} frames was not measured on {', '.join(absent)}; {_command(claim)}")
    here = here.loc[wanted]
    if here["limit"].notna().any():
        raise _NotRun("a trial: only the first questions were asked (limit)")
    if not all(_is_setting(claim, key, _record(tier, cell)) for cell in here["cell"]):
        raise _NotRun(f"{key} was measured with other parameters than those of the claim")
    if key != "all tokens" and not here["n"].eq(_rows(claim, scores, "all tokens", frames)["n"]).all():
        raise _NotRun("the unreduced model answered other questions")
    return here


def _is_setting(claim: Claim, key: str, record: Record) -> bool:
    """Whether a record's stages are those of the preset that the key names, at the depth of its model."""
    from holitom.methods.presets import preset, preset_names

    name, _, share = key.rpartition("@")
    found, layers = record.reduction, len(record.tokens_per_layer)
    if key == "all tokens":
        return not (found["outer"] or found["inner"] or found["decode"] or found.get("tower"))
    special = _file()["settings"].get(name, {}) if claim.kind == "trend" else {}
    wanted = [{"budget": float(share), "outer": {}, "inner": [], "decode": None}]
    if not special or "like" in special:
        cell = (special.get("like", name), float(share), STANDS_FOR.get(claim.model, claim.model))
        wanted = [preset(*one).scaled(layers).describe() for one in preset_names() if one[1:] == cell]
    return any(
        (found["outer"] or {}).items() >= {**(one["outer"] or {}), **special.get("outer", {})}.items()
        and all(found.get(part) == one.get(part) for part in ("budget", "inner", "decode", "tower"))
        for one in wanted
    )


@cache
def _record(tier: Any, cell: str) -> Record:
    if (found := Store(tier).load(cell)) is None:
        raise _NotRun(f"the answers behind it are not in runs/{tier}/cells")
    return found[0]


def _where(frame: pd.DataFrame, **values: Any) -> pd.DataFrame:
    return frame[np.logical_and.reduce([frame[name].eq(value) for name, value in values.items()])]


def _command(claim: Claim) -> str:
    tier = "" if claim.kind == "trend" else f" --tier {TIER[claim.kind]}"
    return f"./reproduce.sh {claim.notebook.replace('_', '-')}{tier} does it"
