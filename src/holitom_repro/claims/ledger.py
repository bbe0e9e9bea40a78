"""All claims together, judged from what is at hand, or those of one experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from holitom_repro.claims.findings import finding_claims
from holitom_repro.claims.headlines import headline_claims
from holitom_repro.claims.hieravid import hieravid_headlines
from holitom_repro.claims.judging import Judged
from holitom_repro.claims.mmg_vid import mmg_vid_claims
from holitom_repro.claims.points import label_claims, point_claims, time_claims
from holitom_repro.claims.printed import score_claims, table_claims
from holitom_repro.claims.recorded import with_recorded
from holitom_repro.claims.trends import trend_claims
from holitom_repro.results import Record

DERIVED = ("table1", "table2", "fig_inference", "hieravid")
SCORED = ("table1", "table2")
FURTHER = {"mmg_vid": mmg_vid_claims, "hieravid": hieravid_headlines}


def all_claims(
    records: Sequence[Record],
    tier: str,
    *,
    runs: Path | None = None,
    recorded: Path | None = None,
    any_code: bool = False,
) -> list[Judged]:
    """Every claim that this kit knows, in a fixed order: derivations, points and times of figures, printed scores, the
    tier's trends, findings, headlines. recorded: a file of verdicts (``claims.recorded``) that stand in for trends
    that ``records`` cannot judge; None: fresh measurements only; any_code: also those that another code measured."""
    derived = [claim for table in DERIVED for claim in table_claims(table)]
    derived += [claim for further in FURTHER.values() for claim in further()]
    figures = [*label_claims(), *time_claims(runs=runs), *point_claims()]
    scores = [claim for table in SCORED for claim in score_claims(table, records)]
    trends = with_recorded(trend_claims(records, tier, runs=runs), tier, recorded, any_code=any_code)
    made = [*derived, *figures, *scores, *trends]
    made += finding_claims({claim.id: claim for claim in made})
    return made + headline_claims({claim.id: claim for claim in made})


def claims_of(experiment: str, records: Sequence[Record], tier: str, *, runs: Path | None = None) -> list[Judged]:
    """The claims that belong to one experiment (either spelling). ``flops``: the FLOPs cells of both tables;
    ``findings``: every finding, those on trends of other experiments included."""
    name = experiment.replace("-", "_")
    if name == "flops":
        cells = [claim for table in ("table1", "table2", "hieravid") for claim in table_claims(table)]
        return [claim for claim in cells if claim.id.endswith(("/flops_t", "/flops_pct"))]
    derived = table_claims(name) if name in DERIVED else []
    derived += FURTHER[name]() if name in FURTHER else []
    if name == "fig_inference":
        derived += [*label_claims(), *time_claims(runs=runs)]
    scores = score_claims(name, records) if name in SCORED else []
    trends = trend_claims(records, tier, experiment=name, runs=runs)
    if name == "findings":
        every = trend_claims(records, tier, runs=runs)
        derived += finding_claims({claim.id: claim for claim in every})
    return derived + scores + trends
