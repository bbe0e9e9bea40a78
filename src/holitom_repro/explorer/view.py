"""One state of the explorer, computed and drawn. Nothing here knows a widget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import pandas as pd

from holitom_repro import paths
from holitom.errors import BadUsage, KitError
from holitom_repro.explorer.answers import Answer, tiny_model
from holitom_repro.explorer.cells import segment_of
from holitom_repro.explorer.clips import Asked, Clip, open_clip
from holitom_repro.explorer.costs import recorded
from holitom_repro.explorer.outcome import ALONE, GROUP, Outcome, outcome, similarity
from holitom_repro.explorer.page import Picture, draw_page
from holitom_repro.explorer.state import Side, State
from holitom_repro.explorer.table import Table, compare
from holitom_repro.results import write_atomic


@dataclass(frozen=True, eq=False)
class View:
    """A state with its clip and what each side does to it."""

    state: State
    clip: Clip
    pairs: tuple[tuple[Side, Outcome], ...]

    @property
    def asked(self) -> Asked | None:
        """The question to the tiny model; None for a clip that it was not made for."""
        return self.clip.questions[self.state.question] if self.clip.questions else None

    def picture(self) -> Picture:
        """The picture; the slow part of an update."""
        return draw_page(self.clip, self.pairs, self.state.focus)

    def table(self, *, with_answers: bool = True) -> Table:
        """The comparison; ``with_answers`` False leaves the answers open, for they take longer than the rest."""
        answers = self.answers() if with_answers and self.asked else ()
        return compare(self.pairs, recorded(), self.asked, answers)

    def answers(self) -> list[Answer]:
        """The tiny model's: with every token, and with each side's (outer and inner stage)."""
        settings: list[Side | None] = [None, *(side for side, _ in self.pairs)]
        return [_answer(self.clip, self.state.question, side) for side in settings]

    def per_frame(self) -> pd.DataFrame:
        """One row per setting and frame: seconds, segment (from 1; 0: none), mean similarity to the next, tokens."""
        after = [float(row.mean()) for row in similarity(self.clip)] + [float("nan")]
        parts = [
            pd.DataFrame(
                {
                    "setting": side.label,
                    "frame": range(len(self.clip)),
                    "seconds": self.clip.frames.seconds,
                    "segment": segment_of(found) + 1,
                    "mean_similarity_to_next": after,
                    "kept_as_it_is": found.per_frame(ALONE),
                    "kept_for_several": found.per_frame(GROUP),
                    "source": "derived",
                }
            )
            for side, found in self.pairs
        ]
        return pd.concat(parts, ignore_index=True)

    def save(self, folder: Path | str = "", name: str = "explore") -> Picture:
        """Write NAME.png and NAME.csv (``per_frame``) into ``folder`` (figures/tiny by default); returns the picture.
        CannotRun on a full disk."""
        target = Path(folder) if folder else paths.figures("tiny")
        made = self.picture()
        write_atomic(target / f"{name}.png", made.png)
        table = self.per_frame().to_csv(index=False, lineterminator="\n", float_format="%.6g")
        write_atomic(target / f"{name}.csv", table.encode())
        return made


def view(state: State) -> View:
    """Open the clip and reduce it. Every failure is a KitError with words for the page: what the kit foresees, as it
    is raised; what it does not, as one that names the setting."""
    clip = open_clip(state.clip, state.frames)
    state = state.within(len(clip), len(clip.questions))
    pairs = []
    for side in state.sides:
        side.reduction()  # also checks the inner stage
        try:
            pairs.append((side, outcome(clip, side)))
        except KitError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            first = str(error).strip().split("\n")[0][:160]
            what = f"{side.label} fails on {clip.title} with {len(clip)} frames ({type(error).__name__}: {first})"
            raise BadUsage(what, fix="choose another method, or more frames") from error
    return View(state, clip, tuple(pairs))


@lru_cache(maxsize=512)
def _answer(clip: Clip, question: int, side: Side | None) -> Answer:
    model = tiny_model()
    reduction = None if side is None else side.reduction(model.layers)
    if reduction is not None and reduction.budget == 1 and not reduction.inner:
        reduction = replace(reduction, outer=None)
    return model.ask(clip.video, clip.questions[question].text, reduction)
