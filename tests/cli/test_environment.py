"""The environment's four descriptions agree: pyproject.toml, the lock files, environment.yml, and what is installed."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from holitom_repro import pins


@pytest.fixture
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def test_every_requirement_of_pyproject_is_locked_within_its_range(root):
    locked = pins.locked(root)
    for requirement in map(Requirement, pins.declared(root)):
        version = locked.get(requirement.name.lower())
        assert version, f"{requirement.name} is not locked"
        assert requirement.specifier.contains(version), f"{requirement} does not allow the locked {version}"


def test_the_locks_are_complete_and_generated(root):
    done = subprocess.run(
        [sys.executable, root / "requirements" / "lock.py", "--check"], capture_output=True, text=True
    )
    if any(str(m.package) != pins.DISTRIBUTION for m in pins.unmet(root, "locked")):
        pytest.skip("this environment is not the locked one, so it cannot judge the lock")
    assert done.returncode == 0, done.stdout


def test_the_locks_hold_versions_and_nothing_else(root):
    for path in (root / "requirements").glob("*.txt"):
        for line in path.read_text().splitlines():
            line = line.split("#")[0].strip()
            assert not line or re.fullmatch(r"[a-z0-9.-]+==[0-9][A-Za-z0-9.]*", line), f"{path.name}: {line}"


def test_torch_is_pinned_and_torchvision_stays_out_of_the_cpu_environment(root):
    locked = pins.locked(root)
    assert f"torch=={locked['torch']}" in (root / "requirements" / "constraints.txt").read_text().split()
    assert not {"torchvision", "timm", "decord"} & set(locked)
    names = {Requirement(text).name for text in pins.declared(root)}
    assert not {"torchvision", "timm", "decord"} & names


def test_the_gpu_extras_are_those_of_pyproject(root, project):
    lines = (root / "requirements" / "eval-gpu.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == project["optional-dependencies"]["eval-gpu"]


def test_environment_yml_agrees_with_pyproject(root, project):
    recipe = yaml.safe_load((root / "environment.yml").read_text())
    assert recipe["channels"] == ["conda-forge", "nodefaults"]
    conda = dict(
        re.split(r"(?===|>=|=)", entry, maxsplit=1) for entry in recipe["dependencies"] if isinstance(entry, str)
    )
    assert SpecifierSet(project["requires-python"]).contains(conda["python"].strip("="))
    (pip,) = [entry["pip"] for entry in recipe["dependencies"] if isinstance(entry, dict)]
    assert "-e ." in pip and "-c requirements/constraints.txt" in pip
    files = {line.removeprefix("-r requirements/").removesuffix(".txt") for line in pip if line.startswith("-r ")}
    assert files == set(pins.LOCK_FILES) - {"lmms-eval"}  # that one needs --no-deps, which a conda file cannot say
    assert "pip install --no-deps -r requirements/lmms-eval.txt" in (root / "environment.yml").read_text()


def test_entry_points_lead_somewhere(project):
    assert project["scripts"] == {"holitom": "holitom_repro.cli:main"}
    for target in project["entry-points"]["lmms_eval.models"].values():
        module, function = target.split(":")
        source = Path(find_spec(module).origin).read_text()
        assert f"\ndef {function}(" in source


def test_versions_agree(root, project):
    import holitom

    assert holitom.__version__ == project["version"]
    assert yaml.safe_load((root / "CITATION.cff").read_text())["version"] == project["version"]


def test_unmet_names_what_is_missing_and_what_is_wrong(root, monkeypatch):
    monkeypatch.setattr(pins, "installed", lambda name: {"torch": "2.14.0", "rich": None}.get(name, "9999"))
    said = {m.package: str(m) for m in pins.unmet(root, "locked")}
    assert said["torch"] == "torch 2.14.0 (needs 2.13.0)"
    assert said["rich"].startswith("rich is missing (needs ")


def test_another_checkout_is_not_this_one(root, tmp_path, monkeypatch):
    monkeypatch.setattr(pins, "package_location", lambda: tmp_path)
    (last,) = [m for m in pins.unmet(root, "declared") if m.package == pins.DISTRIBUTION]
    assert str(tmp_path) in str(last)
