"""All claims together, or those of one experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from holitom.claims.hieravid import hieravid_headlines
from holitom.claims.judging import Judged
from holitom.claims.mmg_vid import mmg_vid_claims
from holitom.claims.printed import score_claims, table_claims
from holitom.claims.trends import trend_claims
from holitom.results import Record

DERIVED = ("table1", "table2", "fig_inference", "hieravid")
SCORED = ("table1", "table2")
FURTHER = {"mmg_vid": mmg_vid_claims, "hieravid": hieravid_headlines}


def all_claims(records: Sequence[Record], tier: str, *, runs: Path | None = None) -> list[Judged]:
    """Every claim that this kit checks, in a fixed order: derivations, printed scores, and the tier's trends."""
    derived = [claim for table in DERIVED for claim in table_claims(table)]
    derived += [claim for further in FURTHER.values() for claim in further()]
    scores = [claim for table in SCORED for claim in score_claims(table, records)]
    return derived + scores + trend_claims(records, tier, runs=runs)


def claims_of(experiment: str, records: Sequence[Record], tier: str, *, runs: Path | None = None) -> list[Judged]:
    """The claims that belong to one experiment (either spelling). ``flops``: the FLOPs cells of both tables."""
    name = experiment.replace("-", "_")
    if name == "flops":
        cells = [claim for table in ("table1", "table2", "hieravid") for claim in table_claims(table)]
        return [claim for claim in cells if claim.id.endswith(("/flops_t", "/flops_pct"))]
    derived = table_claims(name) if name in DERIVED else []
    derived += FURTHER[name]() if name in FURTHER else []
    scores = score_claims(name, records) if name in SCORED else []
    return derived + scores + trend_claims(records, tier, experiment=name, runs=runs)
