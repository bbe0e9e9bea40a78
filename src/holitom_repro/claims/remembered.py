"""Verdicts on trends that were reached before, so that the same answers are not tested twice.

Cells never change under their name, and a verdict follows from the cells, the declared trend and the code that judges:
the key holds all three. The file lies in runs/ and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from holitom_repro.claims.judging import Judged
from holitom.errors import KitError
from holitom_repro.provenance import meaning
from holitom_repro.results import Record, write_atomic

JUDGING = ("claims/trends.py", "claims/judging.py", "claims/selecting.py", "evaluation/statistics.py")


class Memory:
    """Verdicts of one file; ``save`` writes only where there is something new and the folder can be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.new: dict[str, Any] = {}
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            held = {}
        self.held: dict[str, Any] = held if isinstance(held, dict) else {}

    def get(self, key: str) -> Judged | None:
        """What was judged under this key; None for nothing, or for something that is no verdict any more."""
        try:
            return Judged.from_dict(self.held[key]) if key in self.held else None
        except (TypeError, KeyError, ValueError):
            return None

    def put(self, key: str, claim: Judged) -> Judged:
        self.new[key] = claim.to_dict()
        return claim

    def save(self) -> None:
        if self.new:
            with suppress(KitError, OSError):  # a checkout that cannot be written: judged again next time
                write_atomic(self.path, json.dumps(self.held | self.new))


def key_of(trend: Any, records: Sequence[Record], current: bool) -> str:
    """What a verdict follows from: the trend as declared, the cells, whether the present code measured them, and the
    code that judges."""
    cells = [(record.key, record.created) for record in records]
    return hashlib.sha256(repr((trend, cells, current, _judging())).encode()).hexdigest()[:24]


@cache
def _judging() -> str:
    package = Path(__file__).parents[1]
    text = "".join(meaning((package / name).read_text(encoding="utf-8")) for name in JUDGING)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
