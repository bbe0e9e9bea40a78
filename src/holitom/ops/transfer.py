"""Between host and device: what must come to the host comes in one copy, what goes to the device makes nobody wait.

On a CPU nothing is copied or packed: both directions hand back what they were given. On CUDA a copy to the device
starts in a pinned buffer of its own, which torch keeps until the copy has ended; a copy to the host always waits, so
that no number is read before it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor


def to_device(*arrays: np.ndarray | Tensor, like: Tensor | torch.device) -> tuple[Tensor, ...]:
    """Host arrays on the device of ``like`` (or on that device), each in its own shape and type, in one copy that the
    host does not wait for. The results share one buffer without overlapping."""
    device = like.device if isinstance(like, Tensor) else like
    hosts = [torch.from_numpy(np.ascontiguousarray(a)) if isinstance(a, np.ndarray) else a for a in arrays]
    if device.type == "cpu":
        return tuple(hosts)
    order = _aligned(hosts)
    packed = torch.empty(sum(h.nbytes for h in hosts), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for i, part in zip(order, packed.split([hosts[i].nbytes for i in order]), strict=True):
        part.copy_(_bytes(hosts[i]))
    return tuple(_unpacked(packed.to(device, non_blocking=True), hosts, order))


def to_host(*tensors: Tensor) -> list[Tensor]:
    """The tensors on the CPU, in one copy per device, which waits; tensors on the CPU are handed back as they are. What
    waits in :func:`riding` comes along."""
    if all(t.device.type == "cpu" for t in tensors):
        return list(tensors)
    ride = _RIDE.get()
    along = ride.board() if ride is not None else []
    found = _fetch([*tensors, *along])
    if along:
        ride.leave(found[len(tensors) :])
    return found[: len(tensors)]


class Ride:
    """Tensors that the host will want, on their way: the next copy takes them along (see :func:`riding`)."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors, self._found = list(tensors), None

    def board(self) -> list[Tensor]:
        """What still has to travel."""
        return self._tensors if self._found is None else []

    def leave(self, found: list[Tensor]) -> None:
        self._found = found

    def arrived(self) -> list[Tensor]:
        """The tensors on the host; in a copy of their own if nothing took them along."""
        if self._found is None:
            self._found = _fetch(self._tensors)
        return self._found


@contextmanager
def riding(*tensors: Tensor) -> Iterator[Ride]:
    """Inside the block, the first ``to_host`` takes these tensors along in its copy, whoever calls it."""
    ride = Ride(tensors)
    before = _RIDE.set(ride)
    try:
        yield ride
    finally:
        _RIDE.reset(before)


class Later:
    """What the host need not know yet: tensors, each with what is to be done once their values are known."""

    def __init__(self) -> None:
        self._waiting: list[tuple[tuple[Tensor, ...], Callable[..., None]]] = []

    def add(self, tensors: Sequence[Tensor], use: Callable[..., None]) -> None:
        """``use`` is called with the tensors on the CPU when somebody settles; at once where there are none."""
        if not tensors:
            use()
            return
        self._waiting.append((tuple(tensors), use))

    def drop(self) -> None:
        """Forget what waits, for instance of a call that has failed."""
        self._waiting = []

    def settle(self) -> None:
        """Read all that waits in one copy, and use it. Everything is used, then the first error is raised."""
        waiting, self._waiting = self._waiting, []
        found = iter(_fetch([t for tensors, _ in waiting for t in tensors]))
        first = None
        for tensors, use in waiting:
            try:
                use(*[next(found) for _ in tensors])
            except Exception as error:
                first = first or error
        if first is not None:
            raise first


@contextmanager
def postponing(later: Later) -> Iterator[None]:
    """Inside the block, :func:`refuse_if` leaves flags on a device to ``later``."""
    before = _LATER.set(later)
    try:
        yield
    finally:
        _LATER.reset(before)


def refuse_if(bad: Tensor, error: Callable[[], Exception]) -> None:
    """Raise ``error()`` if the flag [] is true: at once, or, for a flag on a device inside :func:`postponing`, when it
    is settled. What follows must therefore get on with values that will be refused."""
    later = _LATER.get()
    if later is None or bad.device.type == "cpu":
        if bad:
            raise error()
        return

    def look(found: Tensor) -> None:
        if found:
            raise error()

    later.add([bad], look)


_RIDE: ContextVar[Ride | None] = ContextVar("ride", default=None)
_LATER: ContextVar[Later | None] = ContextVar("later", default=None)


def _fetch(tensors: Sequence[Tensor]) -> list[Tensor]:
    found = list(tensors)
    for device in dict.fromkeys(t.device for t in tensors if t.device.type != "cpu"):
        places = [i for i, t in enumerate(tensors) if t.device == device]
        mine = [tensors[i].detach() for i in places]
        if len(mine) == 1:
            found[places[0]] = mine[0].cpu()
            continue
        order = _aligned(mine)
        packed = torch.cat([_bytes(mine[i]) for i in order]).cpu()
        for i, tensor in zip(places, _unpacked(packed, mine, order), strict=True):
            found[i] = tensor
    return found


def _aligned(tensors: Sequence[Tensor]) -> list[int]:
    """The widest numbers first, so that each begins at a multiple of its width."""
    return sorted(range(len(tensors)), key=lambda i: -tensors[i].element_size())


def _bytes(tensor: Tensor) -> Tensor:
    flat = tensor.contiguous().reshape(-1).as_strided((tensor.numel(),), (1,))  # one element may keep a stride
    return flat.view(torch.uint8)


def _unpacked(packed: Tensor, likes: Sequence[Tensor], order: Sequence[int]) -> list[Tensor]:
    """Views of the packed bytes in the shapes and types of ``likes``, which were packed in ``order``."""
    views = list(likes)
    for i, part in zip(order, packed.split([likes[i].nbytes for i in order]), strict=True):
        views[i] = part.view(likes[i].dtype).reshape(likes[i].shape)
    return views
