"""The command line: which target, with which options; every outcome as an exit code, every expected failure in words.

Exit codes: 0 ran to its end, 1 a checked claim does not hold (with --strict), 2 could not run (the message names the
fix), 3 bad usage, 130 stopped by ctrl-C. Nothing heavy is imported before a target needs it.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Sequence

from holitom import __version__
from holitom.errors import BadUsage, KitError
from holitom_repro.experiments.registry import EXPERIMENTS, TIERS, find
from holitom_repro.refusals import at_least_one
from holitom_repro.suggestions import nearest
from holitom_repro.usage import Parser

PROG = "./reproduce.sh"
FORWARDED = {  # targets with a parser of their own: everything after the name is theirs
    "demo": "HoliTom on one video, as a picture and in numbers [--video FILE --frames 32 --budget 0.1 --tau 0.8]",
    "convert": "a checkpoint of the original LLaVA-NeXT format for transformers [--from DIR --to DIR --pool average]",
    "export-embeds": "a reduced prompt as embeddings for vLLM or SGLang [--model DIR --video FILE --out FILE ...]",
    "train-tiny": "rebuild the models of the tiny tier from their seeds, resumable",
    "bench": "speed and memory: bench ops (the algorithms), latency (whole models), released (the authors' code)",
    "report": "a static site of every claim and notebook, opened from disk [--tier TIER --out DIR --execute]",
    "explore": "the explorer in JupyterLab: any video, two methods side by side (options of jupyter lab may follow)",
    "lab": "JupyterLab on the notebooks (options of jupyter lab may follow)",
    "test": "ruff, then every test and notebook at a reduced size (options of pytest may follow)",
}
EPILOG = """\
exit codes: 0 ran to its end, 1 a checked claim does not hold (--strict), 2 could not run, 3 bad usage, 130 ctrl-C
start with: ./reproduce.sh list, then ./reproduce.sh table2"""


def _tier(text: str) -> str:
    if text not in TIERS:
        raise argparse.ArgumentTypeError(
            f"there is no tier {text!r}{nearest(text, TIERS)}; the tiers are {', '.join(TIERS)}"
        )
    return text


def parser() -> argparse.ArgumentParser:
    """The parser of every target but the forwarded ones, which it only lists."""
    top = Parser(
        prog=PROG, description="Reproduce HoliTom's tables and figures.", epilog=EPILOG, formatter_class=_Plain
    )
    top.add_argument("--version", action="version", version=f"holitom {__version__}")
    targets = top.add_subparsers(dest="target", metavar="<target>", title="targets")

    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="show the traceback of an error")
    tier = argparse.ArgumentParser(add_help=False)
    tier.add_argument("--tier", type=_tier, default="tiny", metavar="TIER", help="tiny (default), speed or paper")
    run = argparse.ArgumentParser(add_help=False)
    pace = run.add_mutually_exclusive_group()
    pace.add_argument("--resume", action="store_true", help="keep finished cells (the default)")
    pace.add_argument("--fresh", action="store_true", help="compute every cell again")
    run.add_argument(
        "--limit", type=at_least_one, metavar="N", help="only the first N questions of each benchmark: a trial"
    )
    run.add_argument("--dry-run", action="store_true", help="say what would be computed, and compute nothing")
    run.add_argument("--strict", action="store_true", help="exit 1 when a checked claim does not hold")
    run.add_argument(
        "--processes",
        type=at_least_one,
        metavar="N",
        help="tiny tier: N processes of one thread (default: one for each core, as far as memory reaches); "
        "paper tier: N processes, one GPU each (default: 1)",
    )
    run.add_argument("--no-gate", action="store_true", help="paper tier: go on where the full model is off the print")

    def add(name: str, about: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        made = targets.add_parser(
            name,
            help=about.replace("%", "%%"),  # argparse formats this text, and only this one
            description=about,
            parents=[*parents, debug],
            formatter_class=_Plain,
        )
        return made

    add("list", "every experiment: question, claims, cost per tier, status here", tier).add_argument(
        "--json", action="store_true", help="as JSON"
    )
    for experiment in EXPERIMENTS.values():
        add(experiment.target, experiment.question, tier, run)
    add("all", "every experiment, one after the other, and one screen at the end", tier, run)
    claims = add(
        "claims", "the ledger: every claim of the papers with its verdict here, and what would judge the others", tier
    )
    claims.add_argument("--json", action="store_true", help="as JSON")
    claims.add_argument("--strict", action="store_true", help="exit 1 when a checked claim does not hold")
    claims.add_argument("--details", action="store_true", help="every claim with its reason, not only the counts")
    claims.add_argument(
        "--only", metavar="ID,...", help="these claims in full: C12, a name, or a pattern like 'finding-*'"
    )
    add("doctor", "this machine against what each tier needs").add_argument(
        "--json", action="store_true", help="as JSON"
    )
    for name, about in FORWARDED.items():
        targets.add_parser(name, help=about, add_help=False)
    return top


class _Plain(argparse.RawDescriptionHelpFormatter):
    """Keeps the epilogue's lines and gives the targets' names room."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)


def names() -> list[str]:
    """Every target, as typed."""
    return ["list", *(e.target for e in EXPERIMENTS.values()), "all", "claims", "doctor", *FORWARDED]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code and lets no expected failure escape as a traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    _writable_streams()
    debug = "--debug" in words
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse's --help and --version, or a forwarded parser's own error
        return {None: 0, 0: 0, 2: 3}.get(stop.code, 2) if not isinstance(stop.code, str) else _say(stop.code, 2)
    except KeyboardInterrupt as stop:
        # CPython remembers that code compiled from text (a dataclass being made, say) was interrupted, and would end by
        # the signal whatever is returned here; running other text makes it forget
        exec("")
        if debug:
            traceback.print_exc()
        elif sys.unraisablehook is sys.__unraisablehook__:
            sys.unraisablehook = lambda _: None  # a progress bar that was interrupted while being made complains
        return _say(str(stop) or "stopped; run the same command to continue", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has gone (| head): nothing is wrong
        return 141
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _explain(error)


def _writable_streams() -> None:
    """Something to write to where a stream is closed (>&-), and "?" for what a terminal's encoding does not have."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            try:
                os.fstat(number)
            except OSError:  # else the next file to be opened would take the number, and what others print
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
                os.set_inheritable(number, True)
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure") and not (stream.encoding or "").lower().startswith("utf"):
            stream.reconfigure(errors="replace")


def _explain(error: Exception) -> int:
    if isinstance(error, KitError):
        return _say(f"{PROG}: {error}", error.exit_code)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        if error.filename is None:  # a full disk behind stdout would fail again when the interpreter flushes it
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        place = f" while writing {error.filename}" if error.filename else ""
        fix = "Free some space (runs/cache can be deleted) and run the same command: finished cells are kept."
        return _say(f"{PROG}: the disk is full{place}. {fix}", 2)
    if isinstance(error, OSError):
        return _say(f"{PROG}: {error}. Check the file and your rights to it; --debug shows where.", 2)
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    first = str(error).strip().split("\n")[0]
    return _say(f"{PROG}: a fault in the kit, {kind}: {first}. Run again with --debug and report what it prints.", 2)


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


def _dispatch(words: list[str]) -> int:
    if not words:
        parser().print_help()
        return 3  # nothing was asked for: a script with an empty variable must not look successful
    words = _target_first(words)
    name, rest = words[0], [word for word in words[1:] if word != "--debug"]
    if name == "help":
        words = [*(word for word in rest[:1] if word in names()), "--help"]
        name, rest = words[0], words[1:]
    if not name.startswith("-") and name not in names():
        raise BadUsage(f"there is no target {name!r}{nearest(name, names())}", fix=f"use one of {', '.join(names())}")
    if name in FORWARDED:
        from holitom_repro import forwarded

        return forwarded.run(name, rest)
    args = parser().parse_args(words)
    if args.target == "list":
        from holitom_repro import overview

        return overview.show(args.tier, as_json=args.json)
    if args.target == "doctor":
        from holitom_repro import doctor

        return doctor.show(as_json=args.json)
    if args.target == "claims":
        from holitom_repro import verdicts

        return verdicts.show(
            args.tier, as_json=args.json, strict=args.strict, details=args.details, only=args.only or ""
        )
    from holitom_repro import runner

    if args.tier != "paper" and args.no_gate:
        raise BadUsage("--no-gate belongs to the paper tier", fix="add --tier paper, or leave it out")
    if args.tier == "speed" and args.processes:
        raise BadUsage("the speed tier times one model at a time, in one process", fix="leave --processes out")
    options = runner.Options(
        tier=args.tier,
        limit=args.limit,
        fresh=args.fresh,
        dry_run=args.dry_run,
        strict=args.strict,
        processes=args.processes,
        gate=not args.no_gate,
    )
    return runner.run_all(options) if args.target == "all" else runner.run(find(args.target), options)


def _target_first(words: list[str]) -> list[str]:
    """``--tier tiny table1`` means ``table1 --tier tiny``."""
    if words[0].startswith("-") and words[0] not in ("-h", "--help", "--version"):
        for place, word in enumerate(words):
            if word in names():
                return [word, *words[:place], *words[place + 1 :]]
    return words
