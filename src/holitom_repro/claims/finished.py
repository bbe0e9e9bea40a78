"""The finished cells of the tiny tier, read without the methods, the models or torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from holitom.errors import KitError
from holitom_repro.provenance import code_fingerprint
from holitom_repro.results import Record


def finished_cells(runs: Path, tier: str) -> list[Record]:
    """Records of complete cells that the present code measured below ``runs``/<tier>/cells, with the weights that are
    there now: of each model, those of its newest record. Trials, and frames that were not decoded from files, are left
    out. Their experiment is "any": a cell belongs to every experiment that has its setting."""
    code = code_fingerprint()
    mark = f'"code": {json.dumps(code)}'
    found = []
    for path in sorted((Path(runs) / tier / "cells").glob("*.json")):
        try:
            text = path.read_text(encoding="utf-8")
            record = Record.from_json(text) if mark in text else None
        except (KitError, OSError, UnicodeDecodeError):
            continue
        if record is None or record.code != code or record.tier != tier or record.extra.get("limit") is not None:
            continue
        if record.extra.get("pixels", "file") == "file":
            found.append(replace(record, experiment="any"))
    newest: dict[str, Record] = {}
    for record in found:
        if record.model not in newest or record.created > newest[record.model].created:
            newest[record.model] = record
    return [record for record in found if record.model_revision == newest[record.model].model_revision]
