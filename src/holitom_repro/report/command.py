"""``./reproduce.sh report``: builds the site; with --execute, first the notebooks that need nothing to be measured."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from holitom_repro import caches, execution, machine, paths
from holitom.errors import BadUsage, KitError
from holitom_repro.experiments.registry import TIERS, Experiment
from holitom_repro.suggestions import nearest
from holitom_repro.usage import Parser

STEPS_BESIDE_NOTEBOOKS = 2


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="./reproduce.sh report",
        description="A static site: every claim with its verdict, the method, a page for each notebook. "
        "It opens from disk, without a server and without the internet.",
    )
    made.add_argument("--tier", default="tiny", metavar="TIER", help="tiny (default), speed or paper")
    made.add_argument("--out", type=Path, metavar="DIR", help="folder of the site (default: runs/<tier>/report)")
    made.add_argument(
        "--execute", action="store_true", help="first execute the notebooks whose cells are all finished (minutes)"
    )
    return made


def run(words: list[str]) -> int:
    """Build the site; returns the exit code. KitError for a wrong tier or folder."""
    args = parser().parse_args(words)
    if args.tier not in TIERS:
        raise BadUsage(
            f"there is no tier {args.tier!r}{nearest(args.tier, TIERS)}", fix=f"use one of {', '.join(TIERS)}"
        )
    from tqdm import tqdm

    from holitom_repro.report.outline import notebooks
    from holitom_repro.report.site import build, check

    out = check(args.out or paths.runs(args.tier, "report"))
    pages = [page for group in notebooks(args.tier).values() for page in group]
    caches.keep_inside(args.tier)
    if args.execute:
        _execute(args.tier, [page.name for page in pages])
    quiet = not sys.stderr.isatty()
    with tqdm(total=len(pages) + STEPS_BESIDE_NOTEBOOKS, desc="report", leave=False, disable=quiet) as bar:

        def tell(step: str) -> None:
            bar.set_postfix_str(step)
            bar.update()

        start = build(args.tier, out, tell=tell)
    missing = [page for group in notebooks(args.tier).values() for page in group if not page.executed]
    size = sum(path.stat().st_size for path in start.parent.rglob("*") if path.is_file())
    print(f"{start} ({size / 1e6:.1f} MB, {len(pages) - len(missing)} of {len(pages)} notebooks executed)")
    for page in missing:
        print(f"  not executed: {page.command}")
    return 0


def _execute(tier: str, names: list[str]) -> None:
    """Execute what only reads finished cells; a notebook that stops is said and left for its page to show."""
    from holitom_repro.report.outline import NotebookPage

    for name in names:
        experiment = NotebookPage(name, tier).experiment
        if experiment is not None and not _only_reads(experiment, tier):
            continue
        try:
            copy = execution.execute(name, tier, {"tier": tier}, progress=sys.stderr.isatty())
            print(f"executed {copy.relative_to(paths.root())}", file=sys.stderr)
        except KitError as error:
            print(f"{name}: {error}", file=sys.stderr)


def _only_reads(experiment: Experiment, tier: str) -> bool:
    """Whether its notebook would measure nothing: asked of the cells, for a plan may be that of earlier code."""
    if tier not in experiment.costs or experiment.times or machine.lacking(tier):
        return False
    if not experiment.measures:
        return True
    from holitom_repro.evaluation import sweep
    from holitom_repro.experiments import cells

    return not sweep.unfinished(cells(experiment.name, tier), tier, runs=paths.runs())
