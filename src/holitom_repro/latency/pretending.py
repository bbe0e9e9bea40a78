"""A device that is pretended on a CPU: its tensors compute here, and every crossing to the host and back is counted.

They run through the same code as a GPU's. Seen: copies in both directions, single values that are read, and results
whose size depends on data; not seen: explicit calls of torch.cuda.synchronize, which the kit has none of outside
of reading its statistics. As strict as CUDA: an operation on tensors of both sides is refused, unless the CPU's are
single values of a pointwise operation, or indices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, no_type_check

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from holitom_repro.latency.crossings import SIZE, TO_DEVICE, TO_HOST, VALUE, Crossings, caller

_SIZED = {"aten::nonzero", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::masked_select"}
_MIXING = {"aten::copy_", "aten::_to_copy", "aten::fill_", "aten::where", "aten::set_"}
"""Operations that take single values from the CPU without being tagged as pointwise, or that copy."""
_INDEXING = {"aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_", "aten::_unsafe_index"}


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
