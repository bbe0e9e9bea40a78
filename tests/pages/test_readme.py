"""The README: short, its results table is the generated one, and its links and pictures are there."""

import re

from holitom import paths, readme

TEXT = (paths.root() / "README.md").read_text(encoding="utf-8")


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 150


def test_the_results_table_is_current():
    assert readme.block(TEXT) == TEXT, "run python -m holitom.readme"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)", TEXT):
        assert (paths.root() / target).exists(), target


def test_every_verdict_is_counted(monkeypatch):
    monkeypatch.setattr(readme, "stored", lambda: paths.root() / "no such file")
    assert "Trends" not in readme.table() and "**72 of 72 REPRODUCED**" in readme.table()
