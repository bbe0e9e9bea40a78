"""This machine and this environment: what is there, what a record says of it, and what each tier needs.

``python -P -m holitom_repro.machine ROOT`` only says whether an environment will do for the checkout ROOT: nothing
(exit 0), or in one line what it lacks (exit 1). reproduce.sh asks an activated environment.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from contextlib import suppress
from functools import cache
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from holitom.errors import CannotRun
from holitom_repro import paths

NEEDS_GIB = {"tiny": (3, 4), "speed": (10, 16), "paper": (500, 32)}
"""Tier -> disk and memory; the paper tier's disk is for the videos of four benchmarks and the weights, about."""
EVERY = tuple(NEEDS_GIB)
IMPORTED = ("torch", "transformers", "numpy", "pandas", "av", "seaborn", "papermill", "ipykernel", "lmms_eval")
AGAIN = "./reproduce.sh makes a locked .venv; remove .venv to have it made anew"
Check = tuple[str, bool, str, str, tuple[str, ...]]
"""Name, whether it is well, what was found, how to mend it, and the tiers that cannot run while it fails."""


class Answer(NamedTuple):
    """Is it there, and in words what was found."""

    ok: bool
    found: str


@cache
def gpu() -> Answer:
    """One CUDA GPU that the installed torch can use. Imports torch only where an NVIDIA driver is present."""
    if not Path("/dev/nvidiactl").exists() and not shutil.which("nvidia-smi"):
        return Answer(False, "no NVIDIA GPU")
    import torch

    if not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        return Answer(False, f"an NVIDIA driver, but torch {torch.__version__} ({build}) sees no GPU")
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return Answer(True, "; ".join(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in found))


@cache
def hub() -> Answer:
    """Does the model hub (HF_ENDPOINT, else huggingface.co) answer? Whoever is offline by choice is not asked: what is
    needed is in the hub's cache, or told by name when it is not."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return Answer(True, "not asked (HF_HUB_OFFLINE is set): only its cache is read")
    given = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        urlopen(Request(given, method="HEAD"), timeout=2).close()
    except HTTPError:  # an answer all the same
        pass
    except (OSError, ValueError, HTTPException) as error:
        return Answer(False, f"{given} does not answer ({error})")
    return Answer(True, f"{given} answers")


def free_gib(folder: Path) -> float:
    """Free disk space where a folder is, or would be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 2**30


def available_gib() -> float:
    """Memory that is free for this process now: the machine's, or what a container's limit leaves when that is less."""
    import psutil

    free, group = psutil.virtual_memory().available, Path("/sys/fs/cgroup")
    try:
        limit, taken = (int((group / name).read_text(encoding="utf-8")) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
        free = min(free, limit - taken + int(stat["inactive_file"]))  # what files occupy is given back when needed
    except (OSError, ValueError, KeyError):  # no limit, or another kind of cgroup
        pass
    return max(0, free) / 2**30


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require(tier: str) -> None:
    """CannotRun, before any work, when this machine cannot serve the tier."""
    needs = {"tiny": {}, "speed": {"a CUDA GPU": gpu}, "paper": {"a CUDA GPU": gpu, "the model hub": hub}}[tier]
    if missing := [f"{name} ({ask().found})" for name, ask in needs.items() if not ask().ok]:
        fix = "run on a machine that has it, or use --tier tiny, which needs neither (./reproduce.sh doctor: more)"
        raise CannotRun(f"the {tier} tier needs {' and '.join(missing)}", fix=fix)


def provenance() -> dict[str, Any]:
    """Versions, python, processor, GPU, threads and git commit, as plain JSON; no host name, user or path.
    git: the commit, "-dirty" where tracked files differ from it; None without git."""
    import torch

    packages = ("torch", "transformers", "lmms-eval", "av", "numpy", "tokenizers")
    cpu = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: version(name) for name in packages},
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "gpus": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
        "git": _commit(),
        "threads": torch.get_num_threads(),
    }


@cache
def version(package: str) -> str | None:
    """The installed version of a package, None where it is missing."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


@cache
def _commit() -> str | None:
    """Also where another user has cloned it; a download inside somebody else's repository is not that repository."""
    with suppress(CannotRun, OSError, subprocess.SubprocessError):
        if (paths.root() / ".git").exists():
            words = ["git", "-c", "safe.directory=*", "describe", "--always", "--abbrev=40", "--dirty"]
            done = subprocess.run(words, cwd=paths.root(), capture_output=True, encoding="utf-8", check=True)
            return done.stdout.strip()
    return None


# --- the command doctor


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
        found = version(one.name)
        if found is None or not one.specifier.contains(found, prereleases=True):
            words.append(f"{one.name} {found or 'is missing'} (needs {one.specifier or 'any'})")
    return words


def locked(root: Path) -> dict[str, str]:
    """Package -> exact version, of every lock file that the set-up installs."""
    names = ("constraints", "core", "eval", "notebooks", "dev", "lmms-eval")
    text = "".join((root / "requirements" / f"{name}.txt").read_text(encoding="utf-8") for name in names)
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s#]+)", text, flags=re.MULTILINE))


def checks() -> list[Check]:
    """Every check. Nothing is installed or downloaded."""
    root, missing = paths.root(), lacking(paths.root())
    here = {name: (version(name) or "missing").split("+")[0] for name in locked(root)}  # 2.13.0+cpu is release 2.13.0
    other = [f"{name} {here[name]}" for name, exact in locked(root).items() if here[name] != exact]
    refused = [str(one) for one in (root / "runs", root / "figures") if one.exists() and not os.access(one, os.W_OK)]
    device, net = gpu(), hub()
    found: list[Check] = [
        ("packages", not missing, "; ".join(missing[:4]) or f"as pyproject.toml asks, in {sys.prefix}", AGAIN, EVERY),
        ("lock", not other, f"{len(other)} differ: {other[0]}" if other else "the locked versions", AGAIN, ()),
        _imports(),
        ("writing", not refused, ", ".join(refused) or f"in {root}", "give it to the user who runs this", EVERY),
        ("GPU", device.ok, device.found, "one CUDA GPU and a CUDA build of torch", ("speed", "paper")),
        ("model hub", net.ok, net.found, "allow HTTPS to it, or name a mirror with HF_ENDPOINT", ("paper",)),
    ]
    for place, (name, has) in enumerate((("disk", free_gib(root)), ("memory", available_gib()))):
        short = tuple(tier for tier, needs in NEEDS_GIB.items() if has < 0.9 * needs[place])
        needs = ", ".join(f"{tier} {needs[place]}" for tier, needs in NEEDS_GIB.items())
        found.append((name, not short, f"{has:.0f} GiB free (needed: {needs})", "free some", short))
    return found


def _imports() -> Check:
    """What a run imports, in a process that is started as a run starts it: each from this environment and no other."""
    code = "import importlib, sys\nfor name in sys.argv[1:]: print(importlib.import_module(name).__file__)"
    words = [sys.executable, "-P", "-c", code, *IMPORTED]
    done = subprocess.run(words, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        return "imports", False, done.stderr.strip().split("\n")[-1], AGAIN, EVERY
    strange = [one for one in done.stdout.splitlines() if not {Path(sys.prefix), paths.root()} & set(Path(one).parents)]
    return "imports", not strange, ", ".join(strange) or "all from this environment", "unset PYTHONPATH", EVERY


def doctor() -> int:
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
