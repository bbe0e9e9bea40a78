"""The papers' numbers as frames: their keys, their sources, and what follows from them by calculation."""

import pytest

from holitom.errors import BadUsage
from holitom.methods.presets import preset_names
from holitom_repro import paths
from holitom_repro.evaluation.cells import key_of
from holitom_repro.papers import BENCHMARKS, MODELS, layer_tokens, printed, settings

READINGS = ("image", "image+text", "text", "axis", "deduced")
"""How a printed number was read; README.md beside the files says what each means."""


@pytest.mark.parametrize("name", sorted({path.stem for path in paths.data("papers").glob("*.csv")} - {"settings"}))
def test_every_row_has_its_source(name: str) -> None:
    frame = printed(name)
    assert len(frame) and set(frame["reading"]) <= set(READINGS)
    assert frame["paper"].ne("").all() and frame["place"].ne("").all()
    assert set(frame["model"]) <= {*MODELS, ""} or name == "other_reports"
    frame["paper"] = "changed"
    assert printed(name)["paper"].ne("changed").all(), "a frame is its reader's own"


@pytest.mark.parametrize("table", ["table1", "table2", "fig-inner"])
def test_printed_keys_are_those_of_the_presets(table: str) -> None:
    """Joins are by key: what can be run is found beside its print."""
    runs = {
        key_of("all tokens" if row in ("Vanilla", "all tokens") else row, budget)
        for _, row, budget, _ in preset_names(table)
    }
    runs = {key for key in runs if " (text)" not in key}  # HoliTom as its text reads is printed nowhere
    assert runs <= set(printed(table.replace("-", "_"))["key"]) | ({"all tokens"} if table == "fig-inner" else set())


def test_keys_by_name() -> None:
    frames = printed("fig_frames")
    assert set(frames.loc[frames["method"] == "VisionZip", "key"]) == {"VisionZip@0.15"}
    times = printed("fig_inference").set_index("method")["key"]
    assert times["HoliTom"] == "HoliTom@0.10" and times["PruneVid"] == "", "15 or 20 % is no budget"


def test_averages_are_means_of_the_printed_scores() -> None:
    for table in ("table1", "table2"):
        frame = printed(table).dropna(subset=[*BENCHMARKS, "avg"])
        assert ((frame[list(BENCHMARKS)].mean(axis=1) - frame["avg"]).abs() <= 0.1 + 1e-9).all()


def test_settings() -> None:
    assert settings().set_index(["table", "model", "key"]).loc[("table1", "ov-7b", "HoliTom@0.10")].n == 640
    assert len(layer_tokens("table1", "ov-7b", "HoliTom", 10)) == 28
    with pytest.raises(BadUsage, match="not known"):
        layer_tokens("table1", "ov-7b", "HoliTom", 11)
