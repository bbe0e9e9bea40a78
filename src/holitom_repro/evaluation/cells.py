"""One cell of a sweep: a setting on a benchmark, and the hash that names its result.

The hash covers everything that can change the result, so a finished cell is never computed twice and a changed one is
never taken for it. The setting's key (its name and budget in words) is no part of it: experiments share cells."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from holitom.errors import BadUsage, CannotRun
from holitom.methods.presets import LAYERS
from holitom.types import Reduction
from holitom_repro import paths
from holitom_repro.code import MEASURING, code_hash
from holitom_repro.evaluation.protocols import Protocol, protocol_for
from holitom_repro.machine import version

ALL = "all tokens"
HUB = {
    "ov-7b": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "ov-72b": "llava-hf/llava-onevision-qwen2-72b-ov-hf",
    "video-7b": "lmms-lab/LLaVA-Video-7B-Qwen2",  # published in LLaVA-NeXT's format only: convert it, give the folder
}
CHECKPOINTS = "checkpoints"  # in the checkout: checkpoints/video-7b is taken before the hub's
UNJUDGED = {"egoschema": "egoschema_subset"}
"""Tasks whose answers are not public -> the task with those that are."""
_WEIGHTS = ("*.safetensors", "*.json", "*.txt", "*.jinja")


@dataclass(frozen=True)
class Benchmark:
    """A task (or group) of lmms-eval by its name there. tier: where it belongs; questions: how many, for progress alone
    (0: not known), asked in each of ``parts`` tasks; version: another whenever a question or a video is; folder: of its
    task files; prepare(questions, progress): writes what is missing for the first so many (None: it is downloaded)."""

    name: str
    tier: str
    questions: int
    version: str
    parts: int = 1
    folder: str = ""
    prepare: Callable[[int | None, bool], object] | None = None


BENCHMARKS: dict[str, Benchmark] = {}
"""By name. Others are lmms-eval's own tasks, of which nothing else is known."""


def register(benchmark: Benchmark) -> None:
    """Make a benchmark known to every sweep of this process and of those that it starts."""
    BENCHMARKS[benchmark.name] = benchmark


_LMMS_EVAL = f"lmms-eval {version('lmms-eval')}"
_FOUND = find_spec("lmms_eval")
_TASKS = Path(_FOUND.origin).parent / "tasks" if _FOUND and _FOUND.origin else Path()
for _name, _questions, _parts, _folder in (
    ("mvbench", 200, 20, "mvbench"),
    ("egoschema_subset", 500, 1, "egoschema"),
    ("longvideobench_val_v", 1337, 1, "longvideobench"),
    ("videomme", 2700, 1, "videomme"),
):
    register(Benchmark(_name, "paper", _questions, _LMMS_EVAL, _parts, str(_TASKS / _folder)))


@dataclass(frozen=True)
class Cell:
    """One setting on one benchmark. key: ``key_of(name, budget)``; model: a folder, a name below data/tiny, one of HUB,
    or a hub id; limit: only the first so many questions of each task."""

    key: str
    reduction: Reduction
    model: str
    benchmark: str
    frames: int
    limit: int | None = None
    tier: str = "tiny"

    @property
    def kind(self) -> Benchmark:
        return BENCHMARKS.get(self.benchmark) or Benchmark(self.benchmark, "paper", 0, _LMMS_EVAL, folder=str(_TASKS))

    @property
    def asked(self) -> int:
        """How many questions it asks; 0: not known."""
        return self.kind.parts * min(self.limit or self.kind.questions, self.kind.questions)

    @cached_property
    def protocol(self) -> Protocol:
        return protocol_for(self.tier, self.model, _config(model_path(self.model)).get("mm_newline_position"))

    def check(self) -> None:
        """Raises BadUsage for a cell that cannot exist, and CannotRun for a model folder that is not there."""
        for what, number in (("frames", self.frames), ("limit", self.limit)):
            if number is not None and (not isinstance(number, int) or number < 1):
                raise BadUsage(f"{what}={number!r}", fix="give a whole number, 1 or more")
        if self.benchmark in UNJUDGED:
            fix = f"use {UNJUDGED[self.benchmark]}"
            raise BadUsage(f"the answers of {self.benchmark} are not public, its server judges them", fix=fix)
        if self.kind.tier != self.tier:
            fix = f"choose from {', '.join(f'{name} ({one.tier})' for name, one in BENCHMARKS.items())}"
            raise BadUsage(f"{self.benchmark} is no benchmark of the {self.tier} tier", fix=fix)
        looks_local = self.tier == "tiny" or Path(self.model).is_absolute() or self.model.startswith((".", "data/"))
        if looks_local and not Path(model_path(self.model)).is_dir():
            fix = "give a model folder, or the name of one below data/tiny (./reproduce.sh train-tiny makes them)"
            raise CannotRun(f"there is no model {self.model!r}", fix=fix)

    @cached_property
    def id(self) -> str:
        """Sixteen hex digits that name the result."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:16]

    def identity(self) -> dict[str, Any]:
        """Everything that can change the result, as JSON."""
        setting, limit, kind = self.reduction, self.limit, self.kind
        if kind.questions and limit is not None and limit >= kind.questions:
            limit = None
        return {
            "reduction": {name: value for name, value in setting.describe().items() if name != "name"},
            "model": [revision(self.model)],
            "benchmark": [self.benchmark, kind.version],
            "frames": self.frames,
            "limit": limit,
            "tier": self.tier,
            "protocol": str(self.protocol),
            "dtype": self.dtype,
            "device": device_kind(self.tier),
            "attention": "sdpa",
            "packages": {name: version(name) for name in ("torch", "transformers", "av")},
            "code": self.code,
        }

    @property
    def dtype(self) -> str:
        """The protocol's; CPUs are slow at 16 bits."""
        return "float32" if device_kind(self.tier) == "cpu" else self.protocol.dtype

    @cached_property
    def code(self) -> str:
        setting = self.reduction
        return code_hash((setting.outer, *setting.inner, setting.decode, setting.tower), MEASURING)


def key_of(name: str, budget: float) -> str:
    """ "HoliTom@0.10"; the unreduced model is ALL, with no budget behind it. That is the printed share; the
    reduction's own may lie a little above it, in whole tokens per frame (PruneVid@0.15 keeps 30 of 196)."""
    digits = ".2f" if round(budget, 2) == budget else "g"  # 0.125 is not 0.12
    return ALL if name == ALL else f"{name}@{budget:{digits}}"


def device_kind(tier: str) -> str:
    """Where a tier's models run: the tiny ones on the CPU everywhere, others on the GPU, by its name, where there is
    one."""
    import torch

    return torch.cuda.get_device_name() if tier != "tiny" and torch.cuda.is_available() else "cpu"


def model_path(model: str) -> str:
    """The folder that ``model`` names (as given, in the checkout, below checkpoints/ or data/tiny), else a hub id."""
    places = [Path(model), paths.root() / model, paths.root() / CHECKPOINTS / model, paths.data("tiny", model)]
    found = next((place for place in places if (place / "config.json").is_file()), None)
    return str(found.resolve()) if found else HUB.get(model, model)


def model_name(model: str) -> str:
    """A model as tables name it: a folder of this checkout by its own name, others as they were given."""
    folder = Path(model_path(model))
    ours = (paths.data("tiny"), paths.root() / CHECKPOINTS)
    return folder.name if folder.parent in ours else str(model)


def layers_of(model: str) -> int:
    """Layers of a model's decoder, from its config. CannotRun where there is none."""
    config = _config(model_path(model))
    if "text_config" not in config and model not in LAYERS:
        raise CannotRun(f"there is no model {model!r} here", fix=f"give a model folder, or one of {', '.join(LAYERS)}")
    return config["text_config"]["num_hidden_layers"] if "text_config" in config else LAYERS[model]


def _config(path: str) -> dict[str, Any]:
    file = Path(path) / "config.json" if Path(path).is_dir() else _fetched(path)
    return json.loads(file.read_text(encoding="utf-8")) if file else {}


def _fetched(repository: str) -> Path | None:
    """The config of a hub's model where it has been fetched, in the folder of its snapshot."""
    from huggingface_hub import try_to_load_from_cache

    home = os.environ.get("HF_HOME") or str(paths.runs("cache", "huggingface"))
    found = try_to_load_from_cache(repository, "config.json", cache_dir=f"{home}/hub")
    return Path(found) if isinstance(found, str) else None


def revision(model: str) -> str:
    """What identifies the weights: a hash over a folder's files, or a hub id and its commit, as it was fetched or else
    as the hub would give it now ("main": nobody can be asked)."""
    place = model_path(model)
    if Path(place).is_dir():
        files = sorted({path for pattern in _WEIGHTS for path in Path(place).glob(pattern)})
        return _hash_of(tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in files))
    if fetched := _fetched(place):
        return f"{place}@{fetched.parent.name}"
    info = hub_info(place)
    return f"{place}@{info.sha if info else 'main'}"


@cache
def hub_info(repository: str, kind: str = "model", revision: str | None = None) -> Any:
    """What the hub says of a repository and its files; None where it cannot be asked, or will not say."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        return HfApi().repo_info(repository, repo_type=kind, revision=revision, files_metadata=True, timeout=10)
    except (HTTPError, OSError):  # no network, HF_HUB_OFFLINE, a gated repository
        return None


@cache
def _hash_of(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in files:
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while block := file.read(2**24):  # checkpoints are larger than memory
                digest.update(block)
    return digest.hexdigest()[:16]
