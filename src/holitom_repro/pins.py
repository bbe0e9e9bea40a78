"""Does an environment hold what the kit needs? Compares installed versions with pyproject.toml and the lock files.

Standard library only, runnable by path before anything is installed: ``python -P src/holitom_repro/pins.py locked``.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlparse

DISTRIBUTION = "holitom-repro"
LOCK_FILES = ("core", "eval", "notebooks", "dev", "lmms-eval")  # on every host; eval-gpu only for the paper tier
GROUPS = ("eval", "notebooks", "dev")

Reading = Literal["declared", "locked"]


class Unmet(NamedTuple):
    """One requirement that the running environment does not meet; found is None when the package is missing."""

    package: str
    wanted: str
    found: str | None

    def __str__(self) -> str:
        return f"{self.package} {self.found or 'is missing'} (needs {self.wanted})"


def locked(root: Path) -> dict[str, str]:
    """Package -> exact version, over all lock files."""
    pins = {}
    for name in LOCK_FILES:
        text = (root / "requirements" / f"{name}.txt").read_text()
        pins.update(re.findall(r"^([A-Za-z0-9._-]+)==([^\s#]+)", text, flags=re.MULTILINE))
    return pins


def declared(root: Path) -> list[str]:
    """The requirement strings of pyproject.toml (core and the groups every host installs), and lmms-eval."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    requirements = list(project["dependencies"])
    for group in GROUPS:
        requirements += project["optional-dependencies"][group]
    pins = locked(root)
    return [*requirements, f"lmms-eval=={pins['lmms-eval']}"]


def installed(package: str) -> str | None:
    """The installed version without its local part (2.13.0+cpu is release 2.13.0), or None."""
    try:
        return metadata.version(package).split("+")[0]
    except metadata.PackageNotFoundError:
        return None


def unmet(root: Path, reading: Reading) -> list[Unmet]:
    """What this environment lacks: against the ranges of pyproject.toml ("declared") or the exact lock ("locked")."""
    missing = []
    if reading == "locked":
        for package, version in locked(root).items():
            if (found := installed(package)) != version:
                missing.append(Unmet(package, version, found))
    else:
        try:
            from packaging.requirements import Requirement
        except ImportError:
            return [Unmet("packaging", "any version", None)]
        for requirement in map(Requirement, declared(root)):
            found = installed(requirement.name)
            if found is None or not requirement.specifier.contains(found, prereleases=True):
                missing.append(Unmet(requirement.name, str(requirement.specifier) or "any version", found))
    if (place := package_location()) != root:
        missing.append(Unmet(DISTRIBUTION, f"this checkout, {root}", f"points to {place}" if place else None))
    return missing


def package_location() -> Path | None:
    """The checkout that the installed package points to (pip install -e), or None when it is absent or a plain copy."""
    try:
        text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    source = json.loads(text) if text else {}
    if not source.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlparse(source["url"]).path)).resolve()


def main(arguments: list[str]) -> int:
    """Print what is unmet, one line, and exit 1; print nothing and exit 0 when the environment will do."""
    root = Path(__file__).resolve().parents[2]
    reading: Reading = "locked" if arguments == ["locked"] else "declared"
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        print(f"Python {sys.version.split()[0]} (needs 3.11 or 3.12)")
        return 1
    missing = unmet(root, reading)
    if missing:
        shown = "; ".join(map(str, missing[:3]))
        print(shown + (f"; and {len(missing) - 3} more" if len(missing) > 3 else ""))
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
