"""The README: short, its results table is the generated one, and its links and pictures are there."""

import re
from dataclasses import replace

import pytest

from holitom_repro import catalogue, paper, paths, readme
from holitom.errors import CannotRun

TEXT = (paths.root() / "README.md").read_text(encoding="utf-8")


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 150


def test_the_results_table_is_current():
    assert readme.block(TEXT) == TEXT, "run python -m holitom_repro.readme"


def test_every_method_is_in_the_table_with_its_facts():
    rows = {row[0]: dict(zip(catalogue.HEAD, row, strict=True)) for row in catalogue.rows({})}
    assert {"HoliTom", "FastV", "PDrop", "DyCoke", "VisionZip", "PruneVid", "FastVID", "MMG-Vid", "HieraVid"} <= set(
        rows
    )
    assert rows["VisionZip"]["reads"] == "keys, saliency" and rows["VisionZip"]["acts"] == "before the LLM"
    assert rows["VisionZip"]["fidelity"] == "port (released: golden)"
    assert rows["PDrop"]["acts"] == "inside, 3 times" and rows["PDrop"]["reads"] == "text"
    assert rows["MMG-Vid"]["fidelity"] == "reconstruction" and rows["Random"]["paper"] == "control"
    assert all(f"| {name} | " in TEXT for name in rows)


def test_costs_are_those_of_the_papers_tables():
    """Exact shares; the tables print ratios of rounded numbers, which differ by up to 0.1."""
    costs = {entry.row: entry.flops_pct for entry in catalogue.METHODS}
    printed = paper.table("table1").set_index(["method", "retained_pct"])["flops_pct"]
    for row, kept in (("HoliTom", 10), ("FastV", 100), ("PDrop", 100), ("VisionZip", 10), ("DyCoke", 25)):
        assert costs[row] == pytest.approx(printed[row, kept], abs=0.15), row


def test_flops_of_another_model_are_named():
    """HieraVid prints LLaVA-Video's FLOPs, the column holds LLaVA-OneVision's."""
    (entry,) = [entry for entry in catalogue.METHODS if entry.theirs is not None]
    (printed,) = [row for row in paper.table("hieravid").itertuples() if row.method == entry.row]
    assert f"; {printed.flops_pct:.1f} % on LLaVA-Video-7B" in entry.cost
    assert entry.cost.startswith(f"{entry.flops_pct:.1f} % at 30 % on average") and entry.row == "HieraVid"


def test_realised_budgets_come_from_records(made):
    found = made("table1")
    kept = catalogue.realised(found.records)
    assert kept["VisionZip"]["10"] == pytest.approx([10.0, 10.0])
    rows = {row[0]: row for row in catalogue.rows(kept)}
    assert "25 → 25.0, 10 → 10.0" in rows["VisionZip"]
    assert "not measured yet" in rows["ToMe"]
    assert "100.0 (mean over layers)" in rows["FastV"]  # the made-up records drop nothing inside


def test_budgets_of_some_of_the_cells_replace_nothing(made, tmp_path):
    found, file = made("table1").records, tmp_path / "methods.json"
    assert catalogue.store([], len(found), file) is None
    catalogue.store(found, len(found), file)
    before = file.read_bytes()
    with pytest.raises(CannotRun, match="all"):
        catalogue.store(found[:-1], len(found), file)
    assert file.read_bytes() == before


def test_a_budget_is_rounded_once(made):
    """10 of 512 tokens are 1.953 %, which is printed 2.0, not 1.9 by way of 1.95."""
    record = next(r for r in made("fig_tradeoff").records if r.row == "VisionZip" and r.method["budget"] == 0.02)
    record = replace(record, budget=replace(record.budget, kept_tokens=10, full_tokens=512))
    (row,) = [row for row in catalogue.rows(catalogue.realised([record])) if row[0] == "VisionZip"]
    assert "2 → 2.0" in row


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)", TEXT):
        assert (paths.root() / target).exists(), target


def test_every_verdict_is_counted(monkeypatch):
    monkeypatch.setattr(readme, "stored", lambda: paths.root() / "no such file")
    assert "Trends" not in readme.table() and "**72 of 72 REPRODUCED**" in readme.table()


@pytest.mark.parametrize(
    ("words", "said"), [(["--help"], "usage: .venv/bin/python -m holitom_repro.readme"), (["--chek"], "--chek")]
)
def test_its_command_line_writes_nothing_unasked(monkeypatch, capsys, words, said):
    monkeypatch.setattr(readme, "_write", lambda: pytest.fail("files were written"))
    if words == ["--help"]:
        with pytest.raises(SystemExit, match="0"):
            readme.main(words)
        assert said in capsys.readouterr().out
    else:
        assert readme.main(words) == 3 and said in capsys.readouterr().err


def test_an_error_of_the_kit_is_one_message(monkeypatch, capsys):
    def full():
        raise CannotRun("the disk is full", fix="free some space")

    monkeypatch.setattr(readme, "_write", full)
    assert readme.main([]) == 2
    assert capsys.readouterr().err == "holitom_repro.readme: the disk is full. Free some space.\n"
