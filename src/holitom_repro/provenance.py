"""On what a number was measured: versions, machine, commit, and a fingerprint of the sources that can change it."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from holitom_repro import paths
from holitom.errors import CannotRun

PACKAGES = ("torch", "transformers", "lmms-eval", "av", "numpy", "tokenizers", "holitom-repro")
ROOTS = (
    "holitom_repro/evaluation/sweep.py",
    "holitom_repro/tiny/tasks/**/*",
    "holitom/ops/**/*.py",
    "holitom/methods/**/*.py",
    "holitom/models/**/*.py",
)
"""What measures, and what it reaches by name or by file instead of by import."""
PLUMBING = (
    "holitom/__init__.py",
    "holitom/errors.py",
    *(f"holitom_repro/{name}.py" for name in ("__init__", "machine", "paths", "provenance", "results")),
)
"""Imported by everything, without influence on any result."""


def provenance() -> dict[str, Any]:
    """Package versions, python, processor, GPU, threads and git commit, as plain JSON; no host name, user or path.

    ``git.dirty`` is true when tracked files under src/ or data/ differ from the commit. Without git, ``git`` is None.
    """
    import torch

    return {**_machine(), "threads": torch.get_num_threads()}


@cache
def _machine() -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "gpus": torch.cuda.device_count() if cuda else 0,
        "cuda": torch.version.cuda if cuda else None,
        "git": _git(),
    }


@cache
def code_fingerprint() -> str:
    """Sixteen hex digits over ``influential_sources``: what the code does, not how it is written. Comments,
    docstrings and layout of python files do not count, so only a change that can change a result makes a cached one
    stale."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in influential_sources():
        digest.update(path.relative_to(package).as_posix().encode() + b"\0")
        digest.update(meaning(path.read_text(encoding="utf-8")).encode() if path.suffix == ".py" else path.read_bytes())
    return digest.hexdigest()[:16]


def influential_sources() -> list[Path]:
    """The package's files that can change a measured result, in a fixed order: ROOTS and all that they import from
    the package, directly or through others, except PLUMBING. Tables, figures, training and the command line are
    not."""
    package = Path(__file__).parents[1]
    plumbing = {package / name for name in PLUMBING}
    pending = [path for pattern in ROOTS for path in package.glob(pattern) if path.is_file()]
    found: set[Path] = set()
    while pending:
        path = pending.pop()
        if path not in found | plumbing and "__pycache__" not in path.parts:
            found.add(path)
            pending += _imports(path, package) if path.suffix == ".py" else []
    return sorted(found)


def _imports(path: Path, package: Path) -> list[Path]:
    """The files of this package that one of its files imports anywhere, also inside functions."""
    wanted: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            wanted |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    ours = [name.split(".") for name in wanted if name.split(".")[0] in ("holitom", "holitom_repro")]
    places = {package.joinpath(*parts[:depth]) for parts in ours for depth in range(1, len(parts) + 1)}
    files = (file for place in places for file in (place.with_suffix(".py"), place / "__init__.py"))
    return [file for file in files if file.is_file()]


def meaning(source: str) -> str:
    """The syntax tree of python source as text, without docstrings; the same on every supported python."""

    def text(node: Any) -> str:
        if isinstance(node, list):
            return "[" + ",".join(map(text, node)) + "]"
        if not isinstance(node, ast.AST):
            return repr(node)
        fields = dict(ast.iter_fields(node))
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and ast.get_docstring(node, clean=False) is not None
        ):
            fields["body"] = node.body[1:]
        present = ",".join(f"{name}={text(value)}" for name, value in fields.items() if value not in (None, []))
        return f"{type(node).__name__}({present})"

    return text(ast.parse(source))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git() -> dict[str, Any] | None:
    try:
        root = paths.root()
        if not (root / ".git").exists():  # a download inside somebody else's repository is not that repository
            return None
        commit = _ask_git(root, "rev-parse", "HEAD")
        changed = _ask_git(root, "status", "--porcelain", "--untracked-files=no", "--", "src", "data")
    except (CannotRun, OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changed)}


def _ask_git(root: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=20
    ).stdout.strip()
