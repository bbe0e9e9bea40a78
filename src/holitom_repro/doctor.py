"""This machine against what each tier needs: every check with what was found and, where it fails, the fix."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass

from holitom import versions as library
from holitom_repro import versions
from holitom_repro import caches, machine, paths, pins
from holitom.errors import CannotRun, KitError
from holitom_repro.experiments.registry import TIERS, TINY_MODELS, missing_models

DISK_GIB = {"tiny": 1, "speed": 10, "paper": 500}  # paper: the videos of four benchmarks and the weights, about
MEMORY_GIB = {"tiny": 4, "speed": 16, "paper": 32}


@dataclass(frozen=True)
class Check:
    """One finding. blocks: the tiers that cannot run while it fails; none: worth knowing, stops nothing."""

    name: str
    ok: bool
    found: str
    fix: str = ""
    blocks: tuple[str, ...] = ()


def checks() -> list[Check]:
    """Every check, cheapest first. Nothing is installed or downloaded."""
    return [
        _python(),
        *_packages(),
        _lock(),
        _versions(),
        _kernel(),
        _models(),
        _gpu(),
        _hub(),
        _disk(),
        _memory(),
        _cores(),
        _git(),
    ]


def _python() -> Check:
    ok = sys.version_info[:2] in ((3, 11), (3, 12))
    found = f"{sys.version.split()[0]} in {sys.prefix}"
    return Check("python", ok, found, "install Python 3.11 or 3.12", TIERS)


def _packages() -> list[Check]:
    missing = pins.unmet(paths.root(), "declared")
    found = "all within the ranges of pyproject.toml" if not missing else "; ".join(map(str, missing[:4]))
    if len(missing) > 4:
        found += f"; and {len(missing) - 4} more"
    made = [Check("packages", not missing, found, "./reproduce.sh list installs the locked versions into .venv", TIERS)]
    if pins.installed("torchvision") and not machine.gpu().ok:
        note = f"{pins.installed('torchvision')} without a GPU: its import breaks transformers' model classes"
        made.append(Check("torchvision", False, note, f"{sys.executable} -m pip uninstall torchvision", TIERS))
    return made


def _lock() -> Check:
    different = [m for m in pins.unmet(paths.root(), "locked") if m.package != pins.DISTRIBUTION]
    found = "exactly the locked versions" if not different else f"{len(different)} packages differ: {different[0]}"
    return Check(
        "lock", not different, found, "results may differ in the last digits; ./reproduce.sh makes a locked .venv"
    )


def _versions() -> Check:
    found = pins.installed("transformers")
    fix = "the tests are the judge: ./reproduce.sh test; data/versions.yaml lists where they passed"
    try:
        library.require_transformers(found)
        tested, said = versions.standing()
    except CannotRun as error:
        return Check("versions", False, error.what, error.fix, TIERS)
    except ImportError as error:
        return Check("versions", False, f"{error.name} is missing", "./reproduce.sh list installs it")
    return Check("versions", tested, said, fix)


def _kernel() -> Check:
    try:
        from holitom_repro.execution import kernel

        return Check("kernel", True, kernel(), blocks=TIERS)
    except (ImportError, KitError) as error:
        fix = error.fix if isinstance(error, KitError) else "install the notebook packages: ./reproduce.sh list"
        what = error.what if isinstance(error, KitError) else "jupyter is not installed"
        return Check("kernel", False, what, fix, TIERS)


def _models() -> Check:
    absent = missing_models("tiny")
    found = f"data/tiny: {', '.join(TINY_MODELS)}" if not absent else f"missing below data/tiny: {', '.join(absent)}"
    return Check("tiny models", not absent, found, "git checkout -- data/tiny, or ./reproduce.sh train-tiny", ("tiny",))


def _gpu() -> Check:
    answer = machine.gpu()
    return Check("GPU", answer.ok, answer.found, "one CUDA GPU and a CUDA build of torch", ("speed", "paper"))


def _hub() -> Check:
    answer = machine.hub()
    fix = "allow HTTPS to it, or name a mirror with HF_ENDPOINT; models you have: export HF_HOME=~/.cache/huggingface"
    return Check("model hub", answer.ok, answer.found, fix, ("paper",))


def _disk() -> Check:
    free = machine.free_gib(paths.root())
    lacking = tuple(tier for tier, need in DISK_GIB.items() if free < need)
    needs = ", ".join(f"{tier} {need}" for tier, need in DISK_GIB.items())
    return Check(
        "disk", not lacking, f"{free:.0f} GiB free (needed: {needs})", "free some space, or move the checkout", lacking
    )


def _memory() -> Check:
    total = machine.memory_gib()
    lacking = tuple(tier for tier, need in MEMORY_GIB.items() if total < 0.9 * need)  # "4 GB" are 3.83 to a system
    needs = ", ".join(f"{tier} {need}" for tier, need in MEMORY_GIB.items())
    return Check("memory", not lacking, f"{total:.1f} GiB (needed: {needs})", "a machine with more memory", lacking)


def _cores() -> Check:
    count = machine.cores()
    return Check("cores", count >= 2, f"{count}", "the stated minutes are for 2 cores; it runs on one, slower")


def _git() -> Check:
    if not shutil.which("git"):
        return Check("git", False, "not installed", "install git: records then name the commit they were measured on")
    checkout = (paths.root() / ".git").exists()
    return Check(
        "git", checkout, "checkout" if checkout else "not a git checkout", "clone the repository instead of copying it"
    )


def lacking(found: list[Check]) -> dict[str, list[str]]:
    """Tier -> the names of the failed checks that stop it."""
    return {tier: [c.name for c in found if not c.ok and tier in c.blocks] for tier in TIERS}


def show(*, as_json: bool = False) -> int:
    """Print the findings; exit code 0 when the tiny tier can run here, else 2."""
    with suppress(OSError):  # a checkout that may only be read can still be looked at
        caches.keep_inside()
    found = checks()
    tiers = lacking(found)
    if as_json:
        facts = {
            "checks": [asdict(check) for check in found],
            "tiers": {t: {"runs": not m, "lacks": m} for t, m in tiers.items()},
        }
        print(json.dumps(facts, indent=1))
        return 2 if tiers["tiny"] else 0
    for check in found:
        stops = f" (stops: {', '.join(check.blocks)})" if check.blocks else ""
        print(f"{'ok  ' if check.ok else 'no  '}{check.name:<12} {check.found}")
        if not check.ok:
            print(f"    {'':<12} -> {check.fix}{stops}")
    print()
    for tier, missing in tiers.items():
        print(f"{tier:<6} {'can run here' if not missing else 'cannot run here, lacks: ' + ', '.join(missing)}")
    return 2 if tiers["tiny"] else 0
