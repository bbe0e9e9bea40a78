"""The released HoliTom outer stage beside ours, on the same tensors: ``python scripts/released.py --released DIR``.

DIR is a checkout of github.com/cokeshao/HoliTom (e9b2972, Apache-2.0) that you fetched; nothing of it is in this
repository. Its outer stage is methods of one class in holitom/llava_arch.py, called here in the order of its own
``prepare_inputs_labels_for_multimodal``. Both run in turns in one process, on a drawn video. The release prints as it
goes, so standard output is closed to it.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from holitom.methods import HoliTom
from holitom.types import VideoFeatures
from holitom_repro.machine import provenance
from holitom_repro.timing.rows import spread
from holitom_repro.timing.shapes import CONTENT, drawn_video
from holitom_repro.timing.stages import between, clock_of

STUBS = {
    "llava": "",
    "llava.constants": "IGNORE_INDEX IMAGE_TOKEN_INDEX DEFAULT_IMAGE_PATCH_TOKEN DEFAULT_IM_START_TOKEN "
    "DEFAULT_IM_END_TOKEN",
    "llava.mm_utils": "get_anyres_image_grid_shape",
    "llava.utils": "rank0_print rank_print",
}
"""What its file imports, and the outer stage never uses."""


def released_class(folder: Path) -> Any:
    """An instance of the class with the released methods, and nothing else in it."""
    path = folder / "holitom" / "llava_arch.py"
    if not path.is_file():
        sys.exit(f"{folder} holds no holitom/llava_arch.py: git clone https://github.com/cokeshao/HoliTom there")
    stubs = {name: ModuleType(name) for name in STUBS}
    for name, members in STUBS.items():
        vars(stubs[name]).update(dict.fromkeys(members.split()))
    spec = importlib.util.spec_from_file_location("released_holitom", path)
    module = importlib.util.module_from_spec(spec)
    with patch.dict(sys.modules, stubs):
        spec.loader.exec_module(module)
    kind = next(one for one in vars(module).values() if hasattr(one, "select_static_windows"))
    return type("Released", (kind,), {"__abstractmethods__": frozenset(), "get_vision_tower": None})()


def released_outer(release: Any, video: VideoFeatures, budget: float, tau: float, beta: float, k: int) -> Tensor:
    """The rows [M, D] that its outer stage hands on, without newlines."""
    tokens, (frames, cells) = video.tokens, video.tokens.shape[:2]
    normed = normalize(tokens, p=2, dim=-1)
    similarity = cosine_similarity(normed[:-1], normed[1:], dim=-1)
    windows, removed = release.select_static_windows(similarity, frames, tau, 1024)
    ratio = min(budget / ((frames * cells - removed) / (frames * cells)), 1)
    static, dynamic, _, attention, static_at, dynamic_at = release.get_static_dynamic_features(
        tokens, video.saliency, windows, similarity, tau
    )
    parts = []
    for (first, last), *five in zip(windows, static, dynamic, attention, static_at, dynamic_at, strict=False):
        parts.append(release.holitom(*five, last - first + 1, ratio, 0, beta, k, tokens.dtype, "one_token"))
    return torch.cat(parts)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--released", type=Path, required=True, help="a checkout of github.com/cokeshao/HoliTom")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--budget", type=float, default=0.10, help="(0.1)")
    parser.add_argument("--repeats", type=int, default=20, help="(20)")
    parser.add_argument("--out", type=Path, help="add a JSON line with every sample to this file")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    release, ours = released_class(asked.released), HoliTom(tau=0.65 if asked.budget <= 0.10 else 0.80)
    video = drawn_video(32, (14, 14), 3584, device=asked.device, dtype=getattr(torch, asked.dtype))
    calls = {
        "released": lambda: released_outer(release, video, asked.budget, ours.tau, ours.beta, ours.k),
        "ours": lambda: ours(video, asked.budget).tokens,
    }
    (clock, now), taken = clock_of(asked.device), {name: [] for name in calls}
    with contextlib.redirect_stdout(io.StringIO()):
        rows = {name: call().float() for name, call in calls.items()}  # warms up as well
        for name, call in [*calls.items()] * asked.repeats:
            begin = now()
            call()
            taken[name].append(between(begin, now()))
    ms = {name: spread(samples, 1000) for name, samples in taken.items()}
    ratio = statistics.median(taken["released"]) / statistics.median(taken["ours"])
    theirs, mine = rows.values()
    near = (theirs - mine).norm(dim=-1) <= 1e-2 * theirs.norm(dim=-1) if theirs.shape == mine.shape else None
    for name, part in ms.items():
        print(f"{name:<9}{part['median']:9.2f} ms ({part['q1']:.2f} to {part['q3']:.2f}), {len(rows[name])} tokens")
    agree = "the counts differ" if near is None else f"{near.float().mean():.1%} of the rows agree"
    print(f"{ratio:.1f}x; {agree}; {asked.device}, {asked.dtype}, {clock}, 32 x 196 x 3584, {asked.budget:.0%}")
    if asked.out:
        words = ["git", "-c", "safe.directory=*", "-C", asked.released, "rev-parse", "HEAD"]
        commit = subprocess.run(words, capture_output=True, encoding="utf-8")
        record = {"kind": "released", "release": commit.stdout.strip(), "ratio": ratio, "ms": ms, "samples": taken}
        record |= {"budget": asked.budget, "dtype": asked.dtype, "clock": clock, "content": CONTENT, "rows": agree}
        on_cpu = {"device": "CPU", "provenance": provenance() | {"gpu": None, "gpus": 0, "cuda": None}}
        on_gpu = {"device": provenance()["gpu"], "provenance": provenance()}
        with asked.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record | (on_cpu if asked.device == "cpu" else on_gpu)) + "\n")


if __name__ == "__main__":
    main()
