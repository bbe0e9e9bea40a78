"""A world of moving shapes, its benchmarks, and models small enough to learn it on two CPU cores.

Importing it makes the four benchmarks known to ``evaluation``."""

from functools import partial
from pathlib import Path

from holitom_repro.evaluation.cells import Benchmark, register
from holitom_repro.tiny import benchmarks


def _prepare(name: str, limit: int | None, progress: bool) -> None:
    benchmarks.prepare(limit, [name], progress=progress)


def _remake(name: str, path: Path) -> None:
    path.unlink(missing_ok=True)
    benchmarks.video_path(name, path.name)


for _name in benchmarks.BENCHMARKS:
    register(
        Benchmark(
            name=_name,
            tier="tiny",
            questions=benchmarks.VIDEOS * benchmarks.QUESTIONS_PER_VIDEO,
            version=benchmarks.recipe_hash(),
            folder=str(Path(__file__).parent / "tasks"),
            prepare=partial(_prepare, _name),
            remake=partial(_remake, _name),
        )
    )
