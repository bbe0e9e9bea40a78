"""Which process of a sweep computes which cell next.

Cells of one model, benchmark and number of frames share the features of its videos. So a process stays with such a
group until nothing is left of it, then begins the largest group that nobody has begun, and only joins another process
when that is quicker than leaving it alone, because every process has to see the videos for itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from holitom_repro.evaluation.cells import Cell
from holitom_repro.tiny import benchmarks

_QUESTIONS = benchmarks.VIDEOS * benchmarks.QUESTIONS_PER_VIDEO
_VIDEOS_COST = (
    7  # cells: what decoding and encoding the videos took in 900 cells of the tiny tier, measured in median cells
)

Group = tuple[str, int, str, str]


def asked(cell: Cell) -> int:
    """How many questions a cell of the tiny tier asks."""
    return min(cell.limit or _QUESTIONS, _QUESTIONS)


class Shares:
    """The cells that are left, by group. Processes are told apart by a number, cells by their place in ``cells``."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._left: dict[Group, deque[int]] = {}
        self._cost: dict[Group, int] = {}  # of one cell
        for place, cell in enumerate(cells):
            group = (cell.model, cell.frames, cell.benchmark, cell.pixels)
            self._left.setdefault(group, deque()).append(place)
            self._cost[group] = max(self._cost.get(group, 0), asked(cell) * cell.frames)
        self._at: dict[int, Group] = {}
        self._seen: set[Group] = set()  # groups in which a cell is finished: somebody has their videos

    def take(self, process: int) -> int | None:
        """The next cell of a process that has nothing to do or has finished its last one; None: it can leave."""
        before = self._at.pop(process, None)
        if before is not None:
            self._seen.add(before)
        group = before if before is not None and self._left[before] else self._choose()
        if group is None:
            return None
        self._at[process] = group
        return self._left[group].popleft()

    def _choose(self) -> Group | None:
        open_groups = [group for group, left in self._left.items() if left]
        taken = set(self._at.values())
        if free := [group for group in open_groups if group not in taken]:
            return max(free, key=lambda group: len(self._left[group]) * self._cost[group])
        worth = [group for group in open_groups if self._to_go(group) > self._cost[group] * (_VIDEOS_COST + 1)]
        return max(worth, key=self._to_go, default=None)

    def _to_go(self, group: Group) -> float:
        """How long the processes that are at a group still need for what is left of it, in the unit of the costs."""
        cells = len(self._left[group]) / sum(at == group for at in self._at.values())
        return self._cost[group] * (cells + (0 if group in self._seen else _VIDEOS_COST))


def useful(cells: Sequence[Cell], most: int) -> int:
    """How many of ``most`` processes would have something to do at once; 1 at least."""
    shares = Shares(cells)
    return max(1, sum(shares.take(process) is not None for process in range(min(most, len(cells)))))
