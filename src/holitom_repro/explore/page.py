"""The page: one state of the explorer computed, and the widgets that change it in JupyterLab."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from typing import Any

import ipywidgets as ui
import numpy as np
import pandas as pd
from IPython.core.getipython import get_ipython
from IPython.display import HTML, display

from holitom.errors import KitError
from holitom_repro.explore.clips import Clip, answer, open_clip, shipped, tiny_model
from holitom_repro.explore.drawing import page
from holitom_repro.explore.outcome import FULL, INNER, LAYERS, METHODS, Outcome, Side, State, outcome
from holitom_repro.method_page import ALONE, DROPPED

NOTE = "7B: LLaVA-OneVision-7B at 32 frames if it kept the same share; the papers' formula counts visual tokens."
PAUSE = 0.02  # seconds to wait for more changes: a dragged slider sends many, and only the last counts


@dataclass(frozen=True, eq=False)
class View:
    """A state with its clip and what each side does to it. As the last value of a cell it shows picture and table."""

    state: State
    clip: Clip
    outcomes: tuple[Outcome, ...]

    @property
    def html(self) -> str:
        """The picture."""
        return page(self.outcomes, self.state.focus)

    def _repr_html_(self) -> str:
        return self.html + table_html(self.table())

    def table(self, with_answers: bool = True) -> pd.DataFrame:
        """What changes, in words; ``with_answers`` False leaves the answers open, which take longer than the rest."""
        alike = (np.stack([found.fate for found in self.outcomes]) >= ALONE).all(0).sum()
        rows = {
            "visual tokens that enter the language model": [f"{self.outcomes[0].owner.size:,}"],
            "of them, standing for several cells": ["0"],
            "of them, at a place where the other keeps one too": [""],
            "cells that no token stands for": ["0"],
            "segments": [""],
            f"7B: tokens per layer, mean of {LAYERS}": [f"{FULL:,}"],
            "7B: the papers' FLOPs of a prefill": ["100 %"],
        }
        for found in self.outcomes:
            cells = [f"{len(found.kept):,} ({100 * found.realised:.1f} %)", f"{(found.size > 1).sum():,}"]
            cells += [f"{alike:,}" if len(self.outcomes) > 1 else "", f"{found.per_frame(DROPPED).sum():,}"]
            cells += [str(len(found.segments) or "none"), f"{sum(found.layer_tokens) / LAYERS:,.0f}"]
            for row, cell in zip(rows.values(), [*cells, f"{100 * found.flops:.1f} %"], strict=True):
                row.append(cell)
        names = ["every token", *(found.side.label for found in self.outcomes)]
        if self.clip.questions:
            text, right = self.clip.questions[self.state.question]
            answers = self._answers(right) if with_answers else ["…"] * len(names)
            rows[f"tiny model: “{text}” (right: {right})"] = answers
        return pd.DataFrame(list(rows.values()), index=list(rows), columns=names)

    def _answers(self, right: str) -> list[str]:
        """With every token and with each side's, both stages: the first word, and how sure the model is of it."""
        layers = tiny_model()[0].config.text_config.num_hidden_layers
        sides = [Side(budget=1.0), *(found.side for found in self.outcomes)]
        found = [answer(self.clip, self.state.question, side.reduction(layers)) for side in sides]
        return [f"{'✓' if word == right else '✗'} {word} ({100 * chance:.0f} %)" for word, chance in found]


def view(state: State) -> View:
    """Open the clip and reduce it; frame and question are moved into the clip's range."""
    clip = open_clip(state.clip, state.frames)
    outcomes = tuple(outcome(clip, side) for side in (state.first, state.second) if side is not None)
    focus, question = min(max(0, state.focus), len(clip) - 1), min(state.question, max(0, len(clip.questions) - 1))
    return View(replace(state, focus=focus, question=question), clip, outcomes)


def table_html(table: pd.DataFrame) -> str:
    """The table for the page, whose style it has."""
    body = table.to_html(border=0).replace("<thead>", "<caption>What changes</caption><thead>", 1)
    return f'<div class="holitom-table" style="overflow-x:auto">{body}<small>{NOTE}</small></div>'


class SideControls:
    """The controls of one setting; without one they stand at "none"."""

    def __init__(self, name: str, side: Side | None, optional: bool, changed: Callable[[Any], None]) -> None:
        start = side or Side()
        menu = [("none: one setting alone", "")] * optional + [(method, method) for method in METHODS]
        self.method = _control(ui.Dropdown, "Method", options=menu, value=start.method if side else "")
        self.budget = _share("Budget", start.budget, "share of the visual tokens kept before the language model")
        tip = "HoliTom: cosine above which a cell counts as unchanged"
        self.tau = _share("τ", start.tau, tip, readout_format=".2f")
        self.inner = _control(ui.Dropdown, "Inside", options=INNER, value=start.inner)
        self.layer = _control(ui.IntSlider, "layer K", min=1, max=LAYERS - 1, value=start.layer)
        self.ratio = _share("share R", start.ratio, "share of the visual tokens that leaves there", max=0.95, step=0.05)
        self.all = (self.method, self.budget, self.tau, self.inner, self.layer, self.ratio)
        self.box = ui.VBox([ui.HTML(f"<b>{name}</b>"), _row("1fr 1fr", ui.VBox(self.all[:3]), ui.VBox(self.all[3:]))])
        for control in self.all:
            control.observe(self._enable, "value")
            control.observe(changed, "value")
        self._enable()

    def side(self) -> Side | None:
        """What the controls stand at; None for "none"."""
        values = [round(c.value, 4) if isinstance(c.value, float) else c.value for c in self.all]
        return Side(*values) if self.method.value else None

    def _enable(self, change: Any = None) -> None:
        self.budget.disabled = self.inner.disabled = not self.method.value
        self.tau.disabled = self.method.value != "HoliTom"
        self.layer.disabled = self.ratio.disabled = not self.method.value or self.inner.value == "none"


class Explorer:
    """The page; as the last value of a cell it shows itself: widgets where a person sits at the front end (JupyterLab
    names the cell it executes; papermill and nbconvert do not), else the picture and the table of ``state``. What is
    wrong in the state is said in the page."""

    def __init__(self, state: State | None = None) -> None:
        self.state, self._busy = state or State(), False

    def _ipython_display_(self) -> None:
        kernel = getattr(get_ipython(), "kernel", None)
        if "cellId" in ((kernel and kernel.get_parent()) or {}).get("metadata", {}):
            display(self.page)
            self.refresh()
            return
        try:
            display(view(self.state))
        except KitError as error:
            display(HTML(_message(str(error))))

    @cached_property
    def page(self) -> ui.VBox:
        """The widgets, made when somebody asks for them: a still page must not leave any in an executed notebook."""
        start, known = self.state, shipped()
        own = start.clip not in known.values()
        self.clip = _control(ui.Dropdown, "Video", options=known, value="three_shots" if own else start.clip)
        hint = {"placeholder": "or the path of a video file of your own, then Enter", "continuous_update": False}
        self.path = _control(ui.Text, "File", value=start.clip if own else "", **hint)
        counts = sorted({8, 16, 32, 64, start.frames})
        self.frames = _control(ui.Dropdown, "Frames", options=counts, value=start.frames)
        self.focus = _control(ui.IntSlider, "Look at", min=1, max=start.frames, value=start.focus + 1)
        self.question = _control(ui.Dropdown, "Question", options=[("", 0)], disabled=True)
        self.first = SideControls("First method", start.first, False, self._changed)
        self.second = SideControls("Second method", start.second, True, self._changed)
        self.message, self.picture, self.status, self.table = (ui.HTML() for _ in range(4))
        for control in (self.clip, self.path, self.frames, self.focus, self.question):
            control.observe(self._changed, "value")
        self.clip.observe(lambda change: self.path.set_trait("value", ""), "value")
        rows = [_row("2fr 3fr", self.clip, self.path), _row("1fr 3fr 4fr", self.frames, self.focus, self.question)]
        rows += [_row("1fr 1fr", self.first.box, self.second.box), self.message, self.picture, self.status, self.table]
        return ui.VBox(rows, layout=ui.Layout(max_width="1200px")).add_class("holitom-explorer")

    def chosen(self) -> State:
        """The state that the controls stand at."""
        clip, question = self.path.value or self.clip.value, self.question.value or 0
        return State(clip, self.frames.value, self.focus.value - 1, question, self.first.side(), self.second.side())

    def refresh(self) -> None:
        """Compute and draw the state of the controls; a failure becomes a message, and the picture stays."""
        started = time.perf_counter()
        try:
            shown = view(self.chosen())
            picture, table = shown.html, table_html(shown.table(with_answers=False))
        except Exception as error:  # the page of a curious reader is no place for a traceback
            fault = "" if isinstance(error, KitError) else f"a fault in the kit, {type(error).__name__}: "
            kept = " The picture below still shows the last setting that worked." if self.picture.value else ""
            self.message.value, self._busy = _message(f"{fault}{error}{kept}"), False
            return
        self.message.value, self.picture.value, self.table.value = "", picture, table
        words = (f"computed and drawn in {time.perf_counter() - started:.2f} s", *shown.clip.frames.notes)
        self.status.value = f"<small>{escape('; '.join(words))}</small>"
        self.state, self._busy = shown.state, True  # the controls' ranges follow the clip, which is no change
        self.focus.max, self.focus.value = len(shown.clip), shown.state.focus + 1
        self.question.options = [(text, k) for k, (text, _) in enumerate(shown.clip.questions)] or [("", 0)]
        self.question.value, self.question.disabled = shown.state.question, not shown.clip.questions
        self._busy = False
        if shown.clip.questions:
            _later(lambda: self._add_answers(shown))

    def _add_answers(self, shown: View) -> None:
        if shown.state == self.state:
            self.table.value = table_html(shown.table())

    def _changed(self, change: Any = None) -> None:
        if not self._busy:
            self._busy = True
            _later(self.refresh)


def _control(kind: Callable[..., Any], label: str, **options: Any) -> Any:
    """A widget with its label in a column of one width."""
    return kind(description=label, style={"description_width": "62px"}, layout=ui.Layout(width="auto"), **options)


def _row(widths: str, *parts: ui.Widget) -> ui.GridBox:
    columns = " ".join(f"minmax(0, {width})" for width in widths.split())
    return ui.GridBox(parts, layout=ui.Layout(grid_template_columns=columns, grid_gap="0 16px"))


def _share(label: str, value: float | int, tooltip: str, **options: Any) -> Any:
    form = {"min": 0, "max": 1, "step": 0.01, "readout_format": ".0%"} | options
    return _control(ui.FloatSlider, label, value=value, tooltip=tooltip, **form)


def _later(call: Callable[[], None]) -> None:
    """After what has already arrived from the browser; at once where no event loop runs."""
    try:
        asyncio.get_running_loop().call_later(PAUSE, call)
    except RuntimeError:
        call()


def _message(words: str) -> str:
    style = "border-left:4px solid #D55E00;background:#FCEDE3;color:#222;padding:8px 12px;margin:4px 0"
    return f'<div role="alert" style="{style}">{escape(words[:1].upper() + words[1:])}</div>'
