"""How many operations one video sends to the device, stage by stage: counted on the CPU stand-in, not timed.

At these sizes what a reduction adds is bound by launches, so their number is a prediction of its time before a GPU is
at hand: ``python -m holitom_repro.latency.launches`` prints it for the depth of LLaVA-OneVision-7B (narrow, and a short video
of small frames, so that a CPU does it in seconds: the number depends on depth and path, hardly on width or length).
Views and allocations launch nothing and are left out; an operation counts once, also where CUDA takes several kernels
for it (MANY)."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from holitom.attach import reduce_tokens
from holitom_repro.latency.content import recorded_similarity
from holitom_repro.latency.crossings import caller
from holitom_repro.latency.inputs import make_inputs
from holitom_repro.latency.marks import MarkedOuter, marked_stages
from holitom_repro.latency.passes import STAGES, Inputs
from holitom_repro.latency.pretending import OnDevice, pretended_device, put
from holitom_repro.latency.settings import setting
from holitom_repro.latency.shapes import SHAPES, Loaded, build
from holitom_repro.latency.subjects import pretending
from holitom_repro.latency.timeline import Timeline
from holitom.models import adapter_for
from holitom.types import Reduction

MANY = ("aten::sort", "aten::topk", "aten::cumsum", "aten::argsort")
"""Several kernels each on CUDA, as many as their size asks for."""
FRAMES = 12
_NOTHING = ("aten::empty", "aten::new_empty", "aten::detach", "aten::lift_fresh", "aten::_unsafe_view", "aten::alias")
_HERE = str(Path(__file__).resolve().parent)


@dataclass
class Launches:
    """operations: in order, (name, the function of this kit that asked for it, or "" for the model's own code)."""

    operations: list[tuple[str, str]] = field(default_factory=list)

    def mark(self) -> int:
        return len(self.operations)

    def settle(self) -> None:
        pass

    def between(self, first: int, second: int) -> float:
        return float(second - first)


class _Counting(TorchDispatchMode):
    def __init__(self, launches: Launches) -> None:
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        touched = any(isinstance(t, OnDevice) for t in tree_leaves((args, kwargs, result)))
        if touched and not views and not name.startswith(_NOTHING):
            self.launches.operations.append((name, caller(_HERE, "")))
        return result


def count_launches(loaded: Loaded, reduction: Reduction, inputs: Inputs) -> dict[str, list[tuple[str, str]]]:
    """The operations of one prefill of one video by stage. inputs: its features, if any, are used as they are."""
    launches = Launches()
    timeline = Timeline(launches)
    adapter = adapter_for(loaded.model)
    marked_reduction = reduction
    if reduction.outer is not None:
        marked_reduction = Reduction(
            reduction.name, MarkedOuter(reduction.outer, timeline), reduction.budget, reduction.inner
        )
    with pretended_device(loaded.model) as seen, _Counting(launches):
        ids, pixels = put(inputs.ids[:1], seen), put(inputs.pixels[:1], seen)
        given = [pretending(inputs.features[0], seen)] if inputs.features else None
        with (
            marked_stages(adapter, timeline, reduction) as marks,
            reduce_tokens(loaded.model, reduction=marked_reduction) as run,
        ):
            marks.after_the_kit()
            timeline.enter("vision_tower")
            features = run.encode(pixels)
            timeline.enter("splice")
            run.provide(given or features)
            output = loaded.model(input_ids=ids, use_cache=True, logits_to_keep=1)
            output.logits[:, -1:].argmax(-1)
            timeline.close()
    found: dict[str, list[tuple[str, str]]] = {stage: [] for stage in STAGES}
    for stage, begin, end in timeline.spans():
        found[stage] += launches.operations[begin:end]
    return found


def narrow(name: str = "ov-7b", width: int = 8, side: int = 112) -> Loaded:
    """A random model as deep as a named shape, with its heads, ``width`` numbers per head and frames of ``side``."""
    shape = SHAPES[name]
    config = shape.config()
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.head_dim = width * text.num_attention_heads, 64, width
    vision.image_size = side
    vision.hidden_size, vision.intermediate_size = 2 * vision.num_attention_heads, 32
    model = build(config, device=torch.device("cpu"), dtype=torch.bfloat16)
    return Loaded(model, name, shape.preset, shape.frames, shape.layers, shape.layers, "random", "speed", True)


def table(rows: dict[str, dict[str, list[tuple[str, str]]]], top: int = 12) -> str:
    """Operations per stage of every row, and the functions that ask for most in the last one."""
    lines = [f"{'':<17}" + "".join(f"{stage:>14}" for stage in STAGES)]
    for row, found in rows.items():
        lines.append(f"{row:<17}" + "".join(f"{len(found[stage]):>14}" for stage in STAGES))
    last = list(rows.values())[-1]
    for stage in ("saliency", "outer", "splice", "inner"):
        places = Counter(place or "the model's own code" for _, place in last[stage])
        many = sum(name in MANY for name, _ in last[stage])
        lines += ["", f"{stage}: {len(last[stage])}, {many} of them sorts, top-k or running sums"]
        lines += [f"{count:>5}  {place}" for place, count in places.most_common(top)]
    return "\n".join(lines)


def main() -> int:
    loaded = narrow()
    inputs = make_inputs(loaded, FRAMES, 1, recorded_similarity())
    rows = {"all tokens": Reduction("Vanilla")}
    rows |= {row: setting(row, 0.10, "ov-7b", loaded.layers) for row in ("HoliTom (w/o M)", "HoliTom")}
    counted = {row: count_launches(loaded, reduction, inputs) for row, reduction in rows.items()}
    sys.stdout.write(table(counted) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
