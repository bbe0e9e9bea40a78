"""The two tables of the README, generated: results, where derivations are computed again each time and trends of the
tiny tier come from the verdicts stored with the run that measured them; and the methods (holitom.catalogue).

``python -m holitom.readme`` judges every finished cell, stores the measured verdicts (data/measured/tiny_claims.json)
and realised budgets (tiny_methods.json), and rewrites the blocks between the marks of README.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from holitom import paths
from holitom.claims import Judged, Verdict, table_claims
from holitom.results import write_atomic

NAMES = ("results", "methods")
_DECIDED = (Verdict.REPRODUCED, Verdict.WITHIN_NOISE, Verdict.NOT_REPRODUCED, Verdict.NOT_RUN)
_ELSEWHERE = (
    (
        "Scores of the published checkpoints",
        "QUOTED",
        "`./reproduce.sh table1 --tier paper`: GPU, model hub, about 40 h",
    ),
    ("TTFT, decode rate, memory", "QUOTED", "a CUDA GPU (speed tier, not offered yet)"),
)


def stored() -> Path:
    """Where the measured verdicts of the tiny tier are kept."""
    return paths.data("measured", "tiny_claims.json")


def store(judged: Sequence[Judged]) -> Path:
    """Keep the verdicts that rest on measurements."""
    measured = [claim.to_dict() for claim in judged if claim.id.startswith("trend-")]
    return write_atomic(stored(), json.dumps(measured, indent=1, ensure_ascii=False) + "\n")


def table() -> str:
    """The results as a Markdown table: what was checked, the verdicts, and how."""
    derived = [claim for name in ("table1", "table2") for claim in table_claims(name)]
    flops = [claim for claim in derived if claim.id.endswith(("/flops_t", "/flops_pct"))]
    means = [claim for claim in derived if claim not in flops and claim.verdict is not Verdict.QUOTED]
    rows = [
        (
            "FLOPs cells of Tables 1 and 2 (T and %)",
            _count([str(c.verdict) for c in flops]),
            "derived, to the printed digit",
        ),
        (
            "Averages and shares printed in both tables",
            _count([str(c.verdict) for c in means]),
            "derived from the printed scores",
        ),
    ]
    trends = json.loads(stored().read_text()) if stored().exists() else []
    if trends:
        how = "measured: 1,200 questions, paired by video, on a tiny model trained here (not the paper's)"
        rows.append(("Trends declared beforehand, tiny tier", _count([c["verdict"] for c in trends]), how))
    head = ("what", "verdict", "how, or what it would take")
    lines = ["| " + " | ".join(row) + " |" for row in (head, ("---",) * 3, *rows, *_ELSEWHERE)]
    missed = [c for c in trends if c["verdict"] == Verdict.NOT_REPRODUCED]
    if missed:
        lines += ["", "Trends that do not hold on the tiny model:", ""]
        lines += [f"- {c['statement']} ({c['reason']})" for c in missed]
    return "\n".join(lines)


def _count(verdicts: Sequence[str]) -> str:
    counts = {str(v): verdicts.count(str(v)) for v in _DECIDED}
    if counts[Verdict.REPRODUCED] == len(verdicts):
        return f"**{len(verdicts)} of {len(verdicts)} REPRODUCED**"
    return ", ".join(f"{n} {name}" for name, n in counts.items() if n)


def methods() -> str:
    """The method table as Markdown."""
    from holitom import catalogue

    rows = [catalogue.HEAD, ("---",) * len(catalogue.HEAD), *catalogue.rows()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def block(text: str) -> str:
    """README text with what stands between the marks replaced by the present tables."""
    for name, made in zip(NAMES, (table(), methods()), strict=True):
        begin, end = marks(name)
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{made}\n{end}{rest.split(end)[1]}"
    return text


def marks(name: str) -> tuple[str, str]:
    """The comments that stand before and after a generated block."""
    return f"<!-- {name}: written by python -m holitom.readme -->", f"<!-- end of {name} -->"


def main() -> int:
    from holitom import catalogue, verdicts
    from holitom.experiments import EXPERIMENTS

    store(verdicts.everything("tiny"))
    chosen = (EXPERIMENTS["table1"], EXPERIMENTS["fig_tradeoff"])  # Table 1 first: its strength of FastV and PDrop
    records = [record for one in chosen for record in verdicts.finished_records(one, "tiny")]
    if records:
        catalogue.store(records)
    readme = paths.root() / "README.md"
    write_atomic(readme, block(readme.read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
