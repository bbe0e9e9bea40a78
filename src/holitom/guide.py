"""The notebooks as a reader finds them: in groups, each with a link, its question, its cost and how far it got here."""

from __future__ import annotations

from holitom.experiments.registry import check_tier
from holitom.experiments.status import status
from holitom.report.outline import NotebookPage, notebooks


def guide(tier: str) -> str:
    """A Markdown table of all notebooks but the start page, with links relative to their folder. BadUsage for an
    unknown tier."""
    from holitom.experiments.registry import EXPERIMENTS

    check_tier(EXPERIMENTS["start"], tier if tier != "speed" else "tiny")
    lines = ["| notebook | question | run it | cost | here |", "|---|---|---|---|---|"]
    for group, pages in notebooks(tier).items():
        shown = [page for page in pages if page.name != "00_start_here"]
        lines += [f"| **{group}** | | | | |", *(_line(page) for page in shown)] if shown else []
    return "\n".join(lines)


def _line(page: NotebookPage) -> str:
    experiment = page.experiment
    cost = page.cost or ("under a minute, 2 CPU cores" if experiment is None else f"not in the {page.tier} tier")
    here = status(experiment, page.tier).words if experiment is not None and page.cost else "–"
    question = experiment.question if experiment is not None else page.question
    return f"| [{page.name}]({page.name}.ipynb) | {question} | `{page.command}` | {cost} | {here} |"
