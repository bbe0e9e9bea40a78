"""``python -m holitom_repro.paper_tier table1``: measure an experiment's cells in this process, or in each of a launch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from holitom_repro import caches
from holitom.errors import BadUsage, KitError
from holitom_repro.usage import Parser


def _part(text: str) -> tuple[int, int]:
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and int(number) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a part such as 0/16 (the first of 16)")
    return int(number), int(parts)


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m holitom_repro.paper_tier", description=__doc__.strip("`").split("``: ")[-1])
    p.add_argument("experiment", help="table1, table2, fig-frames, ... (./reproduce.sh list)")
    p.add_argument("--limit", type=int, metavar="N", help="only the first N questions of each task: a trial, no gate")
    p.add_argument("--part", type=_part, default=(0, 1), metavar="I/N", help="one of N shares of the cells, from 0")
    p.add_argument("--gate-only", action="store_true", help="measure the unreduced models only, and judge them")
    p.add_argument("--no-gate", action="store_true", help="go on where an unreduced model is off the printed baseline")
    p.add_argument("--fresh", action="store_true", help="compute every cell again")
    p.add_argument("--include", type=Path, action="append", default=[], metavar="DIR", help="task files for local data")
    return p


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code; failures are told in one message, by the first process only."""
    try:
        args = parser().parse_args(words)
        caches.keep_inside("paper")
        from holitom_repro.experiments import cells, find
        from holitom_repro.paper_tier.measuring import Settings, measure

        experiment = find(args.experiment)
        wanted = cells(experiment.name, "paper", args.limit)
        if not wanted:
            raise BadUsage(f"{experiment.target} measures nothing in the paper tier", fix="see ./reproduce.sh list")
        settings = Settings(not args.no_gate, args.gate_only, args.part, args.fresh, tuple(args.include))
        records = measure(wanted, settings)
    except KitError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"paper tier: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        exec("")  # see cli.main
        return 130
    if os.environ.get("RANK", "0") == "0":
        print(f"{len(records)} cells are finished", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
