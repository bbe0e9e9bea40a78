"""This machine and this environment against what each tier needs.

``python -P -m holitom_repro.doctor ROOT`` only says whether an environment will do for the checkout ROOT: nothing (exit
0), or in one line what it lacks (exit 1). reproduce.sh asks an activated environment.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from holitom_repro import machine, paths

NEEDS_GIB = {"tiny": (3, 4), "speed": (10, 16), "paper": (500, 32)}
"""Tier -> disk and memory; the paper tier's disk is for the videos of four benchmarks and the weights, about."""
EVERY = tuple(NEEDS_GIB)
IMPORTED = ("torch", "transformers", "numpy", "pandas", "av", "seaborn", "papermill", "ipykernel", "lmms_eval")
AGAIN = "./reproduce.sh makes a locked .venv; remove .venv to have it made anew"
Check = tuple[str, bool, str, str, tuple[str, ...]]
"""Name, whether it is well, what was found, how to mend it, and the tiers that cannot run while it fails."""


def lacking(root: Path) -> list[str]:
    """What this Python lacks of the ranges in pyproject.toml, and of the checkout ``root``, in words."""
    from packaging.requirements import Requirement

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["repro"], *extras["eval"], *extras["notebooks"], *extras["dev"]]
    words = [] if paths.root() == root else [f"holitom-repro is that of {paths.root()}"]
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        words.append(f"Python is {sys.version.split()[0]} (needs 3.11 or 3.12)")
    for one in map(Requirement, [*asked, f"lmms-eval=={locked(root)['lmms-eval']}"]):
        found = installed(one.name)
        if found is None or not one.specifier.contains(found, prereleases=True):
            words.append(f"{one.name} {found or 'is missing'} (needs {one.specifier or 'any'})")
    return words


def locked(root: Path) -> dict[str, str]:
    """Package -> exact version, of every lock file that the set-up installs."""
    names = ("constraints", "core", "eval", "notebooks", "dev", "lmms-eval")
    text = "".join((root / "requirements" / f"{name}.txt").read_text(encoding="utf-8") for name in names)
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s#]+)", text, flags=re.MULTILINE))


def installed(package: str) -> str | None:
    """The installed version without its local part (2.13.0+cpu is release 2.13.0), or None."""
    found = machine.version(package)
    return found and found.split("+")[0]


def checks() -> list[Check]:
    """Every check. Nothing is installed or downloaded."""
    root, missing = paths.root(), lacking(paths.root())
    other = [f"{name} {installed(name)}" for name, version in locked(root).items() if installed(name) != version]
    refused = [str(one) for one in (root / "runs", root / "figures") if one.exists() and not os.access(one, os.W_OK)]
    models = [paths.data("tiny", name, "config.json") for name in ("onevision", "video", "control_tower")]
    absent = [str(path) for path in models if not path.is_file()]
    gpu, hub, cores = machine.gpu(), machine.hub(), machine.cores()
    found: list[Check] = [
        ("packages", not missing, "; ".join(missing[:4]) or f"as pyproject.toml asks, in {sys.prefix}", AGAIN, EVERY),
        ("lock", not other, f"{len(other)} differ: {other[0]}" if other else "the locked versions", AGAIN, ()),
        _imports(),
        ("writing", not refused, ", ".join(refused) or f"in {root}", "give it to the user who runs this", EVERY),
        ("tiny models", not absent, ", ".join(absent) or "in data/tiny", "git checkout -- data/tiny", ("tiny",)),
        ("GPU", gpu.ok, gpu.found, "one CUDA GPU and a CUDA build of torch", ("speed", "paper")),
        ("model hub", hub.ok, hub.found, "allow HTTPS to it, or name a mirror with HF_ENDPOINT", ("paper",)),
        ("cores", cores > 1, str(cores), "minutes are for 2 cores; it runs on one, slower", ()),
        _git(root),
    ]
    for place, (name, has) in enumerate((("disk", machine.free_gib(root)), ("memory", machine.available_gib()))):
        short = tuple(tier for tier, needs in NEEDS_GIB.items() if has < 0.9 * needs[place])
        needs = ", ".join(f"{tier} {needs[place]}" for tier, needs in NEEDS_GIB.items())
        found.append((name, not short, f"{has:.0f} GiB free (needed: {needs})", "free some", short))
    return found


def _imports() -> Check:
    """What a run imports, in a process that is started as a run starts it: each from this environment and no other."""
    code = "import importlib, sys\nfor name in sys.argv[1:]: print(importlib.import_module(name).__file__)"
    well, said = _asked([sys.executable, "-P", "-c", code, *IMPORTED])
    if not well:
        return "imports", False, said[-1], AGAIN, EVERY
    strange = [one for one in said if not {Path(sys.prefix), paths.root()} & set(Path(one).parents)]
    return "imports", not strange, ", ".join(strange) or "all from this environment", "unset PYTHONPATH", EVERY


def _git(root: Path) -> Check:
    fix = "clone the repository: records then name the commit that they were measured on"
    well, said = _asked(["git", "-c", "safe.directory=*", "-C", str(root), "rev-parse", "--short", "HEAD"])
    return "git", well, said[0], fix, ()


def _asked(words: list[str]) -> tuple[bool, list[str]]:
    """Whether a command did well, and the lines of what it said, of its errors where it did not."""
    try:
        done = subprocess.run(words, capture_output=True, encoding="utf-8", errors="replace")
    except OSError:
        return False, [f"{words[0]} is not installed"]
    return not done.returncode, (done.stderr if done.returncode else done.stdout).strip().split("\n")


def show() -> int:
    """Print the findings; exit code 2 when the tiny tier cannot run here."""
    found = checks()
    for name, well, said, fix, stops in found:
        print(f"{'ok' if well else 'no'}  {name:<12} {said}")
        if not well:
            print(f"    {'':<12} -> {fix}" + (f" (stops: {', '.join(stops)})" if stops else ""))
    print()
    failing = {tier: [name for name, well, _, _, stops in found if not well and tier in stops] for tier in EVERY}
    for tier, names in failing.items():
        print(f"{tier:<6} {'cannot run here: ' if names else 'can run here'}{', '.join(names)}")
    return 2 if failing["tiny"] else 0


if __name__ == "__main__":
    words = lacking(Path(sys.argv[1]).resolve())
    print("; ".join(words[:3]), end="\n" if words else "")
    sys.exit(bool(words))
