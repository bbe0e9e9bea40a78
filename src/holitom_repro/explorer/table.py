"""What changes between two settings, as rows of words and as an HTML table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd

from holitom_repro.explorer.answers import Answer
from holitom_repro.explorer.clips import Asked
from holitom_repro.explorer.costs import FULL, NOTHING_RECORDED, RECORDED, Point, cost, expected_ttft
from holitom_repro.explorer.outcome import DROPPED, Outcome
from holitom_repro.explorer.state import Side

Pair = tuple[Side, Outcome]
EVERY = "every token"


@dataclass(frozen=True)
class Row:
    """One line: what is compared, its value for every token and for each setting, and second minus first."""

    what: str
    full: str
    values: tuple[str, ...]
    difference: str = ""


@dataclass(frozen=True)
class Table:
    """The comparison. heads: the names of the settings; notes: what a reader must know to read it."""

    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def frame(self) -> pd.DataFrame:
        """The same as a data frame of words."""
        names = [EVERY, *self.heads, *(["second − first"] if len(self.heads) > 1 else [])]
        cells = [[row.full, *row.values, *([row.difference] if len(self.heads) > 1 else [])] for row in self.rows]
        return pd.DataFrame(cells, index=[row.what for row in self.rows], columns=names)

    def _repr_html_(self) -> str:
        heads = "".join(f'<th scope="col" style="{_CELL}">{escape(name)}</th>' for name in self.frame().columns)
        body = ""
        for name, cells in self.frame().iterrows():
            values = "".join(f'<td style="{_CELL}">{escape(str(value))}</td>' for value in cells)
            body += f'<tr><th scope="row" style="{_NAME}">{escape(str(name))}</th>{values}</tr>'
        notes = "".join(f'<p style="margin:2px 0;font-size:90%">{escape(note)}</p>' for note in self.notes)
        return (
            '<table style="border-collapse:collapse;font-variant-numeric:tabular-nums;margin:4px 0;line-height:1.3">'
            f'<caption style="{_CAPTION}">What changes</caption><thead><tr><th scope="col" style="{_NAME}"></th>{heads}'
            f"</tr></thead><tbody>{body}</tbody></table>{notes}"
        )


_CELL = "text-align:right;padding:3px 14px;white-space:nowrap;border-bottom:1px solid rgba(128,128,128,.35)"
_NAME = "text-align:left;font-weight:normal;padding:3px 14px 3px 0;border-bottom:1px solid rgba(128,128,128,.35)"
_CAPTION = "caption-side:top;text-align:left;font-weight:bold;padding-bottom:4px"


def compare(
    pairs: Sequence[Pair],
    points: Sequence[Point],
    asked: Asked | None = None,
    answers: Sequence[Answer | None] = (),
) -> Table:
    """One or two settings beside every token. answers: of every token and of each setting (None: not known yet);
    points: the recorded times."""
    found = [outcome for _, outcome in pairs]
    whole, costs = cost(1), [cost(outcome.realised, side) for side, outcome in pairs]
    rows = [
        _numbers("visual tokens that enter the language model", found[0].total, [len(o.kept) for o in found]),
        Row(
            "share of them (asked for)",
            "100 %",
            tuple(f"{percent(o.realised)} ({100 * o.budget:.3g} %)" for o in found),
            signed(100 * (found[1].realised - found[0].realised), ".1f") + " points" if len(found) > 1 else "",
        ),
        _numbers("tokens that stand for several cells", 0, [int((o.size > 1).sum()) for o in found]),
        _numbers("cells that no token stands for", 0, [int((o.fate == DROPPED).sum()) for o in found]),
        _segments(found),
        *([_common(found)] if len(found) > 1 else []),
        _numbers("7B: tokens per layer, mean of 28", FULL, [round(c.layer_tokens) for c in costs]),
        _flops("7B: prefill, the papers' FLOPs", 1e12, "T", whole.flops, [c.flops for c in costs]),
    ]
    if whole.tiny_flops is not None:
        small = [c.tiny_flops or 0.0 for c in costs]
        rows.append(_flops("tiny model: prefill, exact FLOPs", 1e6, "M", whole.tiny_flops, small))
    times = tuple(expected_ttft(points, side.label, c.flops) for (side, _), c in zip(pairs, costs, strict=True))
    rows.append(Row("7B: expected time to first token", expected_ttft(points, "Vanilla", whole.flops), times))
    rows.append(Row("time of this reduction, here", "", tuple(f"{1000 * o.seconds:.0f} ms" for o in found)))
    if asked is not None:
        rows.append(_answer(asked, answers, len(pairs)))
    return Table(tuple(side.label for side, _ in pairs), tuple(rows), _notes(found, times))


def percent(share: float | int, digits: int = 1) -> str:
    """0.1234 -> "12.3 %"."""
    return f"{100 * share:.{digits}f} %"


def signed(value: float | int, form: str) -> str:
    """With its sign, and a true minus."""
    return f"{value:+{form}}".replace("-", "−")


def _short(value: float) -> str:
    """Three figures: 40.8, 1,610."""
    return f"{value:.3g}" if value < 1000 else f"{float(f'{value:.3g}'):,.0f}"


def _numbers(what: str, full: int, values: Sequence[int]) -> Row:
    difference = signed(values[1] - values[0], ",") if len(values) > 1 else ""
    return Row(what, f"{full:,}", tuple(f"{value:,}" for value in values), difference)


def _flops(what: str, unit: float, name: str, full: float, values: Sequence[float]) -> Row:
    cells = tuple(f"{_short(value / unit)} {name} ({percent(value / full)})" for value in values)
    difference = signed(100 * (values[1] - values[0]) / full, ".1f") + " points" if len(values) > 1 else ""
    return Row(what, f"{_short(full / unit)} {name}", cells, difference)


def _segments(found: Sequence[Outcome]) -> Row:
    values = tuple(str(len(outcome.segments)) if outcome.segments else "none" for outcome in found)
    both = len(found) > 1 and all(outcome.segments for outcome in found)
    return Row("segments", "", values, signed(len(found[1].segments) - len(found[0].segments), "d") if both else "")


def _common(found: Sequence[Outcome]) -> Row:
    places = [set((o.frame * o.owner.shape[1] + o.cell).tolist()) for o in found]
    both = len(places[0] & places[1])
    shares = tuple(f"{both:,} ({percent(both / len(place), 0)})" for place in places)
    return Row("tokens that both keep at the same place", "", shares)


def _answer(asked: Asked, answers: Sequence[Answer | None], settings: int) -> Row:
    answers = list(answers) or [None] * (settings + 1)
    words = ["…" if a is None else f"{_verdict(a, asked)} {a.word} ({percent(a.probability, 0)})" for a in answers]
    known = [a.word for a in answers[1:] if a is not None]
    change = ("same answer" if known[0] == known[1] else "another answer") if len(known) == 2 else ""
    return Row(f"tiny model: “{asked.text}” (right: {asked.answer})", words[0], tuple(words[1:]), change)


def _verdict(answer: Answer, asked: Asked) -> str:
    return "✓" if answer.word == asked.answer else "✗"


def _notes(found: Sequence[Outcome], times: Sequence[str]) -> tuple[str, ...]:
    notes = ["7B: LLaVA-OneVision-7B at 32 frames if it kept the same share; the papers' formula counts visual tokens."]
    if NOTHING_RECORDED in times:
        notes.append(f"Times to first token: {NOTHING_RECORDED} in data/{'/'.join(RECORDED)}, so none is expected.")
    if any(np.isin(o.budget, (0, 1)) for o in found):
        notes.append("A budget of 100 % returns every token unchanged.")
    return tuple(notes)
