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

    preset: "table1:HoliTom" (with ``budget``, for rows that have several; optionally ":" and a model of that table),
    scaled to a decoder of ``layers`` layers. Otherwise method: a class of ``holitom.methods`` in any spelling of case,
    or "full"; fields: its parameters, and ``inner=HoliTomMerge, inner_layer=4, inner_ratio=0.5`` (likewise ``decode``)
    for further stages. BadUsage names what there is.
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

    table, _, rest = text.partition(":")
    row, _, model = rest.partition(":")
    if not row:
        raise BadUsage(f"preset {text!r} names no row", fix="write table:row, for instance preset=table1:HoliTom")
    return preset(table, row, budget if budget < 1 else None, model or None).scaled(layers)


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
