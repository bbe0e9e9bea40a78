"""Runs one notebook from its first cell to its last, with papermill, in a kernel of this very environment."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from holitom_repro import paths
from holitom.errors import BadUsage, CannotRun, KitError

KERNEL = "python3"
KERNEL_START_SECONDS = 120


def execute(notebook: str, tier: str, parameters: dict[str, Any], *, progress: bool = True) -> Path:
    """Execute notebooks/<notebook>.ipynb with these parameters; returns the executed copy in runs/<tier>/notebooks;
    with a limit in runs/<tier>/trial/notebooks, so that a trial never replaces a complete one.

    The copy is kept when a cell fails, too. KitError: what a cell raised, with the cell and the copy named; the exit
    code is that of the error inside the notebook when it is one of the kit's own.
    """
    source = paths.root() / "notebooks" / f"{notebook}.ipynb"
    if not source.is_file():
        raise CannotRun(f"the notebook {source} is missing", fix="restore it: git checkout -- notebooks")
    place = ("trial", "notebooks") if parameters.get("limit") else ("notebooks",)
    copy = paths.runs(tier, *place, f"{notebook}.ipynb")
    copy.parent.mkdir(parents=True, exist_ok=True)
    import papermill
    from papermill.exceptions import PapermillException, PapermillExecutionError

    kernel()
    known = set(_parameters(source))
    with _kernel_environment(), _kernel_manager() as manager:
        try:
            papermill.execute_notebook(
                str(source),
                str(copy),
                parameters={name: value for name, value in parameters.items() if name in known},
                kernel_name=KERNEL,
                cwd=str(paths.root()),
                progress_bar={"desc": f"notebook {notebook}", "file": sys.stderr, "leave": False}
                if progress
                else False,
                start_timeout=KERNEL_START_SECONDS,
                extra_arguments=["--log-level=ERROR"],  # ipykernel warns about its own default transport otherwise
                request_save_on_cell_execute=False,
                kernel_manager_class=manager,
            )
        except PapermillExecutionError as error:
            raise _explained(error, notebook, copy) from error
        except PapermillException as error:
            raise CannotRun(
                f"the notebook {notebook} cannot be run: {_first_line(error)}",
                fix="restore it: git checkout -- notebooks",
            ) from error
        except RuntimeError as error:  # Jupyter's own, of a kernel that died or did not start in time
            raise CannotRun(
                f"the kernel of the notebook {notebook} died or did not answer ({_first_line(error)})",
                fix="most often the memory has run out: close other programs, or use a machine with more, and run the "
                "same command again",
            ) from error
    return copy


def trust(copy: Path) -> None:
    """Sign an executed copy with the key of this checkout's JupyterLab (caches.keep_inside), which then shows its
    tables with their style sheet; without a signature it would leave that out."""
    import nbformat
    from nbformat.sign import NotebookNotary

    place = Path(os.environ["JUPYTER_DATA_DIR"])
    place.mkdir(parents=True, exist_ok=True)
    NotebookNotary(data_dir=str(place)).sign(nbformat.read(copy, as_version=4))


def _explained(error: Any, notebook: str, copy: Path) -> KitError:
    """One line about a failed cell; the kit's own errors keep their exit code and their own words."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error.evalue)).strip()
    first = plain.split("\n")[0] or "no message"
    kind = BadUsage if error.ename == "BadUsage" else CannotRun
    named = first if error.ename in {k.__name__ for k in _kit_errors()} else f"{error.ename}: {first}"
    return kind(
        f"cell In [{error.exec_count}] of the notebook {notebook} failed: {named.rstrip('.')}",
        fix=f"the executed copy, with the traceback, is {copy.relative_to(paths.root())}",
    )


def _kit_errors() -> Iterator[type[KitError]]:
    queue = [KitError]
    while queue:
        kind = queue.pop()
        yield kind
        queue += kind.__subclasses__()


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def _parameters(source: Path) -> list[str]:
    """The names that the cell tagged ``parameters`` assigns."""
    for cell in json.loads(source.read_text())["cells"]:
        if "parameters" in cell.get("metadata", {}).get("tags", []):
            text = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
            return re.findall(r"^(\w+)\s*(?::[^=\n]+)?=", text, flags=re.MULTILINE)
    return []


def kernel() -> str:
    """Where the kernel "python3" comes from. CannotRun when there is none, or when it would start another Python than
    this one (a kernel of the home folder, for instance)."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    fix = f"{sys.executable} -m pip install --force-reinstall --no-deps ipykernel"
    try:
        spec = KernelSpecManager().get_kernel_spec(KERNEL)
    except NoSuchKernel as error:
        raise CannotRun(f'Jupyter finds no kernel "{KERNEL}" in {sys.prefix}', fix=fix) from error
    program = Path(spec.argv[0])  # a bare "python" is this interpreter: jupyter_client puts sys.executable in its place
    if program.parent.name and program.parent.resolve() != Path(sys.executable).parent.resolve():
        raise CannotRun(f'the kernel "{KERNEL}" ({spec.resource_dir}) starts {program}', fix=fix)
    return f"{KERNEL} from {spec.resource_dir}"


@contextmanager
def _kernel_environment() -> Iterator[None]:
    """The kernel chooses its inline backend; this process keeps its own."""
    kept = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ["MPLBACKEND"] = kept


@contextmanager
def _kernel_manager() -> Iterator[type]:
    """A class of kernel managers. What the kernel itself writes to stderr (a failed start, for instance) is shown at
    the end, but not after ctrl-C: a kernel that is ended at work complains about its closed sockets."""
    from jupyter_client.manager import AsyncKernelManager

    with tempfile.TemporaryFile() as words:

        class Manager(AsyncKernelManager):
            async def start_kernel(self, **options: Any) -> None:
                await super().start_kernel(**{**options, "stderr": words})

        try:
            yield Manager
        except KeyboardInterrupt:
            raise
        except BaseException:
            _show(words)
            raise
        _show(words)


def _show(words: Any) -> None:
    words.seek(0)
    sys.stderr.write(words.read().decode(errors="replace"))
