"""The experiments: which question each answers, in which notebook, and what it costs in every tier. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from holitom_repro import paths
from holitom.errors import BadUsage
from holitom_repro.suggestions import nearest

TIERS = ("tiny", "speed", "paper")
TINY_MODELS = ("onevision", "video", "control_tower")  # below data/tiny
CPU, GPU, GPUS = "2 CPU cores", "1 GPU of 80 GB", "1 GPU of 80 GB, one of over 150 GB for 72B"


@dataclass(frozen=True)
class Cost:
    """Minutes from an empty cache on ``hardware``; ``measured`` False: an estimate that nobody has timed yet."""

    minutes: float | int
    hardware: str
    measured: bool = True

    def __str__(self) -> str:
        if self.minutes < 1:
            span = "under a minute"
        else:
            span = f"{self.minutes:.0f} min" if self.minutes < 120 else f"{self.minutes / 60:.0f} h"
        return f"{span}, {self.hardware}" + ("" if self.measured else " (estimate)")


@dataclass(frozen=True)
class Experiment:
    """One question with one notebook. costs: tier -> Cost; a tier that is absent does not offer the experiment.

    claims: which claims it touches, in words (holitom_repro.claims judges them one by one); measures: the notebook reads
    cells (settings x benchmarks) that are computed before it, in the terminal; times: it reads records of
    ``holitom_repro.latency``, measured before it where that is possible, or recorded in data/measured.
    """

    name: str
    question: str
    notebook: str
    claims: str
    costs: dict[str, Cost]
    measures: bool = False
    times: bool = False

    @property
    def target(self) -> str:
        """Its name on the command line."""
        return target(self.name)


def target(name: str) -> str:
    """fig_inner -> fig-inner: the command line spells names with hyphens."""
    return name.replace("_", "-")


def _anywhere(minutes: float | int) -> dict[str, Cost]:
    """The cost of what only calculates: the same in the tiny and the paper tier."""
    return {"tiny": Cost(minutes, CPU), "paper": Cost(minutes, CPU)}


def _timed(minutes: int) -> Cost:
    """The tiny tier's cost on two cores: half of what its cells took two processes of one thread together."""
    return Cost(minutes, CPU)


def _measuring(name: str, question: str, claims: str, tiny: Cost, paper_hours: int, hardware: str = GPU) -> Experiment:
    """An experiment whose notebook, of the same name, reads measured cells; the paper tier's cost is an estimate."""
    costs = {"tiny": tiny, "paper": Cost(60 * paper_hours, hardware, measured=False)}
    return Experiment(name, question, name, claims, costs, measures=True)


_TABLE = "FLOPs, ratios and averages of every row (derived); every score (paper tier); trends (tiny tier)"
_ALL = (
    Experiment(
        "start",
        "What can be reproduced here, tier by tier, and what would the rest take?",
        "00_start_here",
        "none of its own; it shows the verdicts of the others",
        _anywhere(0.5),
    ),
    Experiment(
        "method",
        "What does HoliTom do to a real clip: which tokens merge, which survive?",
        "01_method",
        "none is judged; it shows the mechanism behind them",
        _anywhere(0.5),
    ),
    Experiment(
        "flops",
        "Do the FLOPs columns of Tables 1 and 2 come out to the printed digit, and what do they count?",
        "02_flops",
        "every FLOPs cell of both tables (derived)",
        _anywhere(0.5),
    ),
    _measuring(
        "table1",
        "Table 1: how much of the score is left at 25, 20, 15 and 10 % of the tokens?",
        _TABLE,
        _timed(6),
        40,
    ),
    _measuring("table2", "Table 2: does it hold on LLaVA-Video and on 72B?", _TABLE, _timed(7), 60, GPUS),
    _measuring(
        "fig_tradeoff",
        "Teaser figure: score over prefill FLOPs for every method, down to 2 % of the tokens",
        "trends (tiny tier)",
        _timed(9),
        60,
    ),
    _measuring(
        "fig_inner",
        "Inner-LLM ablation: which layer K, which share R, and does merging beat dropping?",
        "merging against dropping over K and R: trends (tiny tier)",
        _timed(3),
        30,
    ),
    _measuring(
        "fig_frames",
        "More frames: does reduction pay for a longer look at the video?",
        "trends (tiny tier)",
        _timed(5),
        30,
    ),
    Experiment(
        "fig_inference",
        "TTFT and decode figure: where does the time go, with which method, frames, budget and batch?",
        "fig_inference",
        "sums and ratios of the printed TTFT figure (derived); times of the speed tier are measured or recorded",
        {"tiny": Cost(2, CPU), "speed": Cost(29, "1 H200", measured=False)},
        times=True,
    ),
    _measuring(
        "mmg_vid",
        "MMG-Vid: does its reconstruction keep the score, and does the sign of its marginal gain matter?",
        "its FLOPs, averages and shares (derived); headline score and speed-up (quoted); trends (tiny tier)",
        _timed(8),
        30,
    ),
    _measuring(
        "hieravid",
        "HieraVid: what do its percentages mean, and what is left of the score at each?",
        "its FLOPs and mean shares (derived); headline scores (quoted); trends (tiny tier)",
        _timed(14),
        10,
    ),
    _measuring(
        "ablations",
        "Ablations of HoliTom: which of its parts and settings does the score depend on?",
        "trends (tiny tier); the paper's own ablation tables were not seen",
        _timed(4),
        40,
    ),
    _measuring(
        "findings",
        "Consistency: what do the printed numbers count, how far do they carry, what does the release change?",
        "findings of this kit about the printed numbers (derived, trends of the tiny tier)",
        _timed(5),
        30,
    ),
)

EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in _ALL}
ORDER = (
    "flops",
    "table1",
    "table2",
    "fig_tradeoff",
    "fig_inner",
    "fig_frames",
    "fig_inference",
    "mmg_vid",
    "hieravid",
    "ablations",
    "findings",
    "method",
    "start",
)
"""The order of ``all``: what others reuse first, the overview last, when it has everything to show."""


def find(name: str) -> Experiment:
    """The experiment of a name in either spelling. BadUsage, with the nearest name, for an unknown one."""
    if experiment := EXPERIMENTS.get(name.replace("-", "_")):
        return experiment
    targets = [e.target for e in EXPERIMENTS.values()]
    raise BadUsage(f"there is no experiment {name!r}{nearest(name, targets)}", fix=f"use one of {', '.join(targets)}")


def check_tier(experiment: Experiment, tier: str) -> Cost:
    """The cost of an experiment in a tier. BadUsage for an unknown tier or one that does not offer it."""
    if tier not in TIERS:
        raise BadUsage(f"there is no tier {tier!r}{nearest(tier, TIERS)}", fix=f"use one of {', '.join(TIERS)}")
    if tier not in experiment.costs:
        offered = " or ".join(f"--tier {t}" for t in experiment.costs)
        raise BadUsage(f"{experiment.target} measures nothing in the {tier} tier", fix=f"use {offered}")
    return experiment.costs[tier]


def missing_models(tier: str) -> list[str]:
    """The models of the tiny tier that are not where they are shipped; other tiers ship none."""
    return [name for name in TINY_MODELS if tier == "tiny" and not paths.data("tiny", name, "config.json").is_file()]
