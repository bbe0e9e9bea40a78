"""One copy each way, whatever travels: values, crossings counted on the stand-in for a device, and what is put off."""

import numpy as np
import pytest
import torch

from holitom.errors import BadUsage
from holitom_repro.latency.crossings import TO_HOST, VALUE
from holitom_repro.latency.pretending import OnDevice, pretended_device, put
from holitom.ops.transfer import Later, postponing, refuse_if, riding, to_device, to_host

MIXED = (
    torch.tensor([True, False, True]),
    torch.arange(5),
    torch.randn(2, 3).to(torch.bfloat16),
    torch.tensor(7.5, dtype=torch.float64),
    torch.zeros(0, 4),
    torch.arange(6, dtype=torch.int32).view(2, 3).T,
)


def same(found, expected):
    return all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) for a, b in zip(found, expected, strict=True)
    )


@pytest.fixture
def seen():
    with pretended_device(torch.nn.Identity()) as crossings:
        yield crossings


def test_many_tensors_reach_the_host_in_one_copy(seen):
    assert same(to_host(*(put(t, seen) for t in MIXED)), MIXED)
    assert dict(seen.kinds) == {TO_HOST: 1}
    assert same(to_host(put(MIXED[2], seen)), MIXED[2:3]) and seen.total == 2


def test_many_arrays_reach_the_device_and_nobody_waits(seen):
    like = put(torch.zeros(1), seen)
    arrays = (np.array([True, False]), np.arange(6).reshape(2, 3)[:, ::2], MIXED[2], np.zeros((0, 3), dtype=np.int64))
    found = to_device(*arrays, like=like)
    assert all(isinstance(t, OnDevice) for t in found) and seen.total == 0
    expected = [t if isinstance(t, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(t)) for t in arrays]
    assert same([t.held for t in found], expected)
    found[0].zero_()  # they share a buffer, and no bytes
    assert same([t.held for t in found[1:]], expected[1:])


def test_a_single_element_may_have_any_stride(seen):
    like, lonely = put(torch.zeros(1), seen), np.array([[False, True], [False, False]])
    rows, columns = to_device(*np.nonzero(lonely), like=like)  # columns of one array, each with its stride
    assert (rows.held.tolist(), columns.held.tolist()) == ([0], [1])
    assert same(to_host(put(torch.ones(1, 5)[:, 0], seen), put(torch.ones(2), seen)), [torch.ones(1), torch.ones(2)])


def test_on_a_cpu_nothing_is_copied():
    array, tensor = np.arange(3), torch.arange(4.0)
    there, here = to_device(array, tensor, like=torch.zeros(1))
    assert there.data_ptr() == array.ctypes.data and here is tensor
    assert to_host(tensor)[0] is tensor


def test_what_rides_along_needs_no_copy_of_its_own(seen):
    ids = put(torch.arange(4), seen)
    with riding(ids) as ride:
        assert to_host(torch.ones(1))[0] == 1 and seen.total == 0  # from a CPU there is nothing to ride with
        (found,) = to_host(put(torch.ones(2), seen))
        assert torch.equal(found, torch.ones(2)) and seen.total == 1
        to_host(put(torch.ones(2), seen))
        assert torch.equal(ride.arrived()[0], torch.arange(4)) and seen.total == 2
    with riding(ids) as ride:
        pass
    to_host(put(torch.ones(2), seen))
    assert seen.total == 3
    assert torch.equal(ride.arrived()[0], torch.arange(4)) and seen.total == 4  # nobody took it along


def test_a_copy_to_cuda_starts_in_pinned_memory(monkeypatch):
    """Elsewhere the flag non_blocking does not make the copy asynchronous."""
    asked = []

    def empty(*_, **given):
        asked.append(given)
        raise NotImplementedError

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(NotImplementedError):
        to_device(np.arange(2), like=torch.device("cuda"))
    assert asked[0]["pin_memory"] is True


def error():
    return BadUsage("refused", fix="be good")


def test_a_flag_on_a_cpu_is_looked_at_at_once():
    with postponing(Later()), pytest.raises(BadUsage, match="refused"):
        refuse_if(torch.tensor(True), error)
    refuse_if(torch.tensor(False), error)


def test_a_flag_on_a_device_waits_for_the_others(seen):
    later, told = Later(), []
    with postponing(later):
        refuse_if(put(torch.tensor(False), seen), error)
        refuse_if(put(torch.tensor(True), seen), error)
        later.add([put(torch.tensor(3), seen)], lambda number: told.append(int(number)))
        later.add([], lambda: told.append("nothing to wait for"))
    assert seen.total == 0 and told == ["nothing to wait for"]
    with pytest.raises(BadUsage, match="refused"):
        later.settle()
    assert seen.total == 1 and told[1:] == [3]  # one copy, and what came after the error is used as well
    later.settle()
    assert seen.total == 1
    with pytest.raises(BadUsage, match="refused"):  # outside of the block nothing is put off
        refuse_if(put(torch.tensor(True), seen), error)
    assert seen.kinds[VALUE] == 1


def test_what_has_failed_is_dropped(seen):
    later = Later()
    with postponing(later):
        refuse_if(put(torch.tensor(True), seen), error)
    later.drop()
    later.settle()
    assert seen.total == 0


@pytest.mark.gpu
def test_on_cuda_the_same_values_and_one_wait():
    from holitom_repro.latency.crossings import cuda_waits

    to_device(np.arange(2), like=torch.device("cuda"))  # what is set up once
    with cuda_waits() as waits:
        there = to_device(*MIXED, like=torch.device("cuda"))
        assert waits.total == 0
        assert same(to_host(*there), MIXED) and waits.total == 1
