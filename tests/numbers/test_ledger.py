"""The ledger: every claim once, nothing typed twice, generated files current, verdicts that fall with their records."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import yaml

from holitom import methods
from holitom_repro import paper, paths, readme, verdicts
from holitom_repro.claims import Judged, Verdict, all_claims, claims_of, headlines, recorded
from holitom_repro.claims.defaults import method_defaults
from holitom_repro.claims.entries import NOWHERE, OURS, PAPERS, entries
from holitom_repro.claims.finished import finished_cells
from holitom_repro.claims.points import SPEED_TOLERANCE, judge_ratio, time_claims
from holitom.errors import BadUsage, CannotRun
from holitom_repro.experiments import EXPERIMENTS, TIERS
from holitom_repro.provenance import code_fingerprint
from holitom_repro.results import Record, save_records

LEDGER = entries()
R, W, N, OPEN = Verdict.REPRODUCED, Verdict.WITHIN_NOISE, Verdict.NOT_REPRODUCED, Verdict.NOT_RUN


@pytest.mark.parametrize("text", ["{", "null", "[1]", '{"claims": 5}', '{"claims": [{}]}'])
def test_damaged_verdicts_are_named(tmp_path, text) -> None:
    file = tmp_path / "tiny_claims.json"
    file.write_text(text)
    with pytest.raises(CannotRun, match=r"tiny_claims\.json holds no verdicts"):
        recorded.read(file)


def test_a_cell_of_another_shape_is_left_out(tmp_path) -> None:
    cells = tmp_path / "tiny" / "cells"
    cells.mkdir(parents=True)
    kept = Record(
        value=1.0, unit="points", metric="accuracy", experiment="table1", row="HoliTom", tier="tiny", source="measured",
        provenance={"cpu": "test"}, code=code_fingerprint(),
    )  # fmt: skip
    (cells / "a.json").write_text(kept.to_json())
    (cells / "b.json").write_text(json.dumps(json.loads(kept.to_json()) | {"extra": 1}))
    assert [record.row for record in finished_cells(tmp_path, "tiny")] == ["HoliTom"]


def test_every_entry_is_complete_and_has_a_number_of_its_own() -> None:
    assert len(LEDGER) >= 150
    for field in ("id", "name"):
        assert len({getattr(one, field) for one in LEDGER}) == len(LEDGER)
    for one in LEDGER:
        assert one.paper and one.place and one.statement and one.unit and one.read, one
        assert one.tolerance and one.why and one.experiment, one
        assert one.tier in ("any", *TIERS, NOWHERE)
        if one.tier in TIERS:
            assert one.tier in EXPERIMENTS[one.experiment].costs and one.minutes and one.hardware, one.name
            assert one.command.endswith(f"--tier {one.tier}")


def test_the_papers_are_covered() -> None:
    names = {one.name for one in LEDGER}
    for table in ("table1", "table2"):
        for row in paper.scores(table).itertuples():
            assert f"{table}/{row.model}/{row.method}/{row.retained_pct}/{row.benchmark}" in names
        for row in paper.table(table).itertuples():
            assert f"{table}/{row.model}/{row.method}/{row.retained_pct}/flops_t" in names
    points = sum(one.name.startswith(("fig_inner/", "fig_frames/")) for one in LEDGER)
    assert points == 18 + 16  # K = 14, R = 0.5 is in both sweeps
    assert sum(one.experiment == "fig_inference" for one in LEDGER) >= 7 * 6
    assert {one.paper for one in LEDGER} == {*PAPERS, OURS}


def test_no_number_is_typed_twice() -> None:
    declared = headlines.declared()
    assert all(("value" in one) != ("same_as" in one) for one in declared)
    assert all(("same_as" in one) + ("derive" in one) + ("quoted" in one) == 1 for one in declared)


@pytest.mark.parametrize("path", list(readme.generated()), ids=lambda path: path.name)
def test_generated_files_are_current(path) -> None:
    assert path.read_text(encoding="utf-8") == readme.generated()[path], "run python -m holitom_repro.readme"


def test_texts_follow_from_committed_files_only(tmp_path, monkeypatch) -> None:
    before = readme.table()
    monkeypatch.setattr(paths, "runs", lambda *parts: tmp_path.joinpath(*parts))
    monkeypatch.setattr(recorded, "code_fingerprint", lambda: "another")
    assert readme.table() == before


def trend(verdict: Verdict, **changes) -> Judged:
    values = {"statement": "s", "place": "p", "reason": "r", "source": "measured", "unit": "points", "tier": "tiny"}
    return Judged(id="trend-x", verdict=verdict, **{**values, **changes})


def record(**changes) -> Record:
    values = {"unit": "points", "metric": "accuracy", "experiment": "table1", "row": "HoliTom", "tier": "tiny"}
    values |= {"source": "measured", "provenance": {"cpu": "a processor", "cores": 2}, "code": code_fingerprint()}
    return Record(value=90.0, n=300, **{**values, **changes})


def test_a_recorded_verdict_stands_in_for_the_same_code_only(tmp_path, monkeypatch) -> None:
    file = tmp_path / "kept.json"
    recorded.store([trend(R), trend(R, reason="r").__class__(**{**vars(trend(R)), "id": "table1/x"})], [record()], file)
    assert [claim.id for claim in recorded.read(file).claims] == ["trend-x"]
    missing = trend(OPEN, reason="not measured")
    (found,) = recorded.with_recorded([missing], "tiny", file)
    assert found.verdict is R and "recorded" in found.reason and found.records == ("data/measured/kept.json",)
    assert recorded.with_recorded([missing], "paper", file) == [missing]  # another tier
    fresh = trend(N)
    assert recorded.with_recorded([fresh], "tiny", file) == [fresh]  # measured here: that counts
    (reworded,) = recorded.with_recorded([dataclasses.replace(missing, statement="other")], "tiny", file)
    assert reworded.verdict is OPEN and "another wording" in reworded.reason
    monkeypatch.setattr(recorded, "code_fingerprint", lambda: "another")
    (stale,) = recorded.with_recorded([missing], "tiny", file)
    assert stale.verdict is OPEN and "earlier version of the code" in stale.reason
    (committed,) = recorded.with_recorded([missing], "tiny", file, any_code=True)
    assert committed.verdict is R


def test_a_machine_without_measurements_wipes_nothing(tmp_path) -> None:
    file = tmp_path / "kept.json"
    recorded.store([trend(R)], [record()], file)
    assert recorded.store([trend(OPEN)], [], file) is None
    assert recorded.read(file).claims[0].verdict is R
    assert recorded.read(tmp_path / "absent.json").claims == ()


def test_a_machine_with_some_of_the_cells_wipes_nothing(tmp_path) -> None:
    file, other = tmp_path / "kept.json", {"id": "trend-y"}
    recorded.store([trend(R), dataclasses.replace(trend(W), **other)], [record()], file)
    before = file.read_bytes()
    with pytest.raises(CannotRun, match=r"1 recorded verdicts would be lost \(trend-y\).*reproduce\.sh all"):
        recorded.store([trend(N), dataclasses.replace(trend(OPEN), **other)], [record()], file)
    assert file.read_bytes() == before
    reworded = [trend(N, statement="other", tolerance="1 point")]  # and trend-y is declared no longer
    recorded.store([*reworded, dataclasses.replace(trend(OPEN), id="trend-new")], [record()], file)
    assert [(c.id, c.verdict) for c in recorded.read(file).claims] == [("trend-x", N), ("trend-new", OPEN)]


def test_only_whole_cells_of_this_code_and_these_weights_count(tmp_path) -> None:
    made = {
        "good": record(model="onevision", model_revision="new", created="2026-01-02"),
        "old_weights": record(model="onevision", model_revision="old", created="2026-01-01"),
        "old_code": record(model="onevision", model_revision="new", code="another"),
        "trial": record(model="onevision", model_revision="new", extra={"limit": 8}),
        "rendered": record(model="onevision", model_revision="new", extra={"pixels": "rendered"}),
        "paper": record(model="onevision", model_revision="new", tier="paper"),
    }
    for name, one in made.items():
        save_records(tmp_path / "tiny" / "cells" / f"{name}.json", [one])
    (tmp_path / "tiny" / "cells" / "half.json").write_text('{"value": ')
    found = finished_cells(tmp_path, "tiny")
    assert [one.created for one in found] == ["2026-01-02"] and found[0].experiment == "any"
    assert finished_cells(tmp_path / "nothing", "tiny") == []


@pytest.mark.parametrize(
    ("low", "value", "high", "verdict"),
    [
        (2.0, 2.0 * (1 + SPEED_TOLERANCE), 2.3, R),
        (1.7, 2.0 * (1 - SPEED_TOLERANCE), 2.0, R),
        (2.19, 2.21, 2.3, W),
        (1.5, 1.7, 1.81, W),
        (2.21, 2.3, 2.4, N),
        (1.0, 1.1, 1.79, N),
    ],
)
def test_ratios_of_times_at_their_boundaries(low: float, value: float, high: float, verdict: Verdict) -> None:
    assert judge_ratio(low, value, high, 2.0) is verdict


def timed(row: str, at: str, median: float, **changes) -> dict:
    part = {"q1": 0.99 * median, "median": median, "q3": 1.01 * median}
    values = {"row": row, "at": at, "model": "ov-7b", "file": "a.jsonl", "code": "c", "frames": 32, "created": "2026"}
    values |= {"batch": 1, "dtype": "bfloat16", "layers": 28, "full_layers": 28, "tier": "speed", "part": "rows"}
    values |= {"outcome": "measured", "kind": "latency"}
    rate = {name: 10_000 / value for name, value in zip(("q3", "median", "q1"), part.values(), strict=True)}
    summary = {"ttft_ms": part, "decode_tok_s": rate}
    return {**values, "provenance": {"gpu": "a GPU"}, "device": "cuda", "summary": summary, **changes}


def speed(records: list[dict]) -> dict[str, Judged]:
    return {claim.id: claim for claim in time_claims(records) if claim.id.endswith("/measured")}


def test_times_are_judged_as_ratios_of_one_machine() -> None:
    name = "fig_inference/ov-7b/HoliTom/ttft_speedup/measured"
    full, mine = timed("Vanilla", "all tokens", 1000), timed("HoliTom", "printed", 440)
    found = speed([full, mine])[name]
    assert found.verdict is R and found.computed == pytest.approx(1000 / 440) and "a GPU" in found.reason
    assert speed([full, timed("HoliTom", "printed", 800)])[name].verdict is N
    others = ({"file": "b.jsonl"}, {"code": "d"}, {"frames": 64}, {"at": "10%"}, {"model": "tiny"}, {"batch": 2})
    for other in (*others, {"dtype": "float32"}, {"layers": 20}, {"provenance": {"gpu": "another GPU"}}):
        assert speed([full, mine | other])[name].verdict is OPEN, other
    assert speed([])[name].verdict is OPEN and "--tier speed" in speed([])[name].reason


def test_what_the_named_command_measures_is_judged(tmp_path) -> None:
    name = "fig_inference/ov-7b/HoliTom/ttft_speedup/measured"
    file = tmp_path / "speed" / "latency.jsonl"
    file.parent.mkdir()

    def verdict(**changes) -> Verdict:
        rows = [timed("Vanilla", "all tokens", 1000, **changes), timed("HoliTom", "printed", 440, **changes)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"tier": "speed", "part": "rows", "cut')
        of_all = {claim.id: claim for claim in all_claims([], "speed", runs=tmp_path)}[name]
        of_one = {claim.id: claim for claim in claims_of("fig-inference", [], "speed", runs=tmp_path)}[name]
        assert of_all == of_one
        return of_one.verdict

    assert verdict() is R
    assert verdict(device="CPU") is OPEN and verdict(layers=1) is OPEN


def test_over_a_number_is_not_rounded_to_it() -> None:
    claim = {one.id: one for one in all_claims([], "tiny")}["holitom/abstract/tokens"]
    assert claim.computed < claim.printed and claim.verdict is N


def test_defaults_read_from_source_are_those_of_the_classes() -> None:
    classes = [getattr(methods, name) for name in methods.__all__]
    classes = [one for one in classes if isinstance(one, type) and dataclasses.is_dataclass(one)]
    assert len(classes) > 10
    for one in classes:
        known = {f.name: f.default for f in dataclasses.fields(one) if f.default is not dataclasses.MISSING}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}
        assert method_defaults(one.__name__) == plain, one
    assert method_defaults("NoSuchMethod") == {}


def test_headlines_that_lead_nowhere_are_refused(monkeypatch) -> None:
    base = {"id": "x", "paper": "P", "place": "abstract", "statement": "s", "value": 1, "unit": "x", "read": "text"}
    for extra, words in (
        ({"same_as": "nothing"}, "no claim"),
        ({"derive": "nothing"}, "no function"),
        ({}, "neither same_as"),
    ):
        monkeypatch.setattr(headlines, "declared", lambda extra=extra: ({**base, **extra},))
        with pytest.raises(BadUsage, match=words):
            headlines.headline_claims({})


def test_a_headline_has_the_verdict_of_its_cell() -> None:
    judged = {claim.id: claim for claim in all_claims([], "tiny")}
    cell, headline = judged["table1/ov-7b/HoliTom/10/flops_pct"], judged["holitom/abstract/flops"]
    assert (headline.verdict, headline.printed) == (cell.verdict, cell.printed) and cell.id in headline.reason


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "runs", lambda *parts: tmp_path.joinpath(*parts))


def test_the_screen_counts_every_claim(empty, capsys) -> None:
    assert verdicts.show("tiny", as_json=False, strict=False) == 0
    out = capsys.readouterr().out
    assert f"{len(LEDGER)} claims, tiny tier" in out and "HoliTom" in out and "--tier speed" in out
    assert len(out.splitlines()) < 60


def test_one_claim_by_number_name_or_pattern(empty, capsys) -> None:
    verdicts.show("tiny", as_json=True, strict=False, only="C1,finding-newlines-on-top,trend-beats-*")
    found = json.loads(capsys.readouterr().out)
    assert found[0]["number"] == "C1" and found[1]["id"] == "finding-newlines-on-top" and len(found) > 4
    assert found[0]["evidence"] and {"minutes", "hardware", "command", "why", "read"} <= set(found[0])
    verdicts.show("tiny", as_json=False, strict=False, only="trend-inner-is-free")
    assert "./reproduce.sh table1 --tier tiny" in capsys.readouterr().out
    with pytest.raises(BadUsage, match="no claim 'C99999'"):
        verdicts.show("tiny", as_json=False, strict=False, only="C99999")


def test_strict_fails_for_a_checked_claim_that_does_not_hold_only(empty, monkeypatch, capsys) -> None:
    for verdict, code in ((N, 1), (OPEN, 0), (Verdict.QUOTED, 0), (W, 0)):
        monkeypatch.setattr(verdicts, "everything", lambda tier, verdict=verdict: [trend(verdict)])
        assert verdicts.show("tiny", as_json=True, strict=True) == code
        assert verdicts.show("tiny", as_json=True, strict=False) == 0


def test_claims_need_no_torch() -> None:
    code = "import sys; from holitom_repro.cli import main; main(['claims', '--json']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.rstrip().endswith("False"), done.stderr[-500:]


def test_codecheck_is_yaml_and_its_files_exist() -> None:
    text = (paths.root() / "codecheck.yml").read_text(encoding="utf-8")
    assert text.startswith("---\n")
    held = yaml.safe_load(text)
    assert held["paper"]["title"].startswith("HoliTom") and held["manifest"]
    assert all((paths.root() / one["file"]).is_file() and one["comment"] for one in held["manifest"])
