"""Claims in groups that say how they can be judged: the README's table, and the picture of all verdicts."""

from __future__ import annotations

from holitom_repro.claims.judging import Judged

GROUPS: dict[str, str] = {
    "FLOPs of Tables 1 and 2": "derived, to the printed digit",
    "averages and shares of both": "derived from the printed scores",
    "other printed arithmetic": "derived: times, MMG-Vid, HieraVid, headlines",
    "trends between methods": "measured on a tiny model, not the paper's",
    "findings on printed numbers": "ours, derived or on the tiny model",
    "scores of the checkpoints": "need them: the paper tier, GPUs",
    "times and speed-ups": "need a GPU: the speed tier",
}
"""What is claimed -> how it is judged."""


def group_of(claim: Judged) -> str:
    """The group that a claim belongs to."""
    if claim.id.startswith("finding-"):
        return "findings on printed numbers"
    if claim.id.startswith("trend-"):
        return "trends between methods"
    flops = claim.id.endswith(("/flops_t", "/flops_pct"))
    if claim.source == "derived" or flops:
        if claim.experiment not in ("table1", "table2") or "/abstract/" in claim.id:
            return "other printed arithmetic"
        return "FLOPs of Tables 1 and 2" if flops else "averages and shares of both"
    return "times and speed-ups" if claim.unit in ("ms", "x", "tokens/s") else "scores of the checkpoints"
