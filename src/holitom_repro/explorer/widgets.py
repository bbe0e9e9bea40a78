"""The explorer as a page of widgets for JupyterLab, and as a still picture where there is nobody to move a slider."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, Literal

import ipywidgets as ui
from IPython.core.getipython import get_ipython
from IPython.display import HTML, display

from holitom.errors import BadUsage, KitError
from holitom_repro.explorer.clips import Clip, shipped
from holitom_repro.explorer.controls import SideControls, labelled
from holitom_repro.explorer.state import Side, State
from holitom_repro.explorer.view import View, view

OWN = "own"
FRAMES = (8, 16, 32, 64)
PAUSE = 0.02  # seconds to wait for more changes: a dragged slider sends many, and only the last counts
_MESSAGE = "border-left:4px solid {colour};background:{back};color:#222;padding:8px 12px;margin:4px 0;max-width:1130px"


class Explorer:
    """The page. As the last value of a cell it shows itself.

    state: what it begins with; a BadUsage or BadVideo in it is shown in the page, as any later one. controls "live"
    shows widgets, "still" the picture and the table of the first state, "auto" widgets where the front end is one that
    a person sits at (JupyterLab names the cell it executes; papermill and nbconvert do not).
    """

    def __init__(self, state: State | None = None, controls: str = "auto") -> None:
        if controls not in ("auto", "live", "still"):
            raise BadUsage(f"controls={controls!r} is unknown", fix="use auto, live or still")
        self.state = state or State()
        self._controls: Literal["auto", "live", "still"] = controls  # type: ignore[assignment]
        self._waiting = self._filling = False
        self._clip: Clip | None = None

    @property
    def view(self) -> View:
        """The state computed; raises what is wrong with it."""
        return view(self.state)

    def _ipython_display_(self) -> None:
        if self._controls == "live" or (self._controls == "auto" and _somebody_is_there()):
            page = self.page
            self.refresh()
            display(page)
            return
        try:
            shown = self.view
            display(shown.picture(), shown.table())
        except KitError as error:
            display(HTML(_message(str(error))))

    @cached_property
    def page(self) -> ui.VBox:
        """The widgets, made when somebody asks for them: a still page must not leave any in an executed notebook."""
        start = self.state
        self._uploads = tempfile.TemporaryDirectory(prefix="holitom-explore-")
        self._message, self._picture, self._table, self._status = (ui.HTML() for _ in range(4))
        known = {title: name for name, title in shipped().items()} | {"a file of your own …": OWN}
        own = start.clip not in known.values()
        wide = ui.Layout(width="440px")
        self.clip = labelled(ui.Dropdown, "Video", options=known, value=OWN if own else start.clip, layout=wide)
        counts = sorted({*FRAMES, start.frames})
        self.frames = labelled(
            ui.Dropdown, "Frames", options=counts, value=start.frames, layout=ui.Layout(width="170px")
        )
        self.focus = labelled(
            ui.IntSlider, "Look at", min=1, max=start.frames, value=start.focus + 1, layout=ui.Layout(width="480px")
        )
        self.path = ui.Text(
            value=start.clip if own else "",
            placeholder="path of a video file, then Enter",
            continuous_update=False,
            description="File",
            layout=ui.Layout(width="560px"),
        )
        self.upload = ui.FileUpload(accept="video/*,.mkv", description="or upload (up to 10 MB)")
        self.upload.layout.width = "220px"
        self.question = labelled(ui.Dropdown, "Question", options=[("", 0)], layout=ui.Layout(width="620px"))
        self.first = SideControls("First method", start.first)
        self.second = SideControls("Second method", start.second, optional=True)
        self.own = ui.HBox([self.path, self.upload])
        columns = ui.HBox([self.first.box, self.second.box], layout=ui.Layout(grid_gap="24px"))
        top = ui.HBox([self.clip, self.frames, self.focus])
        parts = [top, self.own, self.question, columns, self._message, self._picture, self._status, self._table]
        page = ui.VBox(parts, layout=ui.Layout(width="100%", max_width="1180px"))
        page.add_class("holitom-explorer")
        self._show_rows()
        for control in (self.clip, self.frames, self.focus, self.path, self.question):
            control.observe(self._changed, "value")
        self.upload.observe(self._uploaded, "value")
        self.first.observe(self._changed)
        self.second.observe(self._changed)
        return page

    def chosen(self) -> State:
        """The state that the controls stand at."""
        first, second = self.first.side(), self.second.side()
        assert first is not None
        name = self.path.value if self.clip.value == OWN else self.clip.value
        return State(name, self.frames.value, self.focus.value - 1, self.question.value or 0, first, second)

    def refresh(self) -> None:
        """Compute and draw the state of the controls; a failure becomes a message, and the picture stays."""
        self._waiting = False
        started, before = time.perf_counter(), self._clip
        try:
            shown = view(self.chosen())
            picture = shown.picture()
        except KitError as error:
            kept = " The picture below still shows the last setting that worked." if self._picture.value else ""
            self._message.value = _message(f"{error}{kept}")
            return
        except Exception as error:  # the page of a curious reader is no place for a traceback
            what = f"{type(error).__name__}: {str(error).strip()[:200]}"
            self._message.value = _message(f"A fault in the kit ({what}). Other settings work.")
            return
        self.state = shown.state
        self._follow(shown)
        self._message.value = "".join(_message(note, plain=True) for note in shown.clip.remarks)
        self._picture.value = picture.html
        self._table.value = shown.table(with_answers=False)._repr_html_()
        self._clip = shown.clip
        done = "drawn" if before is shown.clip else "opened and drawn"
        self._status.value = _small(f"{done} in {time.perf_counter() - started:.2f} s")
        if shown.asked is not None:
            _later(lambda: self._add_answers(shown))

    def _add_answers(self, shown: View) -> None:
        if shown.state == self.state:
            try:
                self._table.value = shown.table()._repr_html_()
            except KitError as error:
                self._message.value = _message(f"The tiny model has no answer here: {error}")

    def _follow(self, shown: View) -> None:
        """The controls' ranges follow the clip."""
        self._filling = True
        try:
            self.focus.max = len(shown.clip)
            self.focus.value = shown.state.focus + 1
            options = [(asked.text, number) for number, asked in enumerate(shown.clip.questions)] or [("", 0)]
            if tuple(options) != tuple(self.question.options):
                self.question.options = options
            self.question.value = shown.state.question
            self._show_rows(bool(shown.clip.questions))
        finally:
            self._filling = False

    def _show_rows(self, questions: bool = False) -> None:
        self.own.layout.display = "" if self.clip.value == OWN else "none"
        self.question.layout.display = "" if questions else "none"

    def _changed(self, change: Any = None) -> None:
        if self._filling or self._waiting:
            return
        self._waiting = True
        self._show_rows(bool(self.question.layout.display != "none"))
        _later(self.refresh)

    def _uploaded(self, change: Any) -> None:
        for file in change["new"]:
            path = Path(self._uploads.name) / Path(file["name"]).name
            path.write_bytes(bytes(file["content"]))
            self.path.value = str(path)
            self._changed()  # another video under a name that stands there already is no change of the value


def _later(call: Callable[[], None]) -> None:
    """After what has already arrived from the browser; at once where no event loop runs."""
    try:
        asyncio.get_running_loop().call_later(PAUSE, call)
    except RuntimeError:
        call()


def _somebody_is_there() -> bool:
    kernel = getattr(get_ipython(), "kernel", None)
    parent = kernel.get_parent() if kernel is not None else {}
    return "cellId" in (parent or {}).get("metadata", {})


def _message(words: str, *, plain: bool = False) -> str:
    colour, back = ("#0173B2", "#E9F3FA") if plain else ("#D55E00", "#FCEDE3")
    role, words = ("status" if plain else "alert"), words[:1].upper() + words[1:]
    return f'<div role="{role}" style="{_MESSAGE.format(colour=colour, back=back)}">{escape(words)}</div>'


def _small(words: str) -> str:
    return f'<div style="font-size:85%;opacity:.7">{escape(words)}</div>'


__all__ = ["Explorer", "Side", "State"]
