"""One state of the explorer, computed: the picture as HTML, and what changes between its settings as a table."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from holitom_repro.explore.clips import Clip, answer, open_clip, tiny_model
from holitom_repro.explore.drawing import page
from holitom_repro.explore.outcome import FULL, Outcome, outcome
from holitom_repro.explore.settings import LAYERS, Side, State
from holitom_repro.method_page import ALONE, DROPPED

NOTE = "7B: LLaVA-OneVision-7B at 32 frames if it kept the same share; the papers' formula counts visual tokens."


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
        rows = ["visual tokens that enter the language model", "of them, standing for several cells"]
        rows += ["of them, at a place where the other keeps one too", "cells that no token stands for", "segments"]
        rows += [f"7B: tokens per layer, mean of {LAYERS}", "7B: the papers' FLOPs of a prefill"]
        columns = [[f"{self.outcomes[0].owner.size:,}", "0", "", "0", "", f"{FULL:,}", "100 %"]]
        alike = (np.stack([found.fate for found in self.outcomes]) >= ALONE).all(0).sum()
        for found in self.outcomes:
            cells = [f"{len(found.kept):,} ({100 * found.realised:.1f} %)", f"{(found.size > 1).sum():,}"]
            cells += [f"{alike:,}" if len(self.outcomes) > 1 else "", f"{found.per_frame(DROPPED).sum():,}"]
            cells += [str(len(found.segments) or "none"), f"{sum(found.layer_tokens) / LAYERS:,.0f}"]
            columns.append([*cells, f"{100 * found.flops:.1f} %"])
        if self.clip.questions:
            text, right = self.clip.questions[self.state.question]
            rows.append(f"tiny model: “{text}” (right: {right})")
            for column, words in zip(columns, self._answers(right) if with_answers else "………", strict=False):
                column.append(words)
        names = ["every token", *(found.side.label for found in self.outcomes)]
        return pd.DataFrame(list(zip(*columns, strict=True)), index=rows, columns=names)

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
    """The table for the page."""
    look = [
        {"selector": "", "props": "border-collapse: collapse; font-variant-numeric: tabular-nums"},
        {"selector": "caption", "props": "caption-side: top; text-align: left; font-weight: bold"},
        {"selector": "td, th", "props": "text-align: right; padding: 3px 14px; border-bottom: 1px solid #8885"},
        {"selector": "th.row_heading", "props": "text-align: left; font-weight: normal; padding-left: 0"},
    ]
    styled = table.style.set_caption("What changes").set_table_styles(look)
    return f'<div style="overflow-x:auto">{styled.to_html()}<small>{NOTE}</small></div>'
