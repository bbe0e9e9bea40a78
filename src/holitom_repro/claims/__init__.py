"""The papers' claims beside what was derived or measured, each with a verdict and its reason."""

from holitom_repro.claims.findings import finding_claims
from holitom_repro.claims.judging import Judged, Verdict, judge_score, judge_value
from holitom_repro.claims.ledger import all_claims, claims_of
from holitom_repro.claims.printed import score_claims, table_claims
from holitom_repro.claims.trends import trend_claims, trends

__all__ = [
    "Judged",
    "Verdict",
    "all_claims",
    "claims_of",
    "finding_claims",
    "judge_score",
    "judge_value",
    "score_claims",
    "table_claims",
    "trend_claims",
    "trends",
]
