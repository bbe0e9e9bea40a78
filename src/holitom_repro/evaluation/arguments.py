"""From lmms-eval's ``--model_args`` to a Reduction: a preset of a table, or a method with its fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from holitom import methods
from holitom.errors import BadUsage
from holitom.types import Reduction

FULL = ("full", "none", "vanilla")
_OPTIONS = {"inner": "inner_", "decode": "decode_"}


def reduction_from(
    method: str = "full",
    budget: float | int = 1.0,
    preset: str | None = None,
    *,
    layers: int,
    fields: Mapping[str, Any] | None = None,
) -> Reduction:
    """The setting that a command line names.

    preset: "table1:HoliTom:0.10", "table2:HoliTom:video-7b" or "table2:HoliTom:video-7b:0.15", scaled to a decoder of
    ``layers`` layers; model and budget are only needed where a row has several, and the budget may stand in ``budget``
    instead. Otherwise method: a class of ``holitom.methods`` in any spelling of case, or "full"; fields: its
    parameters, and ``inner=HoliTomMerge, inner_layer=4, inner_ratio=0.5`` (likewise ``decode``) for further stages.
    BadUsage names what there is.
    """
    fields = dict(fields or {})
    if preset is not None:
        if fields or method.lower() not in FULL:
            raise BadUsage(
                "a preset fixes every parameter", fix="give preset= and budget= only, or method= and its fields"
            )
        return _preset(preset, budget, layers)
    stages = {}
    for option, prefix in _OPTIONS.items():
        own = {key.removeprefix(prefix): fields.pop(key) for key in list(fields) if key.startswith(prefix)}
        name = fields.pop(option, None)
        if own and name is None:
            raise BadUsage(
                f"{prefix}{next(iter(own))} without {option}=", fix=f"name the stage, e.g. {option}=HoliTomMerge"
            )
        stages[option] = None if name is None else _build(name, own)
    inner = () if stages["inner"] is None else (stages["inner"],)
    if method.lower() in FULL:
        if fields:
            raise BadUsage(f"{next(iter(fields))} is not an option of {method!r}", fix="name a method with method=")
        return Reduction("Full", budget=budget, inner=inner, decode=stages["decode"])
    first = _build(method, fields)
    if hasattr(first, "requires"):
        return Reduction(type(first).__name__, first, budget, inner, stages["decode"])
    return Reduction(type(first).__name__, None, budget, (first, *inner), stages["decode"])


def _preset(text: str, budget: float | int, layers: int) -> Reduction:
    from holitom.methods.presets import preset

    table, row, model, own = _parts(text)
    if own is not None and budget < 1:
        raise BadUsage(f"preset {text!r} has a budget, and budget={budget:g} stands beside it", fix="give one of them")
    beside = budget if budget < 1 else None  # 1 is what stands there when nobody names one
    return preset(table, row, beside if own is None else own, model).scaled(layers)


def _parts(text: str) -> tuple[str, str, str | None, float | None]:
    """Table, row, model and budget of ``table:row[:model][:budget]``: no model's name is a number."""
    table, row, *rest = text.split(":") if ":" in text else (text, "")
    if not row:
        raise BadUsage(f"preset {text!r} names no row", fix="write table:row, for instance preset=table1:HoliTom")
    model = rest.pop(0) if rest and _number(rest[0]) is None else None
    budget = _number(rest[0]) if rest else None
    if len(rest) > 1 or (rest and budget is None):
        raise BadUsage(
            f"preset {text!r} cannot be read", fix="write table:row, table:row:budget or table:row:model:budget"
        )
    return table, row, model or None, budget


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _build(name: str, fields: Mapping[str, Any]) -> Any:
    known = {cls.lower(): cls for cls in methods.__all__}
    if str(name).lower() not in known:
        raise BadUsage(f"there is no method {name!r}", fix=f"choose one of full, {', '.join(sorted(known.values()))}")
    cls = getattr(methods, known[name.lower()])
    allowed = [f.name for f in dataclasses.fields(cls) if f.init]
    for key in fields:
        if key not in allowed:
            raise BadUsage(f"{cls.__name__} has no parameter {key!r}", fix=f"it has {', '.join(allowed) or 'none'}")
    try:
        return cls(**fields)
    except TypeError as error:
        raise BadUsage(f"{cls.__name__} cannot be made ({error})", fix=f"it has {', '.join(allowed)}") from error
