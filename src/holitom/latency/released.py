"""``python -m holitom bench released --released PATH``: the released HoliTom code beside this kit's, in one process.

PATH is a checkout of github.com/cokeshao/HoliTom (Apache-2.0) that the user fetched; nothing of it is part of this kit
or imported anywhere else. Its outer stage is four methods of one class, called in the order of its own
``prepare_inputs_labels_for_multimodal``; its inner stage is a block of its decoder loop, which is taken out of the
source file and run on given states, because the file itself needs transformers 4.51.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from holitom.errors import CannotRun
from holitom.latency.content import drawn_video, recorded_similarity
from holitom.latency.machine_state import machine_state
from holitom.latency.records import spread
from holitom.latency.timeline import Clock, clock_for
from holitom.methods import HoliTom, HoliTomMerge
from holitom.types import VideoFeatures

ARCH, DECODER = ("holitom", "llava_arch.py"), ("holitom", "modeling_qwen2.py")
_STUBS = {
    "llava": (),
    "llava.constants": (
        "IGNORE_INDEX",
        "IMAGE_TOKEN_INDEX",
        "DEFAULT_IMAGE_PATCH_TOKEN",
        "DEFAULT_IM_START_TOKEN",
        "DEFAULT_IM_END_TOKEN",
    ),
    "llava.mm_utils": ("get_anyres_image_grid_shape",),
    "llava.utils": ("rank0_print", "rank_print"),
}
"""What the file imports and the outer stage never uses."""
Inner = Callable[[Tensor, Tensor, int, int, float], Tensor]


class Released:
    """The released code of one checkout. CannotRun where the files are missing or have another form."""

    def __init__(self, folder: Path) -> None:
        for parts in (ARCH, DECODER):
            if not folder.joinpath(*parts).is_file():
                raise CannotRun(
                    f"{folder} holds no {'/'.join(parts)}", fix="git clone https://github.com/cokeshao/HoliTom there"
                )
        self._outer = _outer_class(folder.joinpath(*ARCH))
        self.inner = _inner_block(folder.joinpath(*DECODER))

    def outer(self, video: VideoFeatures, budget: float, tau: float, beta: float = 0.6, k: int = 7) -> Tensor:
        """Its outer stage on pooled features: the rows [M, D] that it hands on, without newlines."""
        tokens, saliency = video.tokens, video.saliency
        frames, cells, _ = tokens.shape
        normed = torch.nn.functional.normalize(tokens, p=2, dim=-1)
        similarity = torch.nn.functional.cosine_similarity(normed[:-1], normed[1:], dim=-1)
        windows, removed = self._outer.select_static_windows(similarity, frames, tau, 1024)
        ratio = min(budget / ((frames * cells - removed) / (frames * cells)), 1)
        static, dynamic, _, attention, static_at, dynamic_at = self._outer.get_static_dynamic_features(
            tokens, saliency, windows, similarity, tau
        )
        parts = [
            self._outer.holitom(
                static[i],
                dynamic[i],
                attention[i],
                static_at[i],
                dynamic_at[i],
                last - first + 1,
                ratio,
                0,
                beta,
                k,
                tokens.dtype,
                "one_token",
            )
            for i, (first, last) in enumerate(windows)
        ]
        return torch.cat(parts)


def compare(
    released: Released,
    *,
    frames: int,
    dim: int,
    budget: float,
    dtype: torch.dtype,
    device: torch.device,
    repeats: int,
    clock: Clock | None = None,
) -> list[dict[str, Any]]:
    """Two rows, outer and inner: seconds of theirs and ours (medians, quartiles), their ratio, and whether the results
    agree. Both see the same tensors, in turns."""
    clock = clock or clock_for(device)
    tau = 0.65 if budget <= 0.10 else 0.80
    similarity = recorded_similarity()
    video = drawn_video(similarity, frames, (14, 14), dim, dtype=dtype, device=device, requires=("saliency",))
    ours = HoliTom(tau=tau)
    theirs_rows, our_rows = released.outer(video, budget, tau), ours(video, budget).tokens
    outer = {
        "stage": "outer",
        "what": f"{frames} x 196 x {dim}, budget {budget:g}, tau {tau:g}; {similarity.how}",
        "tokens": {"released": len(theirs_rows), "ours": len(our_rows)},
        "equal_rows": _equal_share(theirs_rows, our_rows),
        **_in_turns(lambda: released.outer(video, budget, tau), lambda: ours(video, budget), repeats, clock),
    }
    visual, before, after, heads = len(our_rows), 14, 26, 28
    length = before + visual + after
    draw = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(1, length, dim, generator=draw, device=device).to(dtype)
    attention = torch.randn(1, heads, length, length, generator=draw, device=device).softmax(-1).to(dtype)
    merge, ids = HoliTomMerge(layer=18, ratio=0.5), torch.arange(before, before + visual, device=device)

    def our_inner() -> Tensor:
        return merge(hidden[0], attention[0, :, -1].float().mean(0), ids, visual)[1]

    inner = {
        "stage": "inner",
        "what": f"{visual} visual of {length} tokens x {dim}, r 0.5, attention given ({heads} heads)",
        "tokens": {},
        **_in_turns(lambda: released.inner(hidden.clone(), attention, before, visual, 0.5), our_inner, repeats, clock),
    }
    theirs, mine = released.inner(hidden.clone(), attention, before, visual, 0.5)[0], our_inner()
    inner["tokens"] = {"released": len(theirs), "ours": len(mine)}
    inner["equal_rows"] = _equal_share(theirs, mine)
    return [outer, inner]


def _in_turns(theirs: Callable[[], Any], ours: Callable[[], Any], repeats: int, clock: Clock) -> dict[str, Any]:
    taken: dict[str, list[float]] = {"released": [], "ours": []}
    for repeat in range(repeats + 1):
        for name, call in (("released", theirs), ("ours", ours)):
            clock.settle()
            begin = clock.mark()
            call()
            end = clock.mark()
            clock.settle()
            if repeat:  # the first round warms up
                taken[name].append(clock.between(begin, end))
    both = {name: spread(samples, 1000) for name, samples in taken.items()}
    ratio = both["released"]["median"] / both["ours"]["median"]
    return {"ms": both, "ratio": ratio, "samples": taken}


def _equal_share(first: Tensor, second: Tensor) -> float | None:
    """Share of rows that agree to 1e-3 of their size, None when the numbers of rows differ."""
    if first.shape != second.shape:
        return None
    off = (first.float() - second.float()).norm(dim=-1) / first.float().norm(dim=-1).clamp_min(1e-6)
    return float((off < 1e-3).float().mean())


def _outer_class(path: Path) -> Any:
    """An instance of the released class, with nothing in it but its methods."""
    spec = importlib.util.spec_from_file_location("released_holitom_arch", path)
    module = importlib.util.module_from_spec(spec)
    with _stubs():
        spec.loader.exec_module(module)
    found = [c for c in vars(module).values() if isinstance(c, type) and hasattr(c, "select_static_windows")]
    if not found:
        raise CannotRun(f"{path} has no class with select_static_windows", fix="use the release of e9b2972")
    return type("Standalone", (found[0],), {"__abstractmethods__": frozenset(), "get_vision_tower": None})()


@contextlib.contextmanager
def _stubs() -> Iterator[None]:
    """Empty stand-ins for the modules that the file imports; what was there before comes back."""
    before = {name: sys.modules.get(name) for name in _STUBS}
    for name, members in _STUBS.items():
        module = ModuleType(name)
        vars(module).update(dict.fromkeys(members))
        sys.modules[name] = module
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


def _inner_block(path: Path) -> Inner:
    """Its merging at layer K as a function: hidden [1, S, D], attention [1, H, S, S], first visual id, number of visual
    ids, r -> [1, S', D]. The block changes ``hidden`` in place, as in the release."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    block = next(
        (
            node.body
            for node in ast.walk(tree)
            if isinstance(node, ast.If)
            and "layer_idx == HOLITOM_k" in ast.unparse(node.test)
            and "non_topk_states" in ast.unparse(node)
        ),
        None,
    )
    if block is None:
        raise CannotRun(f"{path} has no merging block at layer HOLITOM_k", fix="use the release of e9b2972")
    names = ("self", "layer_outputs", "hidden_states", "position_ids", "cache_position", "seq_length_with_past")
    names += ("HOLITOM_r", "HOLITOM_image_token_start_index", "HOLITOM_image_token_length")
    function = ast.parse(f"def merged({', '.join(names)}):\n    return hidden_states")
    function.body[0].body = [*block, *function.body[0].body]
    space: dict[str, Any] = {"torch": torch, "print": lambda *_: None}
    exec(compile(ast.fix_missing_locations(function), str(path), "exec"), space)  # the user's own checkout

    def inner(hidden: Tensor, attention: Tensor, first: int, visual: int, ratio: float) -> Tensor:
        length = hidden.shape[1]
        places = torch.arange(length, device=hidden.device)
        owner = SimpleNamespace(rotary_emb=lambda *_: None)
        return space["merged"](owner, (None, attention), hidden, places[None], places, length, ratio, first, visual)

    return inner


def run(argv: Sequence[str] = ()) -> int:
    """The command line of ``bench released``."""
    made = argparse.ArgumentParser(
        prog="./reproduce.sh bench released",
        description="The released code's outer and inner stage beside ours, on the same drawn video.",
    )
    made.add_argument("--released", type=Path, required=True, help="a checkout of github.com/cokeshao/HoliTom")
    made.add_argument("--frames", type=int, default=32, help="(32)")
    made.add_argument("--dim", type=int, default=3584, help="token size (3584, a 7B model)")
    made.add_argument("--budget", type=float, default=0.10, help="(0.1)")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    made.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="(float32)")
    made.add_argument("--repeats", type=int, default=20, help="(20)")
    made.add_argument("--out", type=Path, metavar="FILE", help="append the rows to this JSON lines file")
    args = made.parse_args(list(argv))
    from holitom.provenance import provenance

    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CannotRun("no CUDA device here", fix="give --device cpu")
    released = Released(args.released)
    common = {
        "kind": "released",
        "created": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "dtype": args.dtype,
        "release": _commit(args.released),
        "state": machine_state(device.type),
        "provenance": provenance(),
    }
    with torch.inference_mode(), contextlib.redirect_stdout(io.StringIO()):  # the release prints as it goes
        rows = compare(
            released,
            frames=args.frames,
            dim=args.dim,
            budget=args.budget,
            dtype=getattr(torch, args.dtype),
            device=device,
            repeats=args.repeats,
        )
    print(f"{common['device']}, {args.dtype}, {torch.get_num_threads()} threads, release {common['release'] or '?'}")
    for row in rows:
        ms = row["ms"]
        agree = "counts differ" if row["equal_rows"] is None else f"{row['equal_rows']:.1%} of the rows agree"
        print(
            f"{row['stage']:<6} released {ms['released']['median']:9.2f} ms, ours {ms['ours']['median']:8.2f} ms: "
            f"{row['ratio']:.1f}x; {row['tokens']['released']} and {row['tokens']['ours']} tokens, {agree}\n"
            f"       {row['what']}"
        )
    if args.out:
        from holitom.results import write_atomic

        before = args.out.read_text(encoding="utf-8") if args.out.is_file() else ""
        write_atomic(args.out, before + "".join(json.dumps(common | row) + "\n" for row in rows))
    return 0


def _commit(folder: Path) -> str:
    """The commit of a git checkout, "" where it is none."""
    import subprocess

    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()[:12] if done.returncode == 0 else ""
