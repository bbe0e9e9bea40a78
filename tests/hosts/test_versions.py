"""The versions that were tested, as data; what is older than the minimum is refused in words."""

import pytest

from holitom import versions
from holitom_repro import paths, pins
from holitom.errors import CannotRun


@pytest.mark.parametrize("found", ["4.51.3", "5.16.1", "5.18.0"])
def test_too_old(found):
    with pytest.raises(CannotRun, match=rf"transformers {found} is installed, and this needs 5\.19 or newer") as caught:
        versions.require_transformers(found)
    assert "docs/llava.md" in caught.value.fix


@pytest.mark.parametrize("found", ["5.19.0", "5.23.0", "6.0.0.dev0"])
def test_new_enough(found):
    versions.require_transformers(found)


def test_the_matrix_holds_what_the_lock_holds():
    """The locked versions were tested, and so was the oldest that pyproject.toml allows."""

    rows = versions.matrix()
    here = [row for row in rows if row.host == "transformers"]
    locked = pins.locked(paths.root())
    assert any((row.torch, row.transformers) == (locked["torch"], locked["transformers"]) for row in here)
    oldest = min(here, key=lambda row: tuple(map(int, row.transformers.split("."))))
    assert oldest.transformers.startswith(".".join(map(str, versions.MINIMUM)) + ".")
    assert all(row.ran and row.result and row.date for row in rows)


def test_standing(monkeypatch):
    ok, said = versions.standing()
    assert pins.installed("transformers") in said
    monkeypatch.setattr(versions, "installed", lambda name: "9.9.9")
    ok, said = versions.standing()
    assert not ok and "9.9.9: not among those tested" in said
