"""The default fields of the methods, read from their source: judging needs neither the methods nor torch."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

_LITERAL = (ast.Constant, ast.Tuple, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.expr_context)
FOLDER = Path(__file__).parents[1] / "methods"


def method_defaults(name: str) -> Mapping[str, Any]:
    """Fields of a method's class that have a literal default, tuples as lists as in ``Reduction.describe``; {} for a
    class that nobody knows. ClassVars are no fields."""
    return _all().get(name, {})


@cache
def _all() -> dict[str, dict[str, Any]]:
    classes: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for path in sorted(FOLDER.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
                classes[node.name] = bases, _fields(node)

    def whole(name: str) -> dict[str, Any]:
        bases, mine = classes.get(name, ([], {}))
        inherited = {key: value for base in reversed(bases) for key, value in whole(base).items()}
        return {**inherited, **mine}

    return {name: whole(name) for name in classes}


def _fields(node: ast.ClassDef) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in node.body:
        if not isinstance(part, ast.AnnAssign) or not isinstance(part.target, ast.Name) or part.value is None:
            continue
        if "ClassVar" in ast.unparse(part.annotation):
            continue
        if not all(isinstance(one, _LITERAL) for one in ast.walk(part.value)):
            continue  # made by a call: it cannot be compared, and no trend names it
        value = eval(
            compile(ast.Expression(part.value), "<default>", "eval"), {}
        )  # numbers, strings and their sums only
        found[part.target.id] = list(value) if isinstance(value, tuple) else value
    return found
