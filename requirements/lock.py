"""Write the lock files beside this script from the environment that runs it: python requirements/lock.py [--check]

Each group of pyproject.toml becomes one file with the group's packages and everything they pull in, at the versions
installed here; a package stands in the first file that needs it. Nothing but versions is recorded: no index, no path.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(__file__).resolve().parent
ORDER = ("core", "eval", "notebooks", "dev")  # eval-gpu and lmms-eval are written by hand: see their first lines


def normal(name: str) -> str:
    """The canonical spelling of a distribution's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(requirements: list[str], seen: dict[str, set[str]]) -> dict[str, set[str]]:
    """Every installed distribution these requirements need, with who needs it; those in ``seen`` are left out."""
    found: dict[str, set[str]] = {}
    queue = [(Requirement(text), "pyproject.toml") for text in requirements]
    visited: set[tuple[str, str]] = set()
    while queue:
        requirement, parent = queue.pop()
        name = normal(requirement.name)
        if name not in seen:
            found.setdefault(name, set()).add(parent)
        for extra in requirement.extras or {""}:
            if (name, extra) in visited:
                continue
            visited.add((name, extra))
            for needed in map(Requirement, metadata.requires(name) or []):
                if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in ("", extra)):
                    queue.append((needed, name))
    return found


def lock_files() -> dict[str, str]:
    """File name -> content of every generated lock file."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    groups = {"core": project["dependencies"] + extras["repro"], **extras}
    files: dict[str, str] = {}
    seen: dict[str, set[str]] = {}
    for group in ORDER:
        found = closure(groups[group], seen)
        lines = [f"# Locked packages of the group '{group}' (made by requirements/lock.py: Python 3.11, Linux x86-64)."]
        for name in sorted(found):
            version = metadata.version(name).split("+")[0]  # torch 2.13.0+cpu and +cu130 are the same release
            lines.append(f"{name}=={version}".ljust(40) + f"# {', '.join(sorted(found[name]))}")
        files[f"{group}.txt"] = "\n".join(lines) + "\n"
        seen |= found
    return files


def main(arguments: list[str]) -> int:
    """Write the files, or with --check name those that this environment would write differently (exit 1)."""
    stale = [
        name
        for name, text in lock_files().items()
        if not (HERE / name).is_file() or (HERE / name).read_text(encoding="utf-8") != text
    ]
    if arguments == ["--check"]:
        print(
            "\n".join(f"requirements/{name} differs from this environment" for name in stale) or "the lock files agree"
        )
        return int(bool(stale))
    for name, text in lock_files().items():
        (HERE / name).write_text(text, encoding="utf-8")
    print(f"wrote {', '.join(lock_files())}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
