"""The command line of ``python -m holitom_repro bench ops``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import torch

from holitom_repro.bench.against_loop import SCALING, bench_loop, table
from holitom_repro.bench.methods import NAMES, bench_methods, methods_table
from holitom_repro.refusals import at_least_one, file_to_write, given, present
from holitom_repro.results import write_atomic
from holitom.types import check_budget
from holitom_repro.usage import Parser


def run(argv: Sequence[str] = ()) -> int:
    """Measure, print the tables, progress on stderr. With --method only the methods' table."""
    args = _parser().parse_args(list(argv))
    present(args.device)
    if args.json:
        file_to_write(args.json, "--json")
    if args.threads:
        torch.set_num_threads(args.threads)
    check_budget(args.budget)
    setting = {"budget": args.budget, "repeats": args.repeats, "device": args.device}
    setting["dtype"] = getattr(torch, args.dtype)
    names = [name for part in args.method or NAMES for name in part.split(",")]
    _say(f"bench ops: {len(names)} methods, {args.dtype} on {args.device}")
    rows = bench_methods(names, dim=args.dim, bar=True, **setting)
    if not args.method:
        videos = [(frames, (14, 14), args.dim) for frames in args.frames]
        rows += bench_loop(videos, args.scaling, loop=args.loop, progress=_say, **setting)
    print(f"{args.dtype} on {args.device}, {torch.get_num_threads()} threads; medians of {args.repeats}\n")
    print(f"Every method at 32 x 196 x {args.dim}\n\n{methods_table(rows)}")
    if not args.method:
        print(f"\nHoliTom's outer stage, budget {args.budget:g}, against plain loops and over longer videos\n")
        print(table(rows))
    if args.json:  # after the tables: a full disk must not cost what was timed
        sys.stdout.flush()
        write_atomic(args.json, "".join(json.dumps(row) + "\n" for row in rows))
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="./reproduce.sh bench ops",
        description="Time and memory of every method, as ratios to one reading of the tokens and to HoliTom's outer "
        "stage; then HoliTom's outer stage (tau 0.8) against plain loops, and over videos of growing length.",
    )
    parser.add_argument("--method", nargs="+", metavar="NAME", help=f"only these methods: {', '.join(NAMES)}")
    parser.add_argument("--budget", type=float, default=0.15, help="share of tokens that outer stages keep")
    parser.add_argument("--frames", type=at_least_one, nargs="*", default=[32, 128], help="compared with the loop")
    parser.add_argument("--dim", type=at_least_one, default=3584, help="token size (default 3584, a 7B model)")
    parser.add_argument(
        "--scaling", type=at_least_one, nargs="*", default=list(SCALING), help="frames of the scaling table"
    )
    parser.add_argument("--repeats", type=at_least_one, default=5, help="timed runs; the median counts")
    parser.add_argument("--no-loop", dest="loop", action="store_false", help="do not run the plain loops")
    parser.add_argument("--threads", type=at_least_one, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--json", type=given, metavar="FILE", help="also write the rows as JSON lines")
    return parser
