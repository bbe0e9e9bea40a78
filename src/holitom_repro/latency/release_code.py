"""The released HoliTom code, taken from a checkout that the user fetched: its outer and its inner stage, callable.

Nothing of it is part of this kit. The outer stage is four methods of one class, called in the order of its own
``prepare_inputs_labels_for_multimodal``; the inner stage is a block of its decoder loop, taken out of the source file
and run on given states, because the file itself needs transformers 4.51.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from holitom.errors import CannotRun
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
