"""How long an update of the page takes: every part of it but the browser's."""

from __future__ import annotations

import time
from dataclasses import replace

from holitom.errors import BadUsage
from holitom_repro.explorer.state import Side, State
from holitom_repro.explorer.view import view


def time_updates(state: State, repeats: int = 20) -> list[float]:
    """Seconds of ``repeats`` updates, each at a new budget of the first setting and a new frame: reduce, find what each
    token stands for, draw, pack, write the table. Cached before: the clip's frames and features, its small pictures,
    and the other setting. The tiny model's answers, which the page adds afterwards, are left out."""
    if repeats < 1:
        raise BadUsage(f"repeats={repeats}", fix="time one update or more")
    taken = []
    for number in range(-1, repeats):  # the first one fills the caches and does not count
        budget = 0.1001 + 0.002 * (number + 1) + (time.perf_counter_ns() % 1000) / 1e7  # never the same twice
        first: Side = replace(state.first, budget=budget if state.first.method != "DyCoke" else budget + 0.2)
        started = time.perf_counter()
        shown = view(replace(state, first=first, focus=number + 1))
        shown.picture()
        shown.table(with_answers=False)
        taken.append(time.perf_counter() - started)
    return taken[1:]
