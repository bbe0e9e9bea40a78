"""``python -m holitom_repro bench latency``: the command line over ``holitom_repro.latency.measuring``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from holitom.errors import BadUsage
from holitom_repro.latency.content import similarity_of
from holitom_repro.latency.decoding import check_ways
from holitom_repro.latency.measuring import Protocol, Record, measure
from holitom_repro.latency.plan import PARTS, TIERS
from holitom_repro.latency.records import stored_lines, write
from holitom_repro.latency.running import described, record_plan
from holitom_repro.latency.settings import FULL, NAMES, PRINTED, printed_setting, row_of, setting
from holitom_repro.latency.shapes import DTYPES, FOLDERS, SHAPES, Loaded, load
from holitom_repro.refusals import device as known_device
from holitom_repro.refusals import file_to_write, given
from holitom.types import Reduction, check_budget
from holitom_repro.usage import Parser

DESCRIPTION = """\
Time to the first token, per stage and end to end, decode rate, peak memory and cache size of one model under several
methods, in one process. Models of the papers' shapes get random weights on the device; nothing is downloaded. Needs
torch, transformers and jaxtyping (torch 2.11 to 2.13 and transformers 5.17 or newer); --video also needs PyAV and
Pillow. The full model is always measured beside the methods, with its fastest attention backend."""
EPILOG = """\
examples:
  bench latency --model ov-7b --method holitom holitom-outer fastv --budget 0.1 --out data/measured/h200.jsonl
  bench latency --model ov-7b --method printed --out data/measured/h200.jsonl
  bench latency --model ov-72b-shape --layers 20 --method holitom --budget 0.15
  bench latency --plan speed --dry-run
  bench latency --plan speed --minutes 9 --out data/measured/h200.jsonl
  bench latency --plan speed --part aims --out data/measured/h200.jsonl
  bench latency --model tiny --device cpu --dtype float32 --repeats 5 --new-tokens 10 --content own"""


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="./reproduce.sh bench latency",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--model", default="ov-7b", help=f"{', '.join([*SHAPES, *FOLDERS])}, or a checkpoint's folder (ov-7b)")
    add("--method", nargs="+", default=["holitom"], help=f"{', '.join(NAMES)}; or printed: the figure's rows (holitom)")
    add("--budget", type=float, nargs="+", default=[0.10], help="shares of visual tokens kept, for each method (0.1)")
    add("--frames", type=int, nargs="+", help="frames of a video (as in the papers: 32, LLaVA-Video 64)")
    add("--batch", type=int, nargs="+", default=[1], help="videos at once (1)")
    add("--repeats", type=int, default=20, help="timed passes of each kind, after the warm-up (20)")
    add("--warmup", type=int, default=5, help="passes before timing (5)")
    add("--new-tokens", type=int, default=100, help="tokens behind the decode rate; 0: no decoding (100)")
    add("--decode-repeats", type=int, default=5, help="in how many repeats they are generated (5)")
    add("--decode", nargs="+", default=["eager"], help="ways of generating: eager, static, graph (eager)")
    add("--device", help="cuda or cpu (cuda where there is one)")
    add("--dtype", choices=list(DTYPES), default="bfloat16", help="(bfloat16)")
    add("--layers", type=int, help="cut the decoder to so many layers; the total is extrapolated and says so")
    add("--content", default="clip", help="clip: as alike as the shipped clip; clip-tower; static:SHARE; own (clip)")
    add("--video", type=given, help="also time decoding and preprocessing of this file, and use its pixels")
    add("--seed", type=int, default=0, help="of weights and inputs (0)")
    add("--out", type=given, metavar="FILE", help="append the records to this JSON lines file")
    add(
        "--plan",
        choices=TIERS,
        help="speed, tiny: everything that fig-inference shows, in parts; cpu: the paper's main shape on a CPU, hours; "
        "what --out holds is not measured again",
    )
    add("--part", nargs="+", help=f"only these parts of the plan: {', '.join(PARTS)}")
    add("--minutes", type=float, help="begin no size of the plan that would end later than this")
    add("--dry-run", action="store_true", help="say what --plan would measure, and how long it is expected to take")
    add("--quiet", action="store_true", help="no progress bar")
    return made


def run(argv: Sequence[str] = ()) -> int:
    """Measure, print the table, append to --out. Exit code 0, also when some settings ran out of memory."""
    args = parser().parse_args(list(argv))
    _check(args)
    import torch

    if args.device:
        known_device(args.device)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.plan:
        return _plan(args, device)
    loaded = load(args.model, device=device, dtype=args.dtype, layers=args.layers, seed=args.seed)
    protocol = Protocol(
        repeats=args.repeats,
        warmup=args.warmup,
        new_tokens=args.new_tokens,
        decode_repeats=args.decode_repeats,
        ways=check_ways(args.decode),
        video=args.video,
        seed=args.seed,
    )
    wanted = settings_of(args.method, args.budget, loaded)
    frames = args.frames or [loaded.frames]
    records: list[Record] = []
    with progress(len(frames) * len(args.batch) * len(wanted) * protocol.passes, quiet=args.quiet) as advance:
        for count in frames:
            for batch in args.batch:
                part = measure(
                    loaded,
                    wanted,
                    frames=count,
                    batch=batch,
                    similarity=similarity_of(args.content),
                    protocol=protocol,
                    advance=advance,
                )
                if args.out:
                    write(args.out, part, append=True)  # at once: a later size may end the process
                records += part
    print(table(records))
    return 0


def _plan(args: argparse.Namespace, device: str) -> int:
    """The figure's whole grid; what the file holds already is not measured again."""
    if args.plan == "cpu":
        device = "cpu"
    if args.dry_run:
        aim = "cuda" if args.plan == "speed" else device
        print(described(args.plan, args.out, aim, args.part, None))
        return 0
    if args.out is None:
        raise BadUsage("--plan without --out", fix="name the file to record in, e.g. --out data/measured/h200.jsonl")
    done = record_plan(
        args.plan,
        args.out,
        device=device,
        parts=args.part,
        minutes=args.minutes,
        progress=partial(progress, quiet=args.quiet),
    )
    print(table(done.records))
    if done.left:
        names = ", ".join(f"{size.part} ({size.frames} frames, batch {size.batch})" for size in done.left)
        print(f"\nnot begun within {args.minutes:g} minutes: {names}. The same command goes on there.")
    return 0


def settings_of(methods: Sequence[str], budgets: Sequence[float], loaded: Loaded) -> list[tuple[str, Reduction]]:
    """The full model first, then every method at every budget; "printed": the figure's rows at their own budgets."""
    wanted: list[tuple[str, Reduction]] = [("all tokens", Reduction(FULL))]
    for name in methods:
        if name == "printed":
            wanted += [("printed", printed_setting(row, loaded.layers)) for row, _ in PRINTED if row != FULL]
            continue
        if (row := row_of(name)) == FULL:
            continue
        for budget in budgets:
            made = setting(row, check_budget(budget), loaded.preset, loaded.layers)
            wanted.append((f"{budget:.0%}", made))
    return wanted


def table(records: Sequence[Record]) -> str:
    """The records as one plain table for each part, number of frames and batch. "x full": against the full model of the
    same run, "-" where that ran out of memory."""
    lines: list[str] = []
    group: tuple[Any, ...] = ()
    base: float | None = None
    for record in records:
        if (record["part"], record["frames"], record["batch"]) != group:
            group, base = (record["part"], record["frames"], record["batch"]), None
            lines += ["", *_head(record)]
        if record["outcome"] != "measured":
            lines.append(f"{record['row']:<18}{record['at']:>11}  {record['outcome']}: {record['reason']}")
            continue
        if record["row"] == FULL:
            base = record["summary"]["ttft_ms"]["median"]
        lines.append(_line(record, base))
    return "\n".join(lines[1:])


def _head(record: Record) -> list[str]:
    part = f"{record['part']}: " if record["part"] else ""
    state = "" if record["state"]["idle"] else f"; NOT IDLE: {record['state']['reason']}"
    how = ", ".join(record[name] for name in ("device", "dtype", "attention", "clock"))
    return [
        f"{part}{record['model']} ({record['weights']} weights, {record['layers']} layers), {record['frames']} frames, "
        f"batch {record['batch']}, {how}{state}",
        f"{'method':<18}{'at':>11}{'tokens':>9}{'TTFT ms':>10}{'IQR':>16}{'x full':>8}{'prefill':>10}{'added':>9}"
        f"{'tok/s':>8}{'waits':>7}",
    ]


def _line(record: Record, base: float | None) -> str:
    summary, ttft = record["summary"], record["summary"]["ttft_ms"]
    rate, waits = summary["decode_tok_s"], record["host_syncs"].get("count")
    faster = "-" if base is None else f"{base / ttft['median']:.2f}x"
    return (
        f"{record['row']:<18}{record['at']:>11}{record['realised_tokens'] or 0:>9.0f}{ttft['median']:>10.1f}"
        f"{ttft['q1']:>8.1f}-{ttft['q3']:<7.1f}{faster:>8}{summary['stages_ms']['prefill']['median']:>10.1f}"
        f"{summary['added_ms']['median']:>9.2f}{rate['median'] if rate else float('nan'):>8.1f}"
        f"{'-' if waits is None else waits:>7}"
    )


def _check(args: argparse.Namespace) -> None:
    for name in ("repeats", "warmup"):
        if getattr(args, name) < 1:
            raise BadUsage(f"--{name} {getattr(args, name)}", fix="give 1 or more")
    for name in ("frames", "batch"):
        if min(getattr(args, name) or [1]) < 1:
            raise BadUsage(f"--{name} {getattr(args, name)}", fix="give numbers from 1 on")
    if min(args.new_tokens, args.decode_repeats) < 0:
        raise BadUsage("a negative number of tokens or repeats", fix="give 0 to leave decoding out")
    if not args.plan and (args.dry_run or args.part or args.minutes is not None):
        raise BadUsage(
            "--part, --minutes and --dry-run belong to a plan", fix="add --plan speed, --plan tiny or --plan cpu"
        )
    if args.minutes is not None and not args.minutes >= 0:  # nan is refused, too
        raise BadUsage(f"--minutes {args.minutes:g}", fix="give a number of minutes, or leave it out")
    if args.out is not None and file_to_write(args.out, "--out").exists() and not args.plan:
        stored_lines(args.out)  # refuses what cannot be appended to; a plan reads it itself
    if args.video is not None and not args.video.is_file():
        raise BadUsage(f"there is no file {args.video}", fix="check the path, or leave --video out")


@contextmanager
def progress(passes: int, *, quiet: bool) -> Iterator[Callable[[int], Any]]:
    """A bar with an estimate on stderr, where tqdm is there (transformers brings it)."""
    from tqdm import tqdm

    with tqdm(total=passes, unit="pass", desc="timing", file=sys.stderr, disable=quiet or None) as bar:
        yield bar.update
