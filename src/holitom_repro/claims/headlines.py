"""Claims of abstracts (data/papers/headlines.yaml): the same as a cell's, derived, or quoted with the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import yaml

from holitom_repro import paper, paths
from holitom_repro.claims.judging import Judged, Verdict, judge_value
from holitom.errors import BadUsage

CELLS = 196  # of a frame, LLaVA-OneVision


def headline_claims(others: Mapping[str, Judged]) -> list[Judged]:
    """Every headline; others: the claims that they may stand for, by id. BadUsage for an entry that names none of
    same_as, derive and quoted, or an unknown claim or function."""
    return [_headline(values, others) for values in declared()]


@cache
def declared() -> tuple[dict[str, Any], ...]:
    """The entries as written."""
    return tuple(yaml.safe_load(paths.data("papers", "headlines.yaml").read_text(encoding="utf-8"))["headlines"])


def holitom_tokens_removed() -> tuple[float, str]:
    """Share of the tokens gone before the language model at 10 %, by the counts behind the FLOPs cells."""
    counts = paper.layer_tokens("table1", "ov-7b", "HoliTom", 10)
    before, over_layers = 100 * (1 - counts[0] / 6272), 100 * (1 - sum(counts) / len(counts) / 6272)
    why = f"{counts[0]} of 6272 stay: whole tokens per frame, rounded up; with the inner stage {over_layers:.1f} %"
    return before, f"{why} are gone on average over the layers"


def hieravid_mean_share() -> tuple[float, str]:
    """Mean over the layers of the preset "30 %"."""
    counts = paper.layer_tokens("hieravid", "video-7b", "HieraVid", 30)
    share = 100 * sum(counts) / len(counts) / 10816
    return share, f"a mean over the layers: {100 * counts[0] / 10816:.0f} % enter the language model"


def fastvid_tokens_pruned() -> tuple[float, str]:
    """Whole tokens per frame at 10 %, rounded down, as its release does."""
    kept = int(CELLS * 0.10)
    return 100 * (1 - kept / CELLS), f"{kept} of {CELLS} tokens of each frame stay: the share rounded down, as released"


DERIVED: dict[str, Callable[[], tuple[float, str]]] = {
    one.__name__: one for one in (holitom_tokens_removed, hieravid_mean_share, fastvid_tokens_pruned)
}


def _headline(values: Mapping[str, Any], others: Mapping[str, Judged]) -> Judged:
    if "same_as" in values:
        if values["same_as"] not in others:
            raise BadUsage(
                f"{values['id']} stands for {values['same_as']!r}, which is no claim", fix="name a claim's id"
            )
        same = others[values["same_as"]]
        reason = f"as {same.id}: {same.reason}" + (f"; {values['but']}" if "but" in values else "")
        found = {"id": values["id"], "statement": values["statement"], "place": _place(values), "reason": reason}
        return replace(same, **found, reading=same.reading or "text")
    common: dict[str, Any] = {
        "id": values["id"],
        "statement": values["statement"],
        "place": _place(values),
        "printed": values["value"],
        "unit": values["unit"],
        "reading": values["read"],
        "experiment": "headlines",
    }
    if "derive" in values:
        if values["derive"] not in DERIVED:
            raise BadUsage(
                f"no function {values['derive']!r} for {values['id']}", fix=f"use one of {', '.join(DERIVED)}"
            )
        computed, why = DERIVED[values["derive"]]()
        digits = str(values["value"]).partition(".")[2]
        if values.get("bound") == "above":
            verdict = Verdict.REPRODUCED if computed > values["value"] else Verdict.NOT_REPRODUCED
        else:
            verdict = judge_value(values["value"], computed, len(digits))
        reason = f"{computed:.{len(digits) + 2}f} {values['unit']}: {why}"
        words = {"tolerance": values["tolerance"], "reason": reason, "source": "derived"}
        return Judged(**common, **words, computed=computed, verdict=verdict)
    if "quoted" not in values:
        raise BadUsage(f"{values['id']} says neither same_as, derive nor quoted", fix="say how it could be judged")
    words = {"tolerance": "none: it is not checked here", "reason": values["quoted"], "source": "quoted"}
    return Judged(**common, **words, verdict=Verdict.QUOTED)


def _place(values: Mapping[str, Any]) -> str:
    return f"{values['paper']}, {values['place']}"
