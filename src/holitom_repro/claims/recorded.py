"""Verdicts of the tiny tier that are kept in the repository, for machines that have measured nothing themselves.

The file says with which code they were measured. They stand only for that code: after a change that can change a
result, the claim is not run again until somebody measures it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from holitom_repro import paths
from holitom_repro.claims.judging import Judged, Verdict
from holitom.errors import CannotRun
from holitom_repro.provenance import code_fingerprint
from holitom_repro.results import Record, write_atomic

MEASURED = ("trend-",)
"""How the ids of claims begin that rest on measurements of the tiny tier."""


@dataclass(frozen=True)
class Recorded:
    """What one file holds: the code, day and hardware of the measurement, and the claims."""

    code: str
    day: str
    hardware: str
    claims: tuple[Judged, ...]


def path() -> Path:
    """Where the verdicts of the tiny tier are kept."""
    return paths.data("measured", "tiny_claims.json")


def read(file: Path) -> Recorded:
    """An empty one where there is no file; a bare list of claims, as first kept, is of no known code. CannotRun names
    a damaged file: it came with the checkout, so nothing here writes it again by itself."""
    try:
        held: Any = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        held = {"claims": held} if isinstance(held, list) else held
        claims = tuple(Judged.from_dict(values) for values in held.get("claims", []))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CannotRun(
            f"{file} holds no verdicts, it is damaged", fix=f"restore it: git checkout -- {file}"
        ) from error
    return Recorded(held.get("code", ""), held.get("day", ""), held.get("hardware", ""), claims)


def store(judged: Sequence[Judged], records: Sequence[Record], file: Path | None = None) -> Path | None:
    """Keep the verdicts that rest on measurements with the present code. None, and nothing changed, without records:
    an empty machine does not wipe what another one measured. CannotRun as ``require_kept``."""
    if not records:
        return None
    require_kept(judged, file)
    newest = max(records, key=lambda record: record.created)
    facts = newest.provenance
    kept = {
        "code": code_fingerprint(),
        "day": datetime.now(UTC).date().isoformat(),
        "hardware": f"{facts.get('cpu', '')}, {facts.get('cores', '?')} cores",
        "claims": [claim.to_dict() for claim in judged if claim.id.startswith(MEASURED)],
    }
    return write_atomic(file or path(), json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def require_kept(judged: Sequence[Judged], file: Path | None = None) -> None:
    """CannotRun when a claim with a recorded verdict would be left without one: a machine that has finished some of the
    cells does not wipe what another one measured. A verdict may change, and so may the wording of its claim."""
    open_now = {claim.id for claim in judged if claim.verdict is Verdict.NOT_RUN}
    held = [claim.id for claim in read(file or path()).claims if claim.verdict is not Verdict.NOT_RUN]
    if lost := [name for name in held if name in open_now]:
        named = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
        raise CannotRun(
            f"{len(lost)} recorded verdicts would be lost ({named}): their cells are not finished here",
            fix="run ./reproduce.sh all first",
        )


def with_recorded(judged: Sequence[Judged], tier: str, file: Path | None, *, any_code: bool = False) -> list[Judged]:
    """Claims that were not run get their recorded verdict, if the tier is the tiny one and the code is the same; if the
    code is another, the reason says so. any_code: whatever code measured them, for texts that are committed with the
    file."""
    held = read(file) if file is not None and tier == "tiny" else Recorded("", "", "", ())
    by_id = {claim.id: claim for claim in held.claims}
    same = any_code or held.code == code_fingerprint()
    return [_stand_in(claim, by_id.get(claim.id), held, file, same=same) for claim in judged]


def _stand_in(claim: Judged, before: Judged | None, held: Recorded, file: Path | None, *, same: bool) -> Judged:
    if claim.verdict is not Verdict.NOT_RUN or before is None or before.verdict is Verdict.NOT_RUN or file is None:
        return claim
    if not same:
        return replace(claim, reason=f"{claim.reason}; {before.verdict} with an earlier version of the code")
    if (before.statement, before.tolerance) != (claim.statement, claim.tolerance):
        return replace(claim, reason=f"{claim.reason}; the recorded verdict is on another wording of it")
    source = f"recorded {held.day} on {held.hardware}"
    return replace(before, reason=f"{before.reason}; {source}", records=(f"data/measured/{file.name}",))
