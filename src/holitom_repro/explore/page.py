"""The explorer as a page of widgets for JupyterLab, and as a still picture where there is nobody to move a slider."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import cached_property
from html import escape
from typing import Any

import ipywidgets as ui
from IPython.core.getipython import get_ipython
from IPython.display import HTML, display

from holitom.errors import KitError
from holitom_repro.explore.clips import shipped
from holitom_repro.explore.settings import INNER, LAYERS, METHODS, Side, State
from holitom_repro.explore.view import View, table_html, view

PAUSE = 0.02  # seconds to wait for more changes: a dragged slider sends many, and only the last counts


class SideControls:
    """The controls of one setting; without one they stand at "none"."""

    def __init__(self, name: str, side: Side | None, optional: bool, changed: Callable[[Any], None]) -> None:
        start = side or Side()
        methods = [("none: one setting alone", "")] * optional + [(method, method) for method in METHODS]
        self.method = _control(ui.Dropdown, "Method", options=methods, value=start.method if side else "")
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
        self.state = state or State()
        self._waiting = self._filling = False

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
        self._waiting, started = False, time.perf_counter()
        try:
            shown = view(self.chosen())
            picture, table = shown.html, table_html(shown.table(with_answers=False))
        except Exception as error:  # the page of a curious reader is no place for a traceback
            fault = "" if isinstance(error, KitError) else f"a fault in the kit, {type(error).__name__}: "
            kept = " The picture below still shows the last setting that worked." if self.picture.value else ""
            self.message.value = _message(f"{fault}{error}{kept}")
            return
        self.message.value, self.picture.value, self.table.value = "", picture, table
        words = (f"computed and drawn in {time.perf_counter() - started:.2f} s", *shown.clip.frames.notes)
        self.status.value = f"<small>{escape('; '.join(words))}</small>"
        self.state, self._filling = shown.state, True  # the controls' ranges follow the clip
        self.focus.max, self.focus.value = len(shown.clip), shown.state.focus + 1
        self.question.options = [(text, k) for k, (text, _) in enumerate(shown.clip.questions)] or [("", 0)]
        self.question.value, self.question.disabled = shown.state.question, not shown.clip.questions
        self._filling = False
        if shown.clip.questions:
            _later(lambda: self._add_answers(shown))

    def _add_answers(self, shown: View) -> None:
        if shown.state == self.state:
            self.table.value = table_html(shown.table())

    def _changed(self, change: Any = None) -> None:
        if not self._filling and not self._waiting:
            self._waiting = True
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
