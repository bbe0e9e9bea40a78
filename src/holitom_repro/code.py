"""Hashes of the code that can change a result. Needs no more than torch and holitom do: the speed tier runs with them
alone."""

from __future__ import annotations

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


def code_hash(stages: Iterable[Any], kit: Sequence[str] = ()) -> str:
    """Sixteen hex digits over the sources that can change a result: all of src/holitom but the files of methods that
    these stages do not use, and the files ``kit`` of this package. Comments, docstrings and layout do not count. A
    stage that is defined elsewhere (in a notebook) counts with all of the user's code that it reaches."""
    classes = [type(stage) for stage in _with_parts(stages)]
    used = frozenset(Path(inspect.getfile(cls)) for cls in classes if cls.__module__.startswith("holitom."))
    sources = [*Path(holitom.__file__).parent.rglob("*.py"), *(Path(__file__).parent / name for name in kit)]
    digest = hashlib.sha256(_meaning_of(used, tuple((path, path.stat().st_mtime_ns) for path in sorted(sources))))
    seen: list[Any] = []
    digest.update("\n".join(part for cls in classes for part in _own_code(cls, seen)).encode())
    return digest.hexdigest()[:16]


@cache
def _meaning_of(used: frozenset[Path], sources: tuple[tuple[Path, int], ...]) -> bytes:
    """Of all sources (with the times of their last change), but of the methods' files only those used."""
    shelf, texts = Path(holitom.__file__).parent / "methods", {}
    todo = [path for path, _ in sources if shelf not in path.parents] + [shelf / "base.py", *used]
    while todo:
        path = todo.pop()
        if path.is_file() and path not in texts:
            texts[path] = source = path.read_text(encoding="utf-8")
            if shelf in path.parents:
                found = [node.module or "" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
                todo += [shelf / f"{name.split('.')[2]}.py" for name in found if name.startswith("holitom.methods.")]
    parts = [f"{path.name}\0{_cached_meaning(texts[path])}" for path in sorted(texts)]
    return "\n".join(parts).encode()


def _with_parts(stages: Iterable[Any]) -> Iterable[Any]:
    """Stages, and those that they hold."""
    for stage in stages:
        if dataclasses.is_dataclass(stage):
            yield stage
            yield from _with_parts(vars(stage).values())


def _own_code(thing: Any, seen: list[Any]) -> Iterable[str]:
    """What a class, function or constant of the user's says and does, and everything of the user's that it reaches."""
    thing = getattr(thing, "__func__", getattr(thing, "fget", thing))
    if thing is None or isinstance(thing, (bool, int, float, str, bytes)):
        yield repr(thing)
    elif isinstance(thing, (tuple, list)):
        for part in thing:
            yield from _own_code(part, seen)
    elif isinstance(thing, CodeType):
        yield f"{thing.co_code.hex()} {thing.co_names}"
        yield from _own_code(thing.co_consts, seen)
    elif (inspect.isclass(thing) or inspect.isfunction(thing)) and thing not in seen and _users(thing.__module__):
        seen.append(thing)
        if inspect.isclass(thing):
            parts = [*thing.__bases__, *(value for _, value in sorted(vars(thing).items()))]
        else:
            names = sorted(_names(thing.__code__) & set(thing.__globals__))
            reached = [thing.__globals__[name] for name in names]
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


@cache
def present_code() -> str:
    """Sixteen hex digits over what can change a measurement: src/holitom and the evaluation, without comments."""
    kit = [Path(__file__).parent / "evaluation" / f"{name}.py" for name in ("model", "features", "scoring")]
    files = [*sorted(Path(holitom.__file__).parent.rglob("*.py")), *kit]
    text = "".join(path.name + meaning(path.read_text(encoding="utf-8")) for path in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def meaning(source: str) -> str:
    """The syntax tree of python source as text, without docstrings; the same on every supported python."""

    def text(node: Any) -> str:
        if isinstance(node, list):
            return "[" + ",".join(map(text, node)) + "]"
        if not isinstance(node, ast.AST):
            return repr(node)
        fields = dict(ast.iter_fields(node))
        holder = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if holder and ast.get_docstring(node, clean=False) is not None:
            fields["body"] = node.body[1:]
        present = ",".join(f"{name}={text(value)}" for name, value in fields.items() if value not in (None, []))
        return f"{type(node).__name__}({present})"

    return text(ast.parse(source))


_cached_meaning = cache(meaning)
