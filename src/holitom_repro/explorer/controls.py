"""The controls of one setting: method, budget and tau; the stage inside the language model, K and r."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as ui

from holitom_repro.explorer.state import INNER, LAYERS, Side, outer_methods, shown_name

NONE = ""
_LABEL = {"description_width": "62px"}


def labelled(kind: Callable[..., Any], description: str, **options: Any) -> Any:
    """A widget with its label in a column of one width."""
    return kind(description=description, style=_LABEL, **options)


class SideControls:
    """Two columns of controls under a name. optional: the method may be "none"."""

    def __init__(self, name: str, start: Side | None, optional: bool = False) -> None:
        side = start or Side()
        wide = ui.Layout(width="auto")
        methods = {shown_name(method): method for method in outer_methods()}
        if optional:
            methods = {"none: one setting alone": NONE} | methods
        value = side.method if start is not None else NONE
        self.method = labelled(ui.Dropdown, "Method", options=methods, value=value, layout=wide)
        self.budget = labelled(
            ui.FloatSlider, "Budget", min=0, max=1, step=0.01, value=side.budget, readout_format=".0%", layout=wide
        )
        self.tau = labelled(
            ui.FloatSlider, "τ", min=0, max=1, step=0.01, value=side.tau, readout_format=".2f", layout=wide
        )
        stages = {title: name for name, title in INNER.items()}
        self.inner = labelled(ui.Dropdown, "Inside", options=stages, value=side.inner, layout=wide)
        self.layer = labelled(ui.IntSlider, "layer K", min=1, max=LAYERS - 1, value=side.layer, layout=wide)
        self.ratio = labelled(
            ui.FloatSlider, "share R", min=0, max=0.95, step=0.05, value=side.ratio, readout_format=".0%", layout=wide
        )
        self._all = (self.method, self.budget, self.tau, self.inner, self.layer, self.ratio)
        left = ui.VBox([self.method, self.budget, self.tau], layout=ui.Layout(width="50%"))
        right = ui.VBox([self.inner, self.layer, self.ratio], layout=ui.Layout(width="50%"))
        self.box = ui.VBox([ui.HTML(f"<b>{name}</b>"), ui.HBox([left, right])], layout=ui.Layout(width="50%"))
        self._tips()
        self._enable()

    def side(self) -> Side | None:
        """What the controls stand at; None for "none"."""
        if self.method.value == NONE:
            return None
        return Side(
            self.method.value,
            round(self.budget.value, 4),
            round(self.tau.value, 4),
            self.inner.value,
            self.layer.value,
            round(self.ratio.value, 4),
        )

    def observe(self, call: Callable[[Any], None]) -> None:
        """Call on every change, after what does not apply has been greyed out."""
        for control in self._all:
            control.observe(self._enable, "value")
            control.observe(call, "value")

    def _enable(self, change: Any = None) -> None:
        absent = self.method.value == NONE
        self.budget.disabled = self.inner.disabled = absent
        self.tau.disabled = self.method.value != "HoliTom"
        self.layer.disabled = self.ratio.disabled = absent or self.inner.value == "none"

    def _tips(self) -> None:
        self.budget.tooltip = "share of the visual tokens kept before the language model"
        self.tau.tooltip = "HoliTom: cosine above which a cell counts as unchanged"
        self.inner.tooltip = "a stage inside the language model"
        self.layer.tooltip = "it acts in front of this layer of 28"
        self.ratio.tooltip = "share of the visual tokens that it folds or drops"
