"""Which types torch's operations take on CUDA, from the tables that torch tests itself with (torch.testing._internal):
they are in every build, also in those without CUDA."""

from __future__ import annotations

import json
import subprocess
import sys
import unittest
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from unittest import mock

import torch

NAMES = {
    "_embedding_bag_forward_only": "embedding_bag",
    "_safe_softmax": "softmax",
    "_is_all_true": "all",
    "_unique2": "unique",
    "convolution": "conv2d",
    "upsample_bilinear2d": "interpolate",
}
"""Operations under another name than in the tables."""
MOVING = frozenset(
    {"_to_copy", "copy_", "zero_", "fill_", "index", "_local_scalar_dense", "_unsafe_view", "rand", "set_"}
)
"""Copies, conversions and factories: for every type."""
ALSO = {"cumsum": frozenset({torch.bool})}
"""Left out of the tables, where a sum has the type of its terms: booleans are converted to integers before the kernel
(impl_func_cum_ops in ATen/native/ReduceOps.cpp)."""


@cache
def tables() -> dict[str, frozenset[torch.dtype]]:
    """Operation, as the dispatcher calls it -> the types that CUDA has kernels for, on a device of 2020 or newer. Read
    in a process of its own, because torch's test modules change settings of the whole process."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: frozenset(getattr(torch, kind) for kind in kinds) for name, kinds in found.items()}


def unsupported(operations: Mapping[tuple[str, tuple[torch.dtype, ...]], str]) -> list[str]:
    """(operation, types of its tensors) -> who asked: those without a kernel on CUDA, in words. The first tensor's type
    decides: the others are places, or of the same type, or converted."""
    found = []
    for (name, types), place in operations.items():
        key = NAMES.get(name, name).strip("_")
        if name in MOVING or not types:
            continue
        known = tables().get(key)
        if known is None:
            found.append(f"{name}: in no table; asked for by {place}")
        elif types[0] not in known | ALSO.get(key, frozenset()):
            found.append(f"{name} of {types[0]}: no kernel on CUDA; asked for by {place}")
        elif key in ("mm", "bmm", "addmm", "baddbmm") and len(set(types)) > 1:
            found.append(f"{name} of {', '.join(map(str, types))}; asked for by {place}")
    return found


def read_tables() -> dict[str, list[str]]:
    stub = ModuleType("expecttest")  # what torch's own tests need, which are not run here
    stub.TestCase = unittest.TestCase
    sys.modules.setdefault("expecttest", stub)
    import torch.testing._internal.common_cuda as cuda

    newer = [name for name in vars(cuda) if name in ("SM53OrLater", "SM60OrLater", "SM70OrLater", "SM80OrLater")]
    with mock.patch.multiple(cuda, **dict.fromkeys(newer, True)):
        from torch.testing._internal.common_methods_invocations import op_db
    found: dict[str, set[str]] = {}
    for op in op_db:
        for name in {op.name, op.aten_name, *(alias.name for alias in op.aliases)}:
            key = name.rpartition(".")[2] if name.startswith(("nn.", "special.")) else name.replace(".", "_")
            found.setdefault(key, set()).update(str(kind).removeprefix("torch.") for kind in op.dtypesIfCUDA)
    return {name: sorted(kinds) for name, kinds in found.items()}


if __name__ == "__main__":
    print(json.dumps(read_tables()))
