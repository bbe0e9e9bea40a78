"""How often one video makes the host wait for the device: counted, not timed.

On CUDA, torch's own sync debug mode counts what really waited. On a CPU there is nothing to wait for, so a stand-in is
used: tensors that claim to live on another device (they compute on the CPU) run through the same code, and every
crossing between that device and the host is counted with the line of this kit that caused it. The stand-in sees copies
in both directions, single values that are read, and results whose size depends on data; it does not see explicit calls
of torch.cuda.synchronize, which the kit has none of outside of reading its statistics. As strict as CUDA: an operation
on tensors of both sides is refused, unless the CPU's are single values of a pointwise operation, or indices.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, no_type_check

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

PRETEND = torch.device("meta")  # the one device type besides the CPU that every build of torch lets a tensor claim
TO_HOST, TO_DEVICE, VALUE, SIZE = "copy to the host", "blocking copy to the device", "value read", "size from data"
HOW_PRETEND = "CPU stand-in: crossings between a pretended device and the host"
HOW_CUDA = "torch.cuda.set_sync_debug_mode: calls that made the host wait"
_SIZED = {"aten::nonzero", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::masked_select"}
_PACKAGE, _HERE = str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)
_MIXING = {"aten::copy_", "aten::_to_copy", "aten::fill_", "aten::where", "aten::set_"}
"""Operations that take single values from the CPU without being tagged as pointwise, or that copy."""
_INDEXING = {"aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_", "aten::_unsafe_index"}
_CARRIERS = (_HERE, str(Path(_PACKAGE, "ops", "transfer.py")))  # they carry out what others ask for


class Crossings:
    """kinds: how often each kind of crossing happened; places: the same by the line of this kit that asked for it;
    device: the one that is pretended."""

    def __init__(self, device: torch.device = PRETEND) -> None:
        self.device = device
        self.kinds: Counter[str] = Counter()
        self.places: Counter[str] = Counter()

    def add(self, kind: str) -> None:
        self.kinds[kind] += 1
        self.places[f"{caller()}: {kind}"] += 1

    @property
    def total(self) -> int:
        return sum(self.kinds.values())

    def describe(self, how: str) -> dict[str, Any]:
        return {"count": self.total, "kinds": dict(self.kinds), "places": dict(self.places.most_common()), "how": how}


class OnDevice(Tensor):
    """A CPU tensor that claims to live on the pretended device."""

    held: Tensor
    seen: Crossings

    @staticmethod
    def __new__(cls, held: Tensor, seen: Crossings) -> OnDevice:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=seen.device,
        )

    def __init__(self, held: Tensor, seen: Crossings) -> None:
        self.held, self.seen = held, seen

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        first = next(t for t in leaves((args, kwargs or {})) if isinstance(t, OnDevice))
        return _run(func, args, kwargs or {}, first.seen)


@contextmanager
def pretended_device(model: nn.Module, seen: Crossings | None = None) -> Iterator[Crossings]:
    """While the block lasts the model's weights pretend to live on another device, and crossings are counted. Give
    inputs as ``put(tensor, crossings)``. Gradients are off; the weights are put back at the end."""
    seen = seen or Crossings()
    undo: list[Callable[[], None]] = []
    shared: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                made = shared.setdefault(id(parameter), nn.Parameter(put(parameter.data, seen), requires_grad=False))
                module._parameters[name] = made
                undo.append(lambda m=module, n=name, p=parameter: m._parameters.__setitem__(n, p))
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = put(buffer, seen)
                undo.append(lambda m=module, n=name, b=buffer: m._buffers.__setitem__(n, b))
    try:
        with torch.no_grad(), crossings_of(seen):
            yield seen
    finally:
        for back in undo:
            back()


@contextmanager
def crossings_of(seen: Crossings) -> Iterator[None]:
    """Inside the block, what is made for the pretended device lives there, and crossings are counted."""
    with _Dispatch(seen), _Factories(seen):
        yield


def put(tensor: Tensor, seen: Crossings) -> OnDevice:
    """The tensor on the pretended device; not counted."""
    return OnDevice(tensor, seen)


@contextmanager
def cuda_waits() -> Iterator[Crossings]:
    """Counts, on CUDA, every call in the block that made the host wait for the device."""
    seen = Crossings()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    shown = warnings.showwarning

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            seen.add("wait")

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            yield seen
    finally:
        warnings.showwarning = shown
        torch.cuda.set_sync_debug_mode(before)


class _Dispatch(TorchDispatchMode):
    """Catches what has no pretending tensor among its inputs yet: copies to the device, and new tensors there."""

    def __init__(self, seen: Crossings) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(func, args, kwargs or {}, self.seen)


class _Factories(TorchFunctionMode):
    """What reaches no dispatcher: torch.tensor(values, device=...), made on the host and then copied; tolist()."""

    def __init__(self, seen: Crossings) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.tolist and isinstance(args[0], OnDevice):  # refused for subclasses
            self.seen.add(TO_HOST)
            return args[0].held.tolist()
        if func in (torch.tensor, torch.as_tensor) and _is_pretend(kwargs.get("device"), self.seen):
            made = func(*args, **{**kwargs, "device": "cpu"})
            if made.numel():  # an empty one is only allocated
                self.seen.add(TO_DEVICE)
            return OnDevice(made, self.seen)
        return func(*args, **kwargs)


def _run(func: Any, args: tuple, kwargs: dict[str, Any], seen: Crossings) -> Any:
    """One operation on the CPU; its result pretends when an input did, or when it was made for the device."""
    name, given = func._schema.name, kwargs.get("device")
    pretending = [t for t in leaves((args, kwargs)) if isinstance(t, OnDevice)]
    there = bool(pretending)
    _refuse_mixed(func, args, kwargs, seen)
    if given is not None:
        if name == "aten::_to_copy":
            _count_copy(args[0], given, bool(kwargs.get("non_blocking")), seen)
        there = _is_pretend(given, seen)
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif name == "aten::copy_" and isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice):
        _count_copy(args[1], args[0].device, len(args) > 2 and bool(args[2]), seen)
        if not isinstance(args[0], OnDevice):
            there = False
    elif pretending and name in ("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero"):
        seen.add(VALUE)
    elif pretending and (name in _SIZED or _by_mask(name, args)):
        seen.add(SIZE)
    plain_args, plain_kwargs = mapped(lambda t: t.held if isinstance(t, OnDevice) else t, (args, kwargs))
    result = func(*plain_args, **plain_kwargs)
    if not there:
        return result
    known = {id(t.held): t for t in pretending}  # in-place operations give back the tensor they were given
    return mapped(
        lambda t: (known.get(id(t)) if id(t) in known else OnDevice(t, seen)) if isinstance(t, Tensor) else t, result
    )


@no_type_check  # called several times for every operation: tests that check types would take twice as long
def leaves(value: Any) -> Iterator[Any]:
    """What a dispatcher's arguments hold: lists, tuples and dictionaries are all that they nest in."""
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from leaves(each)
    elif isinstance(value, dict):
        yield from leaves(list(value.values()))
    else:
        yield value


@no_type_check
def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """The same nest with ``function`` of every leaf."""
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(function, each) for each in value) if type(value) in (tuple, list) else value
    if isinstance(value, dict):
        return {name: mapped(function, each) for name, each in value.items()}
    return function(value)


def _refuse_mixed(func: Any, args: tuple, kwargs: dict[str, Any], seen: Crossings) -> None:
    """RuntimeError for what CUDA refuses; CPU indices, which it copies, are counted."""
    name, given = func._schema.name, list(leaves((args, kwargs)))
    plain = [t for t in given if isinstance(t, Tensor) and not isinstance(t, OnDevice)]
    if not plain or len(plain) == sum(isinstance(t, Tensor) for t in given):
        return
    if name in ("aten::copy_", "aten::_to_copy"):
        return
    single = torch.Tag.pointwise in func.tags or name in _MIXING
    if name in _INDEXING and isinstance(args[0], OnDevice):
        single = True
        indices = [i for i in args[1] if any(i is t for t in plain)]
        for _ in indices:
            seen.add(TO_DEVICE)
        plain = [t for t in plain if not any(t is i for i in indices)]
    written = [args[i] for i, a in enumerate(func._schema.arguments[: len(args)]) if _is_written(a)]
    if any(t.ndim or not single or any(t is w for w in written) for t in plain):
        shapes = ", ".join(f"{list(t.shape)} on {t.device}" for t in given if isinstance(t, Tensor))
        raise RuntimeError(f"{name}: tensors on two devices ({shapes}), which CUDA refuses; asked for by {caller()}")


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _count_copy(source: Any, target: Any, non_blocking: bool, seen: Crossings) -> None:
    here, there = isinstance(source, OnDevice), _is_pretend(target, seen)
    if here and not there:
        seen.add(TO_HOST)
    elif there and not here and not non_blocking:
        seen.add(TO_DEVICE)


def _by_mask(name: str, args: tuple) -> bool:
    if name not in _INDEXING:
        return False
    return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1] or ())


def _is_pretend(device: Any, seen: Crossings) -> bool:
    return device is not None and torch.device(device).type == seen.device.type


def caller(passing: str | tuple[str, ...] = _CARRIERS, otherwise: str = "the model's own code") -> str:
    """The innermost function of this kit on the stack, files below ``passing`` left out ("layout.py, arrange")."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(_PACKAGE) and not path.startswith(passing):
            return f"{Path(path).relative_to(_PACKAGE).as_posix()}, {frame.f_code.co_name}"
        frame = frame.f_back
    return otherwise
