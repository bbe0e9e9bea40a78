"""Hashes of the code that can change a result. Needs no more than torch and holitom do: the speed tier runs with them
alone."""

import ast
import dataclasses
import hashlib
import inspect
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import holitom

MEASURING = ("evaluation/model.py", "evaluation/features.py", "evaluation/scoring.py")
"""The files of this package that ask and score."""


def code_hash(stages: Iterable[Any], kit: Sequence[str] = ()) -> str:
    """Sixteen hex digits over the sources that can change a result: all of src/holitom but the files of methods that
    these stages do not use, and the files ``kit`` of this package. Comments, docstrings and layout do not count. A
    stage that is defined elsewhere (in a notebook) counts with all of the user's code that it reaches."""
    classes = [type(stage) for stage in _with_parts(stages)]
    package = Path(holitom.__file__).parent
    shelf = package / "methods"
    todo = [path for path in package.rglob("*.py") if shelf not in path.parents]
    todo += [shelf / "base.py", *(Path(__file__).parent / name for name in kit)]
    todo += [Path(inspect.getfile(cls)) for cls in classes if cls.__module__.startswith("holitom.")]
    found: dict[Path, str] = {}
    while todo:
        path = todo.pop()
        if path not in found and path.is_file():
            found[path], imported = _read(path, path.stat().st_mtime_ns)
            names = [name.split(".")[2] for name in imported if name.startswith("holitom.methods.")]
            todo += [shelf / f"{name}.py" for name in names if shelf in path.parents]
    seen: list[Any] = []
    return _digest([*_named(found), *(part for cls in classes for part in _own_code(cls, seen))])


def present_code() -> str:
    """Sixteen hex digits over what can change a measurement: src/holitom and the files of MEASURING."""
    files = [*Path(holitom.__file__).parent.rglob("*.py"), *(Path(__file__).parent / name for name in MEASURING)]
    return _digest(_named({path: _read(path, path.stat().st_mtime_ns)[0] for path in files}))


def meaning(source: str) -> str:
    """Python source without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        holder = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if holder and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


@cache
def _read(path: Path, changed: int) -> tuple[str, list[str]]:
    """The meaning of a file as it was last changed, and the modules that it imports from."""
    text = path.read_text(encoding="utf-8")
    return meaning(text), [n.module or "" for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)]


def _named(meanings: dict[Path, str]) -> list[str]:
    return [f"{path.name}\0{meanings[path]}" for path in sorted(meanings)]


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _with_parts(stages: Iterable[Any]) -> Iterable[Any]:
    """Stages, and those that they hold."""
    for stage in stages:
        if dataclasses.is_dataclass(stage):
            yield stage
            yield from _with_parts(vars(stage).values())


def _own_code(thing: Any, seen: list[Any]) -> Iterable[str]:
    """What a class, function or constant of the user's says and does, and everything of the user's that it reaches."""
    thing, parts = getattr(thing, "__func__", getattr(thing, "fget", thing)), ()
    if thing is None or isinstance(thing, (bool, int, float, str, bytes)):
        yield repr(thing)
    elif isinstance(thing, (tuple, list)):
        parts = thing
    elif isinstance(thing, CodeType):
        yield f"{thing.co_code.hex()} {thing.co_names}"
        parts = thing.co_consts
    elif (inspect.isclass(thing) or inspect.isfunction(thing)) and thing not in seen and _users(thing.__module__):
        seen.append(thing)
        if inspect.isclass(thing):
            parts = [*thing.__bases__, *(value for _, value in sorted(vars(thing).items()))]
        else:
            reached = [thing.__globals__[name] for name in sorted(_names(thing.__code__) & set(thing.__globals__))]
            reached += [cell.cell_contents for cell in thing.__closure__ or ()]
            parts = [thing.__code__, thing.__defaults__, *(thing.__kwdefaults__ or {}).values(), *reached]
    for part in parts:
        yield from _own_code(part, seen)


def _users(module: str | None) -> bool:
    """Whether a module is the user's: neither of this kit, nor python's, nor installed."""
    package = (module or "builtins").partition(".")[0]
    if package in {"holitom", "holitom_repro", *sys.stdlib_module_names} - {"__main__"}:
        return False
    return "site-packages" not in Path(getattr(sys.modules.get(str(module)), "__file__", None) or "").parts


def _names(code: CodeType) -> set[str]:
    return {*code.co_names}.union(*(_names(part) for part in code.co_consts if isinstance(part, CodeType)))
