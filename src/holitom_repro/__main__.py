"""The commands: ``./reproduce.sh COMMAND``, or ``python -m holitom_repro COMMAND`` in an environment of your own.

Exit codes: 0 ran to its end, 1 a verdict is not the expected one (--strict), 2 could not run (the message names the
fix), 3 bad usage, 130 stopped by ctrl-C. Nothing heavy is imported before a command needs it.
"""

import errno
import os
import re
import shlex
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from holitom.errors import BadUsage, KitError
from holitom_repro import machine, notebooks, paths
from holitom_repro.notebooks import HARDWARE, NOTEBOOKS, Finished, Notebook

PROG = "./reproduce.sh"
Option = typer.Option


def _skip(asked: bool) -> bool:
    """For evaluation.sweep, in the processes that a notebook starts."""
    if asked:
        os.environ["HOLITOM_SKIP_BROKEN"] = "1"
    return asked


Tier = Annotated[Literal["tiny", "speed", "paper"], Option(help="what is measured, on which hardware: see list")]
Limit = Annotated[int | None, Option(min=1, metavar="N", help="a trial: the first N questions of each benchmark")]
Given = Annotated[list[str] | None, Option("-p", metavar="KEY VALUE", help="a parameter of the notebook's first cell")]
Out = Annotated[str, Option(metavar="DIR", help="where to write, instead of figures/<tier> or runs/<tier>/report")]
Fresh = Annotated[bool, Option("--fresh/--resume", help="measure finished cells again, or read them")]
Strict = Annotated[bool, Option("--strict", help="exit 1 when a verdict is not the expected one")]
Skip = Annotated[
    bool, Option("--skip-broken", help="count questions about unreadable videos instead of stopping", callback=_skip)
]
Rest = Annotated[list[str] | None, typer.Argument(metavar="[MORE]", help="handed on: options of the program behind it")]
Record = Annotated[bool, Option("--record", help="keep what was measured here as the recorded verdicts")]
AsJson = Annotated[bool, Option("--json", help="a list of objects: id, paper, kind, statement, verdict, expected")]


class Commands(TyperGroup):
    """A notebook's command is known by the name of its file, too: 02_flops, fig_inner."""

    def get_command(self, ctx: Any, name: str) -> Any:
        return super().get_command(ctx, re.sub(r"^\d+-", "", name.replace("_", "-")))


class WithParameters(TyperCommand):
    """``-p KEY VALUE``, as papermill has it, as often as needed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words, joined = iter(args), []
        for word in words:
            joined.append(word if word != "-p" else f"-p{next(words, '')}={next(words, '')}")
        return super().parse_args(ctx, joined)


app = typer.Typer(cls=Commands, add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
MORE = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.callback(epilog="Exit codes: 0 done, 1 a verdict differs (--strict), 2 could not run, 3 bad usage, 130 ctrl-C.")
def top() -> None:
    """HoliTom and its relatives, reproduced. Begin with list, then table2. A command that was stopped goes on where it
    was when it is run again. --debug shows the traceback of an error."""


@app.command("list", rich_help_panel="Overview")
def list_() -> int:
    """Every notebook: question, minutes, hardware, tiers."""
    table = Table("command", "question", *HARDWARE, box=None, pad_edge=False)
    for one in NOTEBOOKS.values():
        table.add_row(one.command, one.question, *(_minutes(one, tier) for tier in HARDWARE))
    Console().print(table)
    print(f"\nFrom an empty cache. {'; '.join(f'{tier}: {hardware}' for tier, hardware in HARDWARE.items())}.")
    print(f"Run one of them: {PROG} table2 [--tier tiny] [-p KEY VALUE]")
    return 0


def _minutes(notebook: Notebook, tier: str) -> str:
    minutes = notebook.minutes.get(tier)
    return "-" if minutes is None else f"{minutes:g} min" if minutes < 120 else f"{minutes / 60:g} h"


def _add(notebook: Notebook) -> None:
    @app.command(notebook.command, cls=WithParameters, help=notebook.question, context_settings=MORE)
    def command(
        more: Rest = None,
        tier: Tier = "tiny",
        limit: Limit = None,
        p: Given = None,
        out: Out = "",
        fresh: Fresh = False,
        strict: Strict = False,
        skip_broken: Skip = False,
    ) -> int:
        _paper_options(tier, more or [])
        asked = {name: value for name, value in {"limit": limit, "out": out, "fresh": fresh}.items() if value}
        done = _run(notebook, tier, asked | dict(pair.partition("=")[::2] for pair in p or []))
        _show(done)
        return _report_odd([done], strict)


for _one in NOTEBOOKS.values():
    if _one.name != "explore":
        _add(_one)


def _paper_options(tier: str, words: list[str]) -> None:
    """What else stands on the line belongs to the paper tier, which reads it where it measures."""
    if words and tier != "paper":
        raise BadUsage(f"{words[0]!r} is not known here", fix=f"{PROG} COMMAND --help lists what is")
    if words:
        from holitom_repro import paper_tier

        paper_tier.parser().parse_args(words)
        os.environ[paper_tier.OPTIONS] = shlex.join(words)


def _run(notebook: Notebook, tier: str, given: dict[str, Any]) -> Finished:
    """Everything that can be refused is refused before any work."""
    if tier not in notebook.minutes:
        fix = f"use {' or '.join(f'--tier {name}' for name in notebook.minutes)}"
        raise BadUsage(f"{notebook.command} is not offered in the {tier} tier", fix=fix)
    source = notebooks.source(notebook.name)
    if "tier" in notebooks.parameters(source):
        given = {"tier": tier, **given}
    notebooks.checked(source, given)
    machine.require(tier)
    print(f"{notebook.command}: {notebook.question} ({_minutes(notebook, tier)} from an empty cache)", file=sys.stderr)
    return notebooks.run(notebook.name, given)


@app.command("all")
def all_(
    tier: Tier = "tiny", limit: Limit = None, fresh: Fresh = False, strict: Strict = False, skip_broken: Skip = False
) -> int:
    """Every notebook of the tier, each as far as it gets; what failed is named at the end."""
    machine.require(tier)
    finished, failed = [], []
    for one in NOTEBOOKS.values():
        if tier not in one.minutes:
            continue
        known = notebooks.parameters(notebooks.source(one.name))
        asked = {name: value for name, value in {"limit": limit, "fresh": fresh}.items() if value and name in known}
        try:
            finished.append(_run(one, tier, asked))
            _show(finished[-1])
        except KitError as error:
            print(f"{PROG}: {error}", file=sys.stderr)
            failed.append(one.command)
    code = _report_odd(finished, strict)
    return _say(f"{PROG}: failed: {', '.join(failed)}", 2) if failed else code


@app.command(rich_help_panel="Overview")
def claims(json: AsJson = False, strict: Strict = False, record: Record = False) -> int:
    """The ledger: every claim of the papers with its verdict here."""
    from holitom_repro import claims as ledger

    if record:
        print(f"recorded in {os.path.relpath(ledger.record())}", file=sys.stderr)
    return ledger.claims_command(json, strict)


@app.command(rich_help_panel="Overview")
def report(tier: Tier = "tiny", out: Out = "") -> int:
    """Pages that open from disk: every claim, and every notebook as it was executed here."""
    from holitom_repro.report import build

    print(build(tier, Path(out).expanduser().absolute() if out else paths.runs(tier, "report")))
    return 0


@app.command(rich_help_panel="Overview")
def doctor() -> int:
    """This machine and this environment against what each tier needs."""
    return machine.doctor()


def _jupyter(name: str, notebook: str, about: str) -> None:
    @app.command(name, help=f"{about} Options of jupyter lab may follow.", context_settings=MORE)
    def command(more: Rest = None) -> None:
        root = ["--allow-root"] if os.geteuid() == 0 else []
        words = [str(notebooks.source(notebook)), f"--ServerApp.root_dir={paths.root()}", *root, *(more or [])]
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *words])  # so that ctrl-C is JupyterLab's own


_jupyter("lab", "00_start_here", "JupyterLab on the notebooks.")
_jupyter("explore", "explore", "JupyterLab on the explorer: two methods side by side on any clip.")


def _tool(name: str, module: str, about: str) -> None:
    @app.command(name, help=about, add_help_option=False, context_settings=MORE, rich_help_panel="Tools")
    def command(more: Rest = None) -> int:
        return import_module(f"holitom_repro.{module}").main(more or []) or 0


_tool("demo", "demo", "HoliTom on one video, as a picture and in numbers.")
_tool("convert", "convert", "A checkpoint of the original LLaVA-NeXT format for transformers.")
_tool("train-tiny", "tiny.train", "The models of the tiny tier, trained again from their seeds; resumable.")


@app.command(add_help_option=False, context_settings=MORE, rich_help_panel="Tools")
def bench(more: Rest = None) -> int:
    """Time and memory of every method's outer stage; --released DIR: HoliTom's beside the authors' code."""
    script = "released" if any(word.startswith("--released") for word in more or []) else "speed"
    return _python(str(paths.root() / "scripts" / f"{script}.py"), *(more or []))


@app.command(rich_help_panel="Tools")
def serving(figure: Annotated[bool, Option("--figure", help="measure figures/tiny/serving.png, too")] = False) -> int:
    """A real vLLM with the plug-in beside transformers, in .venv-vllm, which is made if need be (docs/serving.md)."""
    from holitom_repro.serving import serving_command

    return serving_command(figure)


@app.command(context_settings=MORE, rich_help_panel="Tools")
def test(more: Rest = None) -> int:
    """Style, then every test, with every notebook at a reduced size. Options of pytest may follow."""
    workers = ["-n", str(min(4, machine.cores())), "--dist", "worksteal"]
    steps = (["ruff", "check", "--quiet", "--no-cache", "."], ["ruff", "format", "--check", "--quiet", "."])
    for words in (*steps, ["pytest", *workers, *(more or [])]):
        print(f"$ {shlex.join(words)}", flush=True)
        if code := _python("-m", *words):
            return _say(f"{PROG}: {words[0]} failed (exit {code})", 130 if code in (130, -signal.SIGINT) else 1)
    return 0


def _python(*words: str) -> int:
    """This Python once more, in the checkout, with one core for each process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-P", *words], cwd=paths.root(), env=environment).returncode


def _show(done: Finished) -> None:
    """The tables that a notebook saved, its verdicts, and where everything lies."""
    console = Console()
    for path in done.files:
        if path.suffix == ".md":
            lines = path.read_text(encoding="utf-8").splitlines()
            console.print(_table(lines)) if console.is_terminal else print(*lines, sep="\n")
    if done.verdicts and not done.trial:
        from holitom_repro.claims import table

        console.print(table(done.verdicts))
    wrote = ", ".join(os.path.relpath(path) for path in (*done.files, done.copy))
    name = f"{done.notebook.stem}{', a trial' if done.trial else ''}"
    print(f"{name}: {done.seconds / 60:.1f} min; wrote {wrote}", file=sys.stderr)


def _table(lines: list[str]) -> Table:
    """A Markdown table for a terminal. Single benchmarks ("MVBench / tiny_actions") are left to the file; what is too
    wide even so goes on in the next line, no number is cut."""
    head, _, *rows = ([cell.strip() for cell in line.strip("| ").split("|")] for line in lines if line[:1] == "|")
    kept = [k for k, name in enumerate(head) if " / " not in name]
    below = [one for one in lines if one[:1] not in ("", "|")]
    below += ["every benchmark: the .md file"] if len(kept) < len(head) else []
    table = Table(*(Column(head[k], overflow="fold") for k in kept), box=box.SIMPLE, caption=Text("\n".join(below)))
    for row in rows:
        table.add_row(*(Text(row[k]) for k in kept))
    return table


def _report_odd(finished: Iterable[Finished], strict: bool) -> int:
    """Says which verdicts of complete runs are not the expected ones; the exit code."""
    verdicts = [one for done in finished for one in done.verdicts if not done.trial]
    if not verdicts:
        return 0
    from holitom_repro import claims as ledger

    odd = ledger.unexpected(verdicts)
    print(ledger.counted(verdicts), *odd, sep="\n")
    return int(strict and bool(odd))


def main(words: list[str] | None = None) -> int:
    """Run one command line; returns the exit code and lets no expected failure escape as a traceback."""
    words = list(sys.argv[1:] if words is None else words)
    debug, words = "--debug" in words, [word for word in words if word != "--debug"]
    words = [*words[1:2], "--help"] if words[:1] == ["help"] else words
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore ctrl-C
    try:
        notebooks.own_surroundings()
        code = app(words or ["--help"], prog_name=PROG, standalone_mode=False)
        if code == 130:
            raise KeyboardInterrupt  # typer has caught it
        sys.stdout.flush()
        return int(code or 0) if words else 3  # a script with an empty variable must not look successful
    except (KeyboardInterrupt, typer.Abort):
        bar = "\n" if sys.stderr.isatty() else ""
        return _say(f"{bar}stopped; what is finished is kept: run the same command to continue", 130)
    except SystemExit as stop:  # of a parser behind a tool; 1: of typer, where the reader has gone (| head)
        return _say(stop.code, 2) if isinstance(stop.code, str) else {None: 0, 0: 0, 1: 141, 2: 3}.get(stop.code, 2)
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _explained(error)


def _explained(error: Exception) -> int:
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    if isinstance(error, KitError):
        return _say(f"{PROG}: {error}", error.exit_code)
    if isinstance(error, typer.TyperException):
        return _say(f"{PROG}: {error.format_message()} {PROG} --help shows what is allowed.", 3)
    if isinstance(error, PermissionError) and error.filename:
        fix = "Use a checkout of your own, or give it to the user who runs this (sudo chown -R)"
        return _say(f"{PROG}: no right to {error.filename}: it belongs to somebody else. {fix}.", 2)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what Python still holds back would fail again
        return _say(f"{PROG}: the disk is full. Free some space (runs/cache may go) and run the same again.", 2)
    if isinstance(error, OSError):
        return _say(f"{PROG}: {error}. --debug shows where.", 2)
    first = (str(error).strip() or "no message").split("\n")[0]
    return _say(f"{PROG}: a fault in the kit, {type(error).__name__}: {first}. Please report what --debug shows.", 2)


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
