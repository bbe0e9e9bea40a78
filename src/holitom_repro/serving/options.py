"""``--option NAME=VALUE`` of export-embeds: values of the kind that the method's field has, or BadUsage."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from holitom import methods
from holitom.errors import BadUsage


def fields_of(method: str, options: Sequence[str]) -> dict[str, Any]:
    """The fields that the options name. Which names ``method`` has is for reduction_from to say."""
    kinds, found = _kinds(method), {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals:
            raise BadUsage(f"--option {option}", fix="write NAME=VALUE, for instance --option tau=0.65")
        found[name] = _checked(name, _value(text), kinds.get(name, ""), option)
    return found


def _kinds(method: str) -> Mapping[str, str]:
    """The annotations of the method's fields, as text; none for "full" or an unknown name."""
    named = {name.lower(): name for name in methods.__all__}
    cls = getattr(methods, named.get(method.lower(), ""), None)
    return {f.name: str(f.type) for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}


def _value(text: str) -> Any:
    try:
        return float(text) if not re.fullmatch(r"[+-]?\d+", text.strip()) else int(text)  # yaml reads 1e-3 as text
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _checked(name: str, value: Any, kind: str, option: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise BadUsage(f"--option {option}: not a number", fix="give a finite one")
    words = set(re.findall(r"\w+", kind))
    if words & {"int", "float"} and "Literal" not in words and not (value is None and "None" in words):
        number = isinstance(value, int if "float" not in words else (int, float)) and not isinstance(value, bool)
        if not number:
            wanted = "number" if "float" in words else "whole number"
            raise BadUsage(f"--option {option}: {name} is a {wanted}", fix="write NAME=VALUE, for instance tau=0.65")
        if name == "tau" and not -1 <= value <= 1:
            raise BadUsage(f"tau {value} is not a cosine", fix="give a number from -1 to 1, for instance 0.8")
    return value
