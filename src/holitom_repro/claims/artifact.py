"""ARTIFACT.md and codecheck.yml, written from the ledger, the registry of experiments and committed measurements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from holitom_repro import paths
from holitom_repro.claims.entries import NOWHERE, OURS, PAPERS, Entry, entries
from holitom_repro.claims.judging import Judged, tally
from holitom_repro.experiments.registry import EXPERIMENTS, TIERS, Experiment

MARK = "<!-- written by python -m holitom_repro.readme: edit the ledger, the registry or holitom/claims/artifact.py -->"
HUMAN_MINUTES = {"any": 1, "tiny": 2, "speed": 5, "paper": 30}
"""What a person does: type a command, read its screen; for the paper tier, find GPUs and video files first."""
DISK_GB = {"tiny": 3, "speed": 10, "paper": 400}
"""Environment and caches; the paper tier adds checkpoints (16 GB for 7B, 145 GB for 72B) and the benchmarks' videos."""


def counted(judged: Sequence[Judged]) -> str:
    """ "84 REPRODUCED, 2 NOT RUN": the verdicts that occur."""
    return ", ".join(f"{n} {word}" for word, n in tally(judged).items() if n) or "–"


def artifact(judged: Sequence[Judged]) -> str:
    """ARTIFACT.md. judged: every claim, with the verdicts that are kept in the repository."""
    ledger = {one.name: one for one in entries()}
    parts = [MARK, _head(judged), _start(), _by_paper(judged, ledger), _by_experiment(judged, ledger)]
    return "\n\n".join([*parts, _not_supported(judged, ledger), _checklist()]) + "\n"


def codecheck(folder: Path | None = None) -> str:
    """codecheck.yml: the files that a check compares, and how each is made. folder: figures of the tiny tier."""
    here = folder or paths.figures("tiny")
    found = sorted(path.name for path in here.iterdir() if path.suffix in (".png", ".md"))
    manifest = [{"file": f"figures/tiny/{name}", "comment": _made_by(name)} for name in found]
    manifest.append({"file": "data/measured/tiny_claims.json", "comment": "verdicts on the trends of the tiny tier"})
    values = {
        "version": "https://codecheck.org.uk/spec/config/1.0",
        "manifest": manifest,
        "paper": {
            "title": "HoliTom: Holistic Token Merging for Fast Video Large Language Models",
            "authors": [
                {"name": name} for name in ("Kele Shao", "Keda Tao", "Can Qin", "Haoxuan You", "Yang Sui", "Huan Wang")
            ],
            "reference": "https://arxiv.org/abs/2505.21334",
        },
        "summary": (
            "A reproduction by others than the authors. ./reproduce.sh all makes every file of the manifest on two CPU "
            "cores; ./reproduce.sh claims prints the verdict on every claim. Numbers of the tiny tier are of a small "
            "model trained here, not of the paper's."
        ),
    }
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)
    return f"---\n# Written by python -m holitom_repro.readme\n{text}"


def _made_by(name: str) -> str:
    stem = name.partition(".")[0]
    fitting = [one for one in EXPERIMENTS.values() if stem == one.name or stem.startswith(f"{one.name}_")]
    best = max(fitting, key=lambda one: len(one.name), default=None)
    return f"./reproduce.sh {best.target} ({best.costs['tiny']})" if best else "./reproduce.sh all"


def _head(judged: Sequence[Judged]) -> str:
    return (
        "# Artifact: claims, experiments, cost\n\n"
        "What a reviewer needs to check this kit: which claims there are, which command judges each, what that takes, "
        "and what is not judged. The claims one by one: [data/papers/claims.yaml](data/papers/claims.yaml); their "
        "verdicts on your machine: `./reproduce.sh claims`.\n\n"
        f"**{len(judged)} claims: {counted(judged)}.** REPRODUCED: derived to the printed digit, or measured within a "
        "tolerance fixed beforehand. WITHIN NOISE: the data allow either. QUOTED: printed, not checked. A verdict of "
        "the tiny tier is about a small model trained here and never turns a printed score into a reproduced one."
    )


def _start() -> str:
    return (
        "## Getting started (30 minutes)\n\n"
        "1. `./reproduce.sh doctor` says what this machine lacks for which tier (seconds, after a set-up of about two "
        "minutes and 2 GB).\n"
        "2. `./reproduce.sh claims` judges everything that needs no new measurement (seconds).\n"
        "3. `./reproduce.sh table1 --limit 8` runs every path once (about a minute).\n"
        "4. `./reproduce.sh table1` measures, draws and judges Table 1 in the tiny tier; `./reproduce.sh all` the rest."
    )


def _by_paper(judged: Sequence[Judged], ledger: dict[str, Entry]) -> str:
    lines = [
        "## Claims by paper\n",
        "| paper | claims | verdicts | judged anywhere | tiny | speed | paper tier | not here |",
    ]
    lines.append("|---|---:|---|---:|---:|---:|---:|---:|")
    for paper in (*PAPERS, OURS):
        mine = [claim for claim in judged if ledger[claim.id].paper == paper]
        if mine:
            tiers = [ledger[claim.id].tier for claim in mine]
            counts = " | ".join(str(tiers.count(tier)) for tier in ("any", *TIERS, NOWHERE))
            lines.append(f"| {paper} | {len(mine)} | {counted(mine)} | {counts} |")
    return "\n".join(lines)


def _by_experiment(judged: Sequence[Judged], ledger: dict[str, Entry]) -> str:
    head = "| experiment | claims | verdicts | you (min) | tiny | speed | paper |"
    lines = ["## Claims by experiment\n", head, "|---|---|---|---:|---|---|---|"]
    for one in EXPERIMENTS.values():
        mine = [claim for claim in judged if claim.experiment == one.name]
        tier = max((ledger[claim.id].tier for claim in mine), key=_rank, default="any")
        ids = _ranges([ledger[claim.id].id for claim in mine])
        costs = " | ".join(str(one.costs[name]) if name in one.costs else "–" for name in TIERS)
        you = HUMAN_MINUTES.get(tier, HUMAN_MINUTES["tiny"])
        lines.append(f"| `{one.target}` | {ids or 'none of its own'} | {counted(mine)} | {you} | {costs} |")
    hours = {tier: sum(_minutes(one, tier) for one in EXPERIMENTS.values()) / 60 for tier in TIERS}
    total = "; ".join(f"{tier}: {hours[tier]:.1f} h, {DISK_GB[tier]} GB of disk" for tier in TIERS)
    lines.append(f"\nAll of them, from an empty cache (experiments share cells, so it is less): {total}.")
    lines.append(
        "Memory: 4 GB (tiny), one GPU of 80 GB (speed, and paper with 7B), one of over 150 GB for the 72B model."
    )
    return "\n".join(lines)


def _not_supported(judged: Sequence[Judged], ledger: dict[str, Entry]) -> str:
    """Every claim on which nothing here can give a verdict, with the reason."""
    mine = [claim for claim in judged if ledger[claim.id].tier == NOWHERE]
    reasons: dict[str, list[str]] = {}
    for claim in mine:
        reasons.setdefault(claim.reason, []).append(ledger[claim.id].id)
    lines = [f"## Not judged here: {len(mine)} claims\n"]
    lines += [f"- {_ranges(ids)}: {reason}" for reason, ids in reasons.items()]
    later = [claim for claim in judged if ledger[claim.id].tier == "paper"]
    lines.append(
        f"\n{len(later)} more need the published checkpoints and benchmarks; nobody has run that tier with this kit, "
        "so they are quoted. LLaVA-Video-7B has to be converted first; the 72B model is not split over GPUs."
    )
    return "\n".join(lines)


def _checklist() -> str:
    rows = (
        ("Algorithms", "HoliTom and the methods that it is compared with; README lists their fidelity"),
        (
            "Models",
            "three tiny video language models, shipped in data/tiny; the published checkpoints for the paper tier",
        ),
        (
            "Data",
            "a synthetic world, drawn from a seed; MVBench, EgoSchema, LongVideoBench, VideoMME for the paper tier",
        ),
        ("Hardware", "tiny: 2 CPU cores; speed: one CUDA GPU; paper: GPUs of 80 GB, of over 150 GB for 72B"),
        ("Software", "Linux, Python 3.11 or 3.12, versions locked in requirements/"),
        ("Metrics", "accuracy with intervals clustered by video; FLOPs; time to the first token; tokens per second"),
        ("Output", "figures/<tier>/ with a CSV beside each figure; runs/ with every answer; verdicts in the terminal"),
        ("Experiments", "./reproduce.sh list; each is one notebook and one command, resumable"),
        ("Licences", "Apache-2.0; of other works: THIRD_PARTY.md"),
    )
    return "## Checklist\n\n| | |\n|---|---|\n" + "\n".join(f"| {name} | {text} |" for name, text in rows)


def _minutes(one: Experiment, tier: str) -> float:
    return float(one.costs[tier].minutes) if tier in one.costs else 0.0


def _rank(tier: str) -> int:
    order = (NOWHERE, "any", "tiny", "speed", "paper")
    return order.index(tier)


def _ranges(ids: Sequence[str]) -> str:
    """C1-C4, C7: neighbours joined."""
    numbers = sorted(int(one[1:]) for one in ids)
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"C{run[0]}" if len(run) == 1 else f"C{run[0]}–C{run[-1]}" for run in runs)
