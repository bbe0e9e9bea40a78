"""From settings to scores: measure what is missing, and one tidy frame for tables, figures and verdicts alike.

A difference between two settings is taken question by question on the same model, benchmark, frames and limit, and is
clustered by video. Every average, difference and interval comes from evaluation.statistics; in the average over
benchmarks every benchmark counts the same, however many questions it has, as in the papers."""

import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import pandas as pd

import holitom_repro.tiny.benchmarks  # noqa: F401 (makes the tiny benchmarks known)
from holitom.errors import BadUsage, CannotRun
from holitom.methods import FastVID, HoliTom, HoliTomMerge, UniComp
from holitom.methods.presets import Preset
from holitom.types import Reduction
from holitom_repro import paper_tier
from holitom_repro.evaluation import sweep
from holitom_repro.evaluation.cells import ALL, Cell, key_of, layers_of, model_name
from holitom_repro.evaluation.statistics import balanced, holm, interval, mcnemar, paired_difference
from holitom_repro.records import UNREAD, Record, Sample, Store

__all__ = ["Difference", "compare", "evaluate", "fewer_frames", "layers_of", "paired", "samples", "turned"]

AVERAGE = "average"
FEWER = "fewer frames"
Setting = tuple[str, float]
Settings = Mapping[Setting, Reduction]
Finished = tuple[Record, list[Sample]]


def evaluate(
    model: str,
    settings: Settings,
    benchmarks: Sequence[str],
    frames: int = 32,
    limit: int | None = None,
    tier: str = "tiny",
    fresh: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """The scores of settings on benchmarks: finished cells are read from runs/<tier>/cells, the others are measured
    (ctrl-C keeps what is finished), the unreduced model first, and in the paper tier through its gate.

    settings: {(name, budget): Reduction}; the unreduced model, ("all tokens", 1.0), comes in by itself. model: a
    folder, a name below data/tiny, "ov-7b", "ov-72b", "video-7b", or a hub id. limit: only the first so many questions
    of each task; fresh: measure also what is finished.

    A row for each setting and benchmark, and one for each setting with benchmark "average": key, method, budget, model,
    benchmark, frames, limit, tier, protocol; accuracy with low and high, the 95 % interval clustered by video (points);
    diff, diff_low, diff_high, p against "all tokens" (NaN for itself); in per cent of the unreduced video's tokens what
    enters the language model (kept_pct), the same with newlines (newline_pct) and the mean over the layers (layer_pct);
    off_per_frame: tokens per frame kept beyond what was asked; flops_pct: of the unreduced model's, by the papers'
    formula; n, videos; answers: the share of each answer, as JSON; cell: the hash that names its files; notes.

    Raises BadUsage (benchmark, tier, limit), CannotRun (no weights, a method that did not act, a baseline off its
    printed score), OSError (full disk) and whatever a method of yours raises.
    """
    wanted = {(ALL, 1.0): Reduction(ALL), **settings}
    cells = {
        setting: [_cell(setting, reduction, model, name, frames, limit, tier) for name in benchmarks]
        for setting, reduction in wanted.items()
    }
    return _frame(cells, cells[ALL, 1.0], fresh, progress)


def fewer_frames(
    model: str,
    budgets: Iterable[float],
    benchmarks: Sequence[str],
    frames: int = 32,
    limit: int | None = None,
    tier: str = "tiny",
    fresh: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """What anybody can do without a method, as rows of ``evaluate`` named "fewer frames": all tokens of
    ceil(budget * frames) frames, sampled from the video afresh. Rounded up, so that the control never has fewer tokens
    than were asked for; shares and differences are those to all tokens of ``frames`` frames."""
    bases = [_cell((ALL, 1.0), Reduction(ALL), model, name, frames, limit, tier) for name in benchmarks]
    few = {budget: math.ceil(round(budget * frames, 9)) for budget in budgets}
    cells = {(FEWER, budget): [replace(cell, frames=count) for cell in bases] for budget, count in few.items()}
    return _frame(cells, bases, fresh, progress)


@dataclass(frozen=True)
class Difference:
    """Score of a minus score of b in points, with its 95 % interval and p, clustered by video; changed: questions
    answered rightly by one of the two alone; mcnemar_p: of these, as if each question were drawn alone."""

    value: float
    low: float
    high: float
    p: float
    changed: int
    videos: int
    mcnemar_p: float


def paired(scores: pd.DataFrame, a: str, b: str, benchmark: str = AVERAGE) -> Difference:
    """The difference of two settings of a frame of ``evaluate``, by their keys. BadUsage where a key is not there or
    stands for several cells (filter the frame first), or where the two answered different questions."""
    return _difference(_answers(scores, a, benchmark), _answers(scores, b, benchmark))


def compare(scores: pd.DataFrame, pairs: Iterable[tuple[str, str]], benchmark: str = AVERAGE) -> pd.DataFrame:
    """``paired`` for each pair (a, b), a row each, with p corrected for all comparisons of the table (p_holm)."""
    rows = [{"a": a, "b": b, **asdict(paired(scores, a, b, benchmark))} for a, b in pairs]
    return pd.DataFrame(rows).assign(p_holm=holm([row["p"] for row in rows]))


def samples(scores: pd.DataFrame) -> pd.DataFrame:
    """The questions behind the rows of a frame, a row for each setting and question: key, benchmark, doc_id, video,
    kind, question, target, answer, correct, kept, task."""
    parts = [
        pd.DataFrame(_load(row.tier, row.cell)[1]).assign(key=row.key, benchmark=row.benchmark)
        for row in scores[scores["benchmark"] != AVERAGE].itertuples()
    ]
    return pd.concat(parts, ignore_index=True)


def turned(
    settings: Mapping[Setting, Any],
    tier: str,
    layers: int,
    *,
    tau: float | None = None,
    layer: int | None = None,
    ratio: float | None = None,
) -> dict[Setting, Reduction]:
    """The settings for a decoder of ``layers`` layers: a Preset at its depth, a Reduction as it is. tau of every
    HoliTom outer stage, layer and ratio (the paper's K, counted in this decoder, and R) of its inner merge where given.
    At the tiny tier FastVID and UniComp compare frames by their mean token: the tiny tower has no pooling head."""
    found = {}
    for setting, made in settings.items():
        reduction = made.scaled(layers) if isinstance(made, Preset) else made
        outer, inner = reduction.outer, reduction.inner
        if isinstance(outer, HoliTom) and tau is not None:
            outer = replace(outer, tau=tau)
        if isinstance(outer, FastVID | UniComp) and tier == "tiny":
            outer = replace(outer, head="substitute")
        given = {name: value for name, value in (("layer", layer), ("ratio", ratio)) if value is not None}
        inner = tuple(replace(stage, **given) if isinstance(stage, HoliTomMerge) else stage for stage in inner)
        found[setting] = replace(reduction, outer=outer, inner=inner)
    return found


def _cell(setting: Setting, reduction: Reduction, model: str, *where: Any) -> Cell:
    cell = Cell(key_of(*setting), reduction, model, *where)
    cell.check()
    return cell


def _frame(cells: Mapping[Setting, Sequence[Cell]], bases: Sequence[Cell], fresh: bool, progress: bool) -> pd.DataFrame:
    """The rows of every setting, measured where they are missing; bases: the unreduced model's cells."""
    found = _measured([*bases, *(cell for part in cells.values() for cell in part)], fresh, progress)
    return pd.DataFrame([row for setting, part in cells.items() for row in _rows(setting, part, bases, found)])


def _measured(cells: Sequence[Cell], fresh: bool, progress: bool) -> dict[str, Finished]:
    """Every cell's record and samples by its id, measured where they are missing. Settings may share a cell."""
    tier, known = cells[0].tier, {cell.id: cell for cell in cells}
    store = Store(tier)
    for name in known if fresh else ():
        store.forget(name)
    found = {name: finished for name in known if (finished := store.load(name))}
    left = [cell for name, cell in known.items() if name not in found]
    if left and tier == "tiny":
        sweep.measure_tiny(left, progress)
    elif left:
        paper_tier.measure_here(list(known.values()), progress)
    found |= {cell.id: _load(tier, cell.id) for cell in left}
    said = [f"{record.benchmark}: {note}" for record, _ in found.values() for note in record.notes if UNREAD in note]
    for note in dict.fromkeys(said):
        print(note, file=sys.stderr)
    return found


def _rows(
    setting: Setting, cells: Sequence[Cell], bases: Sequence[Cell], found: Mapping[str, Finished]
) -> list[dict[str, Any]]:
    """The rows of one setting: one per benchmark and their average."""
    rows, spent, mine, theirs = [], [], [], []
    for cell, base in zip(cells, bases, strict=True):
        (record, lines), (whole, full) = found[cell.id], found[base.id]
        mine.append(_questions(lines, cell.benchmark))
        theirs.append(_questions(full, cell.benchmark))
        spent.append(_spent(record, whole))
        row = _row(setting, cell, cell.benchmark, mine[-1], theirs[-1])
        rows.append(row | spent[-1] | {"cell": cell.id, "notes": "; ".join(record.notes)})
    mean = {name: fmean(one[name] for one in spent) for name in spent[0]}
    average = _row(setting, cells[0], AVERAGE, pd.concat(mine), pd.concat(theirs))
    return [*rows, average | mean | {"cell": "", "notes": ""}]


def _row(setting: Setting, cell: Cell, benchmark: str, asked: pd.DataFrame, full: pd.DataFrame) -> dict[str, Any]:
    score = interval(asked["correct"], asked["video"], balanced(asked["benchmark"]))
    gap = None if setting[0] == ALL else _difference(asked, full)
    return {
        "key": key_of(*setting),
        "method": setting[0],
        "budget": setting[1],
        "model": model_name(cell.model),
        "benchmark": benchmark,
        "frames": cell.frames,
        "limit": cell.limit,
        "tier": cell.tier,
        "protocol": str(cell.protocol),
        "accuracy": score.value,
        "low": score.low,
        "high": score.high,
        "diff": gap.value if gap else math.nan,
        "diff_low": gap.low if gap else math.nan,
        "diff_high": gap.high if gap else math.nan,
        "p": gap.p if gap else math.nan,
        "n": len(asked),
        "videos": score.groups,
        "answers": json.dumps(_shares(asked["answer"]), ensure_ascii=False),
    }


def _shares(answers: pd.Series) -> dict[str, float]:
    """The share of each of the eight most frequent answers, and of the others together."""
    said = Counter(str(answer).strip(" .()") or "(none)" for answer in answers)
    usual = {answer: count / said.total() for answer, count in said.most_common(8)}
    if len(said) > 8:
        usual["(others)"] = 1 - sum(usual.values())
    return {answer: round(share, 4) for answer, share in usual.items()}


def _spent(record: Record, whole: Record) -> dict[str, float]:
    """In per cent of the unreduced video's tokens, which may have more frames."""
    mine, full = record.tokens, whole.tokens
    both = full["full_tokens"] + full["full_newlines"]
    return {
        "kept_pct": 100 * mine["kept_tokens"] / full["full_tokens"],
        "newline_pct": 100 * (mine["kept_tokens"] + mine["kept_newlines"]) / both,
        "layer_pct": 100 * mine["layer_tokens"] / full["full_tokens"],
        "off_per_frame": mine["off_per_frame"],
        "flops_pct": 100 * record.flops_paper / whole.flops_paper,
    }


def _answers(scores: pd.DataFrame, key: str, benchmark: str) -> pd.DataFrame:
    rows = scores[(scores["key"] == key) & (scores["benchmark"] != AVERAGE)].drop_duplicates("cell")
    rows = rows if benchmark == AVERAGE else rows[rows["benchmark"] == benchmark]
    if rows.empty or rows["benchmark"].duplicated().any():
        what = "is not among these scores" if rows.empty else "stands for several cells of a benchmark"
        keys = ", ".join(scores["key"].unique())
        raise BadUsage(f"{key!r} {what}", fix=f"filter the frame by model, frames and benchmark; it has {keys}")
    return pd.concat([_questions(_load(row.tier, row.cell)[1], row.benchmark) for row in rows.itertuples()])


def _load(tier: str, cell: str) -> Finished:
    if (found := Store(tier).load(cell)) is None:
        raise CannotRun(f"the cell {cell} is not in runs/{tier}/cells", fix="call evaluate again")
    return found


def _questions(lines: Sequence[Sample], benchmark: str) -> pd.DataFrame:
    """The questions of a cell by benchmark, task and number: benchmark, video (the unit of every interval), answer,
    correct."""
    asked = pd.DataFrame(lines).assign(benchmark=benchmark).set_index(["benchmark", "task", "doc_id"], drop=False)
    videos = [f"{benchmark}/{task}/{video}" for task, video in zip(asked["task"], asked["video"], strict=True)]
    return asked.assign(video=videos, correct=asked["correct"].astype(float))


def _difference(a: pd.DataFrame, b: pd.DataFrame) -> Difference:
    if set(a.index) != set(b.index):
        what = "two settings answered different questions, so they cannot be paired"
        raise BadUsage(what, fix="run both with the same limit")
    x, y = a["correct"].reindex(b.index), b["correct"]
    found = paired_difference(x, y, b["video"], balanced(b["benchmark"]))
    won, lost = int((x > y).sum()), int((x < y).sum())
    return Difference(found.value, found.low, found.high, float(found.p), won + lost, found.groups, mcnemar(won, lost))
