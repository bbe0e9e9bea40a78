"""Everything that is written from committed data: the README's two tables, ARTIFACT.md, codecheck.yml, the ledger.

``python -m holitom_repro.readme`` judges every finished cell, stores the measured verdicts (data/measured/tiny_claims.json)
and realised budgets (tiny_methods.json) if there are any, writes the ledger (data/papers/claims.yaml), and then what
follows from them. Texts follow from files that are committed with them, never from runs/.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from holitom_repro import paths
from holitom_repro.claims import Judged, Verdict, all_claims
from holitom_repro.claims import recorded as recorded_claims
from holitom_repro.claims.groups import GROUPS, group_of
from holitom_repro.claims.headlines import declared
from holitom.errors import KitError
from holitom_repro.results import write_atomic
from holitom_repro.usage import Parser

NAMES = ("results", "methods")
_DECIDED = (Verdict.REPRODUCED, Verdict.WITHIN_NOISE, Verdict.NOT_REPRODUCED, Verdict.NOT_RUN)


def stored() -> Path:
    """Where the measured verdicts of the tiny tier are kept."""
    return recorded_claims.path()


def committed_claims() -> list[Judged]:
    """Every claim with the verdict that follows from committed files: calculations, and what is kept in data/measured,
    with whatever code it was measured."""
    return all_claims([], "tiny", recorded=stored(), any_code=True)


def table() -> str:
    """The results as a Markdown table: what was checked, the verdicts, and how."""
    judged = committed_claims()
    found = {group: [claim for claim in judged if group_of(claim) == group] for group in GROUPS}
    ways = GROUPS | {
        "trends between methods": "thresholds fixed beforehand; 1,200 questions paired by video, a tiny model, not the "
        "paper's",
        "scores of the checkpoints": _scores(found["scores of the checkpoints"]),
        "times and speed-ups": _times(found["times and speed-ups"]),
    }
    rows = [(group, _count(claims), ways[group]) for group, claims in found.items() if claims]
    head = ("what", "verdict", "how, or what it would take")
    lines = ["| " + " | ".join(row) + " |" for row in (head, ("---",) * 3, *rows)]
    ledger = "[the ledger](data/papers/claims.yaml)"
    twice = sum("same_as" in one for one in declared())
    lines += [
        "",
        f"{len(judged)} claims in {ledger}, {twice} of them a table's number again in an abstract; "
        "`./reproduce.sh claims` judges them; [cost of each](ARTIFACT.md).",
    ]
    missed = [c for c in judged if c.verdict is Verdict.NOT_REPRODUCED]
    if missed:
        held = recorded_claims.read(stored())
        lines += ["", f"What does not hold (trends and findings: on the tiny model, {held.day}, {held.hardware}):", ""]
        lines += [f"- {c.statement.removesuffix('.')} ({c.reason.partition('; recorded ')[0]})" for c in missed]
    return "\n".join(lines)


def _scores(judged: Sequence[Judged]) -> str:
    """How many printed scores the paper tier can judge, and at what cost."""
    from holitom_repro.claims.entries import entry
    from holitom_repro.experiments import EXPERIMENTS

    one, other = (EXPERIMENTS[name] for name in ("table1", "table2"))
    able = sum(entry("", claim).tier == "paper" for claim in judged)
    hours = (one.costs["paper"].minutes + other.costs["paper"].minutes) / 60
    where = (
        f"`{one.target}` and `{other.target} --tier paper`: {hours:.0f} h, {other.costs['paper'].hardware} (estimate)"
    )
    return f"{able} by {where}; the others' models or answers are not public"


def _times(judged: Sequence[Judged]) -> str:
    """The ratios that the speed tier judges; the others are times of GPUs that nobody named."""
    from holitom_repro.experiments import EXPERIMENTS

    one, ratios = EXPERIMENTS["fig_inference"], sum(claim.id.endswith("/measured") for claim in judged)
    return f"{ratios} ratios by `{one.target} --tier speed`: {one.costs['speed']}; no GPU is named for the times"


def _count(judged: Sequence[Judged]) -> str:
    verdicts = [claim.verdict for claim in judged]
    if judged and verdicts.count(Verdict.REPRODUCED) == len(verdicts):
        return f"**{len(verdicts)} of {len(verdicts)} REPRODUCED**"
    return ", ".join(f"{verdicts.count(v)} {v}" for v in (*_DECIDED, Verdict.QUOTED) if v in verdicts)


def methods() -> str:
    """The method table as Markdown."""
    from holitom_repro import catalogue

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
    return f"<!-- {name}: written by python -m holitom_repro.readme -->", f"<!-- end of {name} -->"


def generated() -> dict[Path, str]:
    """Every file that follows from committed data, with what it should hold. The ledger comes first: the others read
    it."""
    from holitom_repro.claims import artifact, entries, write

    readme, judged = paths.root() / "README.md", committed_claims()
    return {
        entries.path(): write.current(),
        readme: block(readme.read_text(encoding="utf-8")),
        paths.root() / "ARTIFACT.md": artifact.artifact(judged),
        paths.root() / "codecheck.yml": artifact.codecheck(),
    }


def main(words: Sequence[str] | None = None) -> int:
    """The command line; an error of the kit is one message, and its exit code."""
    try:
        Parser(prog=".venv/bin/python -m holitom_repro.readme", description=__doc__.replace("``", "")).parse_args(words)
        _write()
    except KitError as error:
        print(f"holitom_repro.readme: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _write() -> None:
    from holitom_repro import catalogue, verdicts
    from holitom_repro.claims import entries, write
    from holitom_repro.experiments import EXPERIMENTS, cells

    chosen = (EXPERIMENTS["table1"], EXPERIMENTS["fig_tradeoff"])  # Table 1 first: its strength of FastV and PDrop
    records = [record for one in chosen for record in verdicts.finished_records(one, "tiny")]
    planned = sum(len(cells(one.name, "tiny")) for one in chosen)
    catalogue.require_whole(records, planned)  # before anything is written: both files or neither
    recorded_claims.store(verdicts.everything("tiny", recorded=False), verdicts.cells_of("tiny"))
    catalogue.store(records, planned)
    write_atomic(entries.path(), write.current())
    for path, text in generated().items():
        write_atomic(path, text)


if __name__ == "__main__":
    raise SystemExit(main())
