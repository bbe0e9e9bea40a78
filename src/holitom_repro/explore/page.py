"""The page in JupyterLab: widgets, and below them the picture of what they stand at."""

import time
from collections.abc import Callable
from functools import cached_property
from html import escape
from typing import Any

import ipywidgets as ui
from IPython.core.getipython import get_ipython
from IPython.display import HTML, display

from holitom.errors import KitError
from holitom_repro.explore.drawing import draw
from holitom_repro.explore.state import CLIPS, LAYERS, METHODS, STAGES, Side, State, answer, outcome, view

NONE = "none: one setting alone"
ALERT = "border-left:4px solid #D55E00;background:#FCEDE3;color:#222;padding:8px 12px;margin:4px 0"


class Explorer:
    """As the last value of a cell it shows itself: widgets where a person sits at the front end (JupyterLab names the
    cell it executes; papermill and nbconvert do not), else the picture of ``state``. A still page must not leave
    widgets in an executed notebook, so they are made when somebody asks for them."""

    def __init__(self, state: State | None = None) -> None:
        self.state = state or State()
        for remembered in (outcome, answer):
            remembered.cache_clear()  # a method of one's own may have been written anew

    def _ipython_display_(self) -> None:
        kernel = getattr(get_ipython(), "kernel", None)
        if kernel and "cellId" in kernel.get_parent().get("metadata", {}):
            display(self.page)
        else:
            display(HTML(draw(view(self.state))))

    @cached_property
    def page(self) -> ui.VBox:
        """The widgets; every change of one draws anew."""
        start, own = self.state, self.state.clip not in CLIPS
        self.clip = _control(ui.Dropdown, "Video", "three_shots" if own else start.clip, options=CLIPS)
        hint = {"placeholder": "or the path of a video file of your own, then Enter", "continuous_update": False}
        self.path = _control(ui.Text, "File", start.clip if own else "", **hint)
        self.frames = _control(ui.Dropdown, "Frames", start.frames, options=sorted({8, 16, 32, 64, start.frames}))
        self.focus = _control(ui.IntSlider, "Look at", start.focus + 1, min=1, max=start.frames)
        self.question = _control(ui.Dropdown, "Question", start.question + 1, options=range(1, 4))
        self.first, self.second = _controls(start.first), _controls(start.second, NONE)
        self.message, self.picture, self.status = ui.HTML(), ui.HTML(), ui.HTML()
        controls = [self.clip, self.path, self.frames, self.focus, self.question]
        self.clip.observe(lambda change: self.path.set_trait("value", ""), "value")
        for control in (*controls, *self.first.values(), *self.second.values()):
            control.observe(self.refresh, "value")
        self.refresh()
        sides = [_grid("1fr 1fr", *side.values()) for side in (self.first, self.second)]
        parts = [_grid("2fr 3fr", *controls[:2]), _grid("1fr 3fr 1fr", *controls[2:]), _grid("1fr 1fr", *sides)]
        parts += [self.message, self.picture, self.status]
        return ui.VBox(parts, layout=ui.Layout(max_width="1200px")).add_class("holitom-explorer")

    def chosen(self) -> State:
        """The state that the controls stand at."""
        clip, sides = self.path.value or self.clip.value, (_side(self.first), _side(self.second))
        return State(clip, self.frames.value, self.focus.value - 1, self.question.value - 1, *sides)

    def refresh(self, change: Any = None) -> None:
        """Compute and draw the state of the controls; a failure becomes a message, and the picture stays."""
        started = time.perf_counter()
        try:
            shown = view(self.chosen())
            picture = draw(shown)
        except Exception as error:  # the page of a curious reader is no place for a traceback
            words = str(error) if isinstance(error, KitError) else repr(error)
            kept = "The picture shows the last setting that worked."
            self.message.value = f'<div role="alert" style="{ALERT}">{escape(words)} {kept}</div>'
            return
        self.state, self.message.value, self.picture.value = shown.state, "", picture
        words = [f"computed and drawn in {time.perf_counter() - started:.2f} s", *shown.clip.frames.notes]
        self.status.value = f"<small>{escape('; '.join(words))}</small>"
        self.question.disabled = not shown.clip.questions
        for side in (self.first, self.second):
            side["tau"].disabled = side["method"].value != "HoliTom"
            side["layer"].disabled = side["ratio"].disabled = side["inner"].value == "none"
        self.focus.max = len(shown.clip.frames)


def _controls(side: Side | None, *others: str) -> dict[str, Any]:
    """The controls of one setting, by the fields of Side."""
    start, share = side or Side(), {"min": 0, "max": 1, "step": 0.01}
    return {
        "method": _control(ui.Dropdown, "Method", side.method if side else NONE, options=[*others, *METHODS]),
        "inner": _control(ui.Dropdown, "Inside", start.inner, options=list(STAGES)),
        "budget": _control(ui.FloatSlider, "Budget", start.budget, readout_format=".0%", **share),
        "layer": _control(ui.IntSlider, "layer K", start.layer, min=1, max=LAYERS - 1),
        "tau": _control(ui.FloatSlider, "τ", start.tau, readout_format=".2f", **share),
        "ratio": _control(ui.FloatSlider, "share R", start.ratio, readout_format=".0%", **share),
    }


def _side(controls: dict[str, Any]) -> Side | None:
    if controls["method"].value == NONE:
        return None
    values = {name: control.value for name, control in controls.items()}
    return Side(**{name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()})


def _control(kind: Callable[..., Any], label: str, value: Any, **options: Any) -> Any:
    """A widget with its label in a column of one width."""
    look = {"style": {"description_width": "62px"}, "layout": ui.Layout(width="auto")}
    return kind(description=label, value=value, **look, **options)


def _grid(widths: str, *parts: ui.Widget) -> ui.GridBox:
    columns = " ".join(f"minmax(0, {width})" for width in widths.split())
    return ui.GridBox(parts, layout=ui.Layout(grid_template_columns=columns, grid_gap="0 16px"))
