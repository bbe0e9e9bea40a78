"""The notebooks as a reader finds them: in groups, each with a link, its question, its cost and how far it got here."""

from __future__ import annotations

from holitom.errors import BadUsage
from holitom_repro.experiments.registry import EXPERIMENTS, TIERS
from holitom_repro.experiments.status import status
from holitom_repro.report.outline import NotebookPage, notebooks

START = "00_start_here"


def guide(tier: str) -> str:
    """A Markdown table of all notebooks but the start page, with links relative to their folder. BadUsage for an
    unknown tier."""
    if tier not in TIERS:
        raise BadUsage(f"there is no tier {tier!r}", fix=f"use one of {', '.join(TIERS)}")
    lines = ["| notebook | question | target | cost | here |", "|---|---|---|---|---|"]
    for group, pages in notebooks(tier).items():
        lines += [f"| **{group}** | | | | |"] + [_line(page) for page in pages if page.name != START]
    return "\n".join(lines)


def _line(page: NotebookPage) -> str:
    link = f"[{page.name}]({page.name}.ipynb)"
    if page.experiment is None:  # the explorer: sliders, nothing to reproduce
        question = page.question.split(":")[0].rstrip("?") + "?"
        return f"| {link} | {question} | `explore` | {EXPERIMENTS['method'].costs['tiny']} | – |"
    cost = page.cost or f"not in the {page.tier} tier"
    here = status(page.experiment, page.tier).words if page.cost else "–"
    return f"| {link} | {page.experiment.question} | `{page.experiment.target}` | {cost} | {here} |"
