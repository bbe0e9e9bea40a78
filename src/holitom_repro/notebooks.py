"""The notebooks: what each asks and takes, and how one is run from a terminal, in a kernel of this very Python."""

import ast
import json
import logging
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from pydantic import TypeAdapter, ValidationError

from holitom import errors
from holitom.errors import BadUsage, CannotRun
from holitom_repro import paths

HARDWARE = {"tiny": "2 CPU cores", "speed": "1 GPU (H200)", "paper": "1 GPU of 80 GB, more for 72B (estimates)"}
"""Tier -> what its minutes are for. Nobody has run the paper tier yet."""


@dataclass(frozen=True)
class Notebook:
    """notebooks/NAME.ipynb. minutes: tier -> minutes from an empty cache; a tier that is absent is not offered."""

    name: str
    question: str
    minutes: Mapping[str, float | int]

    @property
    def command(self) -> str:
        """Its name in a terminal: 02_flops -> flops, fig_inner -> fig-inner."""
        return re.sub(r"^\d+_", "", self.name).replace("_", "-")


_ALL = (
    Notebook("02_flops", "Do the printed FLOPs come out to the digit, and what do they count?", {"tiny": 0.5}),
    Notebook(
        "table1", "Table 1: how much of the score is left at 25 to 10 % of the tokens?", {"tiny": 10, "paper": 2400}
    ),
    Notebook("table2", "Table 2: does it hold for LLaVA-Video, and for 72B?", {"tiny": 10, "paper": 3600}),
    Notebook("fig_tradeoff", "Score over FLOPs: how far down does each method go?", {"tiny": 14, "paper": 3600}),
    Notebook("fig_inner", "Inner stage: which layer, which share, merge or drop?", {"tiny": 3, "paper": 1800}),
    Notebook("fig_frames", "Does reduction pay for a longer look at the video?", {"tiny": 5, "paper": 1800}),
    Notebook("fig_inference", "Where does the time to the first token go?", {"tiny": 2, "speed": 10}),
    Notebook("ablations", "On which parts of HoliTom does the score depend?", {"tiny": 6, "paper": 2400}),
    Notebook("later_papers", "Do the later papers' methods keep more of the score?", {"tiny": 15, "paper": 2400}),
    Notebook("01_method", "What does HoliTom do to a clip: which tokens merge, which are kept?", {"tiny": 0.5}),
    Notebook("explore", "What does each of two methods keep of this clip?", {"tiny": 0.5}),
    Notebook("00_start_here", "What can be reproduced here, and what would the rest take?", {"tiny": 0.5}),
)
NOTEBOOKS = {notebook.name: notebook for notebook in _ALL}
"""In the order of ``all``: what others read first, the overview last."""

TYPES = {"int": int, "float": float, "bool": bool, "str": str, "list": list, "dict": dict}
"""How the parameters of a notebook are annotated."""
FOREIGN = ("JUPYTER_PATH", "JUPYTER_CONFIG", "JUPYTER_DATA", "JUPYTER_RUNTIME", "IPYTHON", "MPL", "MATPLOTLIB", "GIT_")
"""How variables begin by which others' kernels, start-up files, styles and repositories would get into a run."""


def own_surroundings() -> None:
    """For this process and those that it starts: without FOREIGN, with every cache below runs/cache, text as UTF-8."""
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]
    for name, place in paths.caches().items():
        os.environ[name] = place
        with suppress(OSError):  # a checkout that may only be read can still be looked at
            Path(place).mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HOME", str(paths.runs("cache", "home")))  # a container's user may have none
    os.environ.update(PYTHONUTF8="1", PYTHONNOUSERSITE="1", JUPYTER_PREFER_ENV_PATH="1", TOKENIZERS_PARALLELISM="false")
    os.environ.update(PYDEVD_DISABLE_FILE_VALIDATION="1")


def source(name: str, folder: Path | None = None) -> Path:
    """The file of a notebook."""
    return (folder or paths.root() / "notebooks") / f"{name}.ipynb"


def parameters(notebook: Path) -> dict[str, tuple[str, str]]:
    """What the cell tagged ``parameters`` declares: name -> type and default, as Python writes them. (papermill's own
    inspection stumbles over a "=" in a comment.)"""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    tagged = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    declared = [node for node in ast.parse("\n".join(tagged)).body if isinstance(node, ast.AnnAssign)]
    return {ast.unparse(one.target): (ast.unparse(one.annotation), ast.unparse(one.value)) for one in declared}


def checked(notebook: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of parameters that were typed as text, in the type that the notebook declares. BadUsage for a name
    that it does not have and for a value of another type."""
    known = parameters(notebook)
    if unknown := [name for name in given if name not in known]:
        fix = f"use one of {', '.join(known)}; another is declared with its type in the first cell"
        raise BadUsage(f"{notebook.stem} has no parameter {unknown[0]!r}", fix=fix)
    return {name: _value(name, text, known[name][0]) if isinstance(text, str) else text for name, text in given.items()}


def _value(name: str, text: str, kind: str) -> Any:
    """In YAML where the type is no plain one: words need no quotes, and a list no brackets."""
    if text == "None":
        return None
    try:
        listed = f"[{text}]" if kind == "list" and text[:1] != "[" else text
        read = text if kind in ("int", "float", "bool", "str") else yaml.safe_load(listed)
        value = TypeAdapter(TYPES.get(kind, Any)).validate_python(read)
    except (ValidationError, yaml.YAMLError) as error:
        raise BadUsage(f"-p {name} {text}: not of the type {kind}", fix=f"give a value of the type {kind}") from error
    if kind == "str" and text:  # a path is meant from where the command was typed
        place = Path(text).expanduser()
        if name == "out" or (("/" in text or place.suffix) and place.exists()):
            return str(place.absolute())
    return value


def _no_pattern(path: Path) -> str:
    """papermill fills in braces of a path, also those of a folder's name."""
    return str(path).replace("{", "{{").replace("}", "}}")


@dataclass(frozen=True)
class Finished:
    """One executed notebook: its copy with the results, whether it was a trial (a limit, changed parameters), the files
    that it wrote, and each claims.Verdict that ``claims.judged`` left."""

    notebook: Path
    copy: Path
    trial: bool
    seconds: float
    files: list[Path]
    verdicts: list[Any]


def run(name: str, given: Mapping[str, Any], folder: Path | None = None) -> Finished:
    """Execute a notebook with these parameters (as ``checked`` takes them). What it writes to stderr, its bars, goes to
    stderr as it comes. A trial goes to runs/<tier>/trial, so that it never replaces complete results.

    Raises what a cell raised where that is an error of the kit, CannotRun for any other, with the executed copy named.
    """
    from holitom_repro.claims import read

    notebook = source(name, folder)
    known, values = parameters(notebook), checked(notebook, given)
    tier = values.get("tier", "tiny")
    trial = any(repr(value) != known[key][1] for key, value in values.items() if key not in ("tier", "out", "fresh"))
    if trial and "out" in known and not values.get("out"):
        values["out"] = str(paths.runs(tier, "trial"))
    results = Path(values.get("out") or paths.figures(tier))
    copy = paths.runs(tier, *(["trial"] if trial else []), "notebooks", f"{name}.ipynb")
    for place in (copy.parent, results):
        place.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place).close()  # what may not be written is said now, not after all measuring
    if tier == "tiny" and "model" not in values:  # nothing of the hub, nor of a cache that may be read-only
        for variable in ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE"):
            os.environ.pop(variable, None)
        os.environ.update(dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1"))
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")  # seconds; a bar that moves is for a terminal
    own_surroundings()
    started = time.time()
    _execute(notebook, copy, values)
    files = sorted(path for path in results.glob("*.*") if path.stat().st_mtime >= started)
    verdicts = paths.runs(tier, "verdicts", f"{name}.json")
    judged = verdicts.is_file() and verdicts.stat().st_mtime >= started
    return Finished(notebook, copy, trial, time.time() - started, files, read(verdicts, "now") if judged else [])


def _execute(notebook: Path, copy: Path, values: dict[str, Any]) -> None:
    import papermill
    from nbformat.sign import NotebookNotary
    from papermill.exceptions import PapermillExecutionError

    for name in ("papermill", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they would say is said below
    idle = "--IPKernelApp.exec_lines=__import__('signal').signal(2, 0)"  # else a kernel between cells overhears ctrl-C
    draft = copy.with_name(f".{copy.stem}.{os.getpid()}.ipynb")
    stop = _Stop()
    before = signal.signal(signal.SIGINT, stop.heard)
    try:
        made = papermill.execute_notebook(
            _no_pattern(notebook),
            _no_pattern(draft),
            parameters=values,
            kernel_name="python3",
            language="python",
            cwd=str(notebook.parent),  # as in JupyterLab
            progress_bar=False,
            stderr_file=sys.stderr,
            start_timeout=120,
            request_save_on_cell_execute=False,
            coalesce_streams=True,
            extra_arguments=["--log-level=ERROR", "--HistoryManager.enabled=False", idle],
            on_cell_execute=stop.check,
        )
        stop.check()
        # JupyterLab shows the tables of a signed copy with their style
        NotebookNotary(data_dir=os.environ["JUPYTER_DATA_DIR"]).sign(made)
    except PapermillExecutionError as error:
        stop.check()
        raise _explained(error, notebook, copy) from error
    except RuntimeError as error:  # Jupyter's own, of a kernel that died or did not start in time
        stop.check()
        said = str(error).strip().split("\n")[0].rstrip(".")
        fix = "most often the memory has run out: close other programs and run the same command again"
        raise CannotRun(f"the kernel of {notebook.name} died or did not answer ({said})", fix=fix) from error
    finally:
        signal.signal(signal.SIGINT, before)
        if draft.exists():
            draft.replace(copy)


def _explained(error: Any, notebook: Path, copy: Path) -> BaseException:
    """One line about a failed cell; an error of the kit keeps its own words and its exit code."""
    if error.ename == "KeyboardInterrupt":
        return KeyboardInterrupt()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error.evalue)).strip().rstrip(".") or "no message"
    own = getattr(errors, error.ename, None)
    what = plain if own else f"{error.ename}: {plain.splitlines()[0]}"
    made = own or CannotRun
    return made(f"{notebook.name}, cell [{error.exec_count}]: {what}", fix=f"the traceback stands in {copy}")


class _Stop:
    """Ctrl-C while a notebook runs: the cell at work is interrupted, tidies up and ends the run as KeyboardInterrupt.
    Nothing is raised in between, for Jupyter's loop would leave its own tasks lying. A second one does not wait."""

    def __init__(self) -> None:
        self.count = 0

    def heard(self, *_: Any) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt
        for kernel in psutil.Process().children():
            with suppress(ProcessLookupError):
                os.killpg(kernel.pid, signal.SIGINT)  # and the processes that it has started

    def check(self, **_: Any) -> None:
        """Also the hook before each cell: what came while no cell ran."""
        if self.count:
            raise KeyboardInterrupt
