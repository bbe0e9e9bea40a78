"""Speed and memory of the algorithms: ``python -m holitom bench ops``. Ratios are what to read; seconds belong to one
machine. Nothing here is a test: no threshold fails."""

from holitom.bench.against_loop import bench_loop, load_oracle, table
from holitom.bench.command import run
from holitom.bench.memory import peak_bytes
from holitom.bench.methods import NAMES, bench_methods, methods_table
from holitom.bench.videos import prompt_of, synthetic_video, with_every_field

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
