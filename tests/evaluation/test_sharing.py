"""Which process gets which cell: all of them once, groups kept together, and nobody joins in vain."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from holitom_repro.evaluation.cells import Cell
from holitom_repro.evaluation.sharing import Shares, asked, useful
from holitom.types import Reduction

BENCHMARKS = ("tiny_ego", "tiny_long", "tiny_general")


def cells(*sizes: int, frames: int = 8, limit: int | None = None) -> list[Cell]:
    """A group of each size, on a benchmark of its own."""
    return [
        Cell("table1", f"{row}", "model", Reduction("Vanilla"), name, frames, limit)
        for name, size in zip(BENCHMARKS, sizes, strict=False)
        for row in range(size)
    ]


def test_the_largest_group_comes_first_and_stays_with_its_process() -> None:
    wanted = cells(2, 5, 3)
    shares = Shares(wanted)
    names = {process: [wanted[shares.take(process)].benchmark] for process in (0, 1)}
    for _ in range(2):
        for process, mine in names.items():
            mine.append(wanted[shares.take(process)].benchmark)
    assert names == {0: ["tiny_long"] * 3, 1: ["tiny_general"] * 3}
    assert wanted[shares.take(1)].benchmark == "tiny_ego"  # its group is used up, and this one is free


def test_nobody_joins_for_what_is_nearly_done() -> None:
    shares = Shares(cells(12))
    for _ in range(5):
        assert shares.take(0) is not None  # 7 cells are left, which is what the videos alone would cost another
    assert shares.take(1) is None
    shares = Shares(cells(12))
    for _ in range(2):
        assert shares.take(0) is not None  # 10 cells are left
    assert shares.take(1) is not None


def test_a_slow_group_is_begun_before_one_with_more_cells() -> None:
    wanted = [*cells(3), *(c for c in cells(0, 2, frames=64))]
    assert wanted[Shares(wanted).take(0)].frames == 64


def test_how_many_processes_are_useful() -> None:
    assert useful(cells(1), 8) == 1 and useful(cells(1, 1), 8) == 2
    assert useful(cells(2), 8) == 1  # the second would only see the videos again
    assert useful(cells(49), 4) == 4 and useful(cells(9, 9, 9), 16) > 6
    assert useful([], 4) == 1


def test_questions_of_a_cell() -> None:
    assert [asked(cell) for cell in (*cells(1), *cells(1, limit=7), *cells(1, limit=10**6))] == [300, 7, 300]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=3), st.lists(st.integers(0, 3), max_size=60))
def test_every_cell_is_given_out_once_whoever_asks(sizes: list[int], turns: list[int]) -> None:
    shares, given_out, left = Shares(cells(*sizes)), [], set(range(4))
    for process in (*turns, *([0, 1, 2, 3] * (sum(sizes) + 1))):
        if process in left:
            place = shares.take(process)
            if place is None:
                left.discard(process)  # as in a sweep: who leaves does not come back
            else:
                given_out.append(place)
    assert sorted(given_out) == list(range(sum(sizes))) and not left
