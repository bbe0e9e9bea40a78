"""Speed and memory of the algorithms: ``python -m holitom_repro bench ops``. Ratios are what to read; seconds belong to one
machine. Nothing here is a test: no threshold fails."""

from holitom_repro.bench.against_loop import bench_loop, load_oracle, table
from holitom_repro.bench.command import run
from holitom_repro.bench.memory import peak_bytes
from holitom_repro.bench.methods import NAMES, bench_methods, methods_table
from holitom_repro.bench.videos import prompt_of, synthetic_video, with_every_field

__all__ = [
    "NAMES",
    "bench_loop",
    "bench_methods",
    "load_oracle",
    "methods_table",
    "peak_bytes",
    "prompt_of",
    "run",
    "synthetic_video",
    "table",
    "with_every_field",
]
