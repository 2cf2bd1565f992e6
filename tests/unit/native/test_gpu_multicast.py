"""Multicast groups that another process has made: the GPU memory library has handles for them."""

from __future__ import annotations

import pytest
from fakes.cuda import FakeCuda
from fakes.gpu_conversation import Conversation
from fakes.gpu_script import script

MIB = 1 << 20

# In all ranks but the first, PyTorch's symmetric memory and NCCL's NVLS have got the group so.
GROUP = """
import threading, time
MIB = 1 << 20
group, memory, own, place = c_uint64(), c_uint64(), c_uint64(), c_uint64()
call("cuMulticastCreate", byref(own), (c_uint64 * 4)(2, 2 * MIB, 1, 0))
fd = c_int()
call("cuMemExportToShareableHandle", byref(fd), own, 1, c_uint64(0))
call("cuMemImportFromShareableHandle", byref(group), c_void_p(fd.value), 1)
call("cuMemCreate", byref(memory), c_size_t(2 * MIB), (c_int * 8)(1, 1, 1, 0), c_uint64(0))
def reserve():
    at = c_uint64()
    call("cuMemAddressReserve", byref(at), c_size_t(2 * MIB), c_size_t(0), at, at)
    return at
def map(handle):
    at = reserve()
    call("cuMemMap", at, c_size_t(2 * MIB), c_size_t(0), handle, c_uint64(0))
    return at
def add(device):
    call("cuMulticastAddDevice", group, device)
size, zero = c_size_t(2 * MIB), c_uint64(0)
"""


def imported_until_gone(cuda: FakeCuda, body: str, place: str) -> None:
    """The group counts as imported at that place, and nothing does once it is gone."""
    with script(cuda, body) as program:
        program.reach(place)
        with Conversation(program.pid) as library:
            assert library.about().left == {"imported": 2 * MIB}
            program.go_on()
            program.reach("gone")
            assert library.about().left == {}
        program.go_on()
        program.end()


@pytest.mark.parametrize(
    "bind",
    [
        'call("cuMulticastBindMem", group, zero, memory, zero, size, zero)',
        'call("cuMulticastBindMem_v2", group, 0, zero, memory, zero, size, zero)',
        'call("cuMulticastBindAddr", group, zero, at, size, zero)',
        'call("cuMulticastBindAddr_v2", group, 0, zero, at, size, zero)',
    ],
)
def test_an_imported_group_is_used_like_any_other(cuda: FakeCuda, bind: str) -> None:
    body = f"""{GROUP}
at = map(memory)
add(0), add(1)
{bind}
call("cuMemUnmap", at, size)
call("cuMemRelease", memory)
window = map(group)
stop("bound")
call("cuMulticastUnbind", group, 0, zero, size)
assert cuda.cuMulticastUnbind(group, 0, zero, size) == 1
call("cuMemUnmap", window, size)
call("cuMemRelease", group)
assert cuda.cuMulticastAddDevice(group, 0) == 1
stop("gone")
"""
    imported_until_gone(cuda, body, "bound")


@pytest.mark.parametrize("handle", ["own", "group"])
def test_a_group_that_is_mapped_waits_for_its_devices(cuda: FakeCuda, handle: str) -> None:
    """Other threads go on meanwhile: one of them adds the device that it waits for."""
    body = f"""{GROUP}
add(0)
mapping = threading.Thread(target=map, args=({handle},))
mapping.start()
time.sleep(0.1)
assert mapping.is_alive()
assert free(alloc(2 * MIB)) == 0
add(1)
mapping.join(10)
assert not mapping.is_alive()
"""
    with script(cuda, body) as program:
        program.end()


def test_a_group_stays_until_it_is_mapped(cuda: FakeCuda) -> None:
    """As with the driver, the mapping keeps what the program has no handle of any more."""
    body = f"""{GROUP}
add(0)
windows = []
mapping = threading.Thread(target=lambda: windows.append(map(group)))
mapping.start()
time.sleep(0.1)
call("cuMemRelease", group)
assert cuda.cuMulticastAddDevice(group, 1) == 1
call("cuMulticastAddDevice", own, 1)
mapping.join(10)
stop("mapped")
call("cuMemUnmap", windows[0], size)
stop("gone")
"""
    imported_until_gone(cuda, body, "mapped")
