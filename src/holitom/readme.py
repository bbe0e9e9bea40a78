"""The results table of the README, generated: derivations are computed again each time, trends of the tiny tier come
from the verdicts stored with the run that measured them.

``python -m holitom.readme`` judges every finished cell, stores the measured verdicts (data/measured/tiny_claims.json)
and rewrites the block between the two marks of README.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from holitom import paths
from holitom.claims import Judged, Verdict, table_claims
from holitom.results import write_atomic

BEGIN, END = "<!-- results: written by python -m holitom.readme -->", "<!-- end of results -->"
_DECIDED = (Verdict.REPRODUCED, Verdict.WITHIN_NOISE, Verdict.NOT_REPRODUCED, Verdict.NOT_RUN)
_ELSEWHERE = (
    (
        "Scores of the published checkpoints",
        "QUOTED",
        "`./reproduce.sh table1 --tier paper`: GPU, model hub, about 20 h",
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


def block(text: str) -> str:
    """README text with the block between the marks replaced by the present table."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


def main() -> int:
    from holitom import verdicts

    store(verdicts.everything("tiny"))
    readme = paths.root() / "README.md"
    write_atomic(readme, block(readme.read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
