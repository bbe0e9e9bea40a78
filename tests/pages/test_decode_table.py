"""The decode table: printed, derived and measured lines, and what has not been run."""

import math

import pytest

from holitom_repro import paper
from holitom_repro.figures.decoding import NOT_RUN, ROWS, WAYS, decode_table, explained, read_bytes
from holitom.flops import LLM_SHAPES

SHAPE = LLM_SHAPES["ov-7b"]
COUNTS = {"Vanilla": [6313] * 28, "HoliTom (w/o M)": [667] * 28, "HoliTom": [667] * 18 + [354] * 10}


def record(row, **steps):
    ways = {way: {"outcome": "measured", "reason": "", "ms_per_step": {"median": ms}} for way, ms in steps.items()}
    ways.setdefault("graph", {"outcome": "unsupported", "reason": "CUDA graphs need a CUDA device."})
    return {"part": "aims", "row": row, "decoding": ways}


def table(records):
    return decode_table(records, paper.table("fig_inference"), SHAPE, COUNTS).set_index("way")


def test_nothing_recorded_is_said():
    made = table([])
    assert made.loc["printed in the paper", "ratio"] == pytest.approx(38.8 / 29.5)
    assert all(made.loc[name, "state"] == NOT_RUN and math.isnan(made.loc[name, "Vanilla"]) for name in WAYS.values())
    derived = made.loc["bytes read alone (all tokens = 100)"]
    assert 1.02 < derived["ratio"] < 1.03 and derived["state"] == "derived"
    assert "explains 1.02x (from the bytes alone); the other 1.29x" in explained(made.reset_index())


def test_bytes_are_those_of_weights_and_cache():
    weights = read_bytes(SHAPE, [0] * 28)
    assert weights == pytest.approx(14.14e9, rel=0.01)
    assert read_bytes(SHAPE, COUNTS["Vanilla"]) - weights == 6313 * 28 * 2 * 2 * 4 * 128


def test_a_graph_separates_cache_from_launches():
    times = {"Vanilla": (25.0, 20.0, 3.6), "HoliTom (w/o M)": (24.0, 19.5, 3.4), "HoliTom": (24.0, 19.5, 3.3)}
    made = table([record(row, eager=e, static=s, graph=g) for row, (e, s, g) in times.items()])
    eager = made.loc[WAYS["eager"]]
    assert eager["saved"] == 1.0 and eager["of it cache"] == pytest.approx(0.3) and eager["ratio"] == 25 / 24
    assert "explains 1.09x (measured where launches cost nothing); the other 1.21x" in explained(made.reset_index())


def test_a_refused_way_names_its_reason():
    made = table([record(row, eager=2.0, static=1.5) for row in ROWS])
    assert made.loc[WAYS["graph"], "state"] == f"{NOT_RUN}: CUDA graphs need a CUDA device."
    assert made.loc[WAYS["static"], "state"] == "measured" and math.isnan(made.loc[WAYS["static"], "of it cache"])
