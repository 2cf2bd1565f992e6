"""The GPU memory library where memory ends with something else, or must not end yet."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.cuda import FakeCuda
from fakes.gpu_conversation import Conversation
from fakes.gpu_script import Script, script

from shim.gpu.memory import marker
from shim.gpu.memory.wire import Kind

MIB = 1 << 20
INVALID_CONTEXT = 201
NOT_SUPPORTED = 801


def move(program: Script) -> None:
    """Take all of its memory out and give it back."""
    with Conversation(program.pid) as library:
        library.moved()


def test_memory_goes_with_its_context(cuda: FakeCuda) -> None:
    body = """
kept = alloc(2 << 20)
other = c_void_p()
call("cuCtxCreate_v2", byref(other), 0, 0)
gone = alloc(4 << 20)
stop("both")
call("cuCtxDestroy_v2", other)
call("cuCtxSetCurrent", context)
stop("one")
assert free(gone) != 0 and free(kept) == 0
"""
    with script(cuda, body) as program:
        program.reach("both")
        assert program.movable == 6 * MIB
        program.go_on()
        program.reach("one")
        assert program.movable == 2 * MIB
        program.go_on()
        program.end()


@pytest.mark.parametrize("call", ["cuDevicePrimaryCtxRelease", "cuDevicePrimaryCtxRelease_v2"])
def test_memory_goes_when_nobody_holds_the_primary_context_any_more(
    cuda: FakeCuda, call: str
) -> None:
    body = f"""
call("cuDevicePrimaryCtxRetain", byref(context), 0)
alloc(2 << 20)
call("{call}", 0)
stop("held")
call("{call}", 0)
stop("gone")
"""
    with script(cuda, body) as program:
        program.reach("held")
        assert program.movable == 2 * MIB
        program.go_on()
        program.reach("gone")
        assert program.movable == 0
        program.go_on()
        program.end()


def test_what_is_freed_during_a_capture_goes_when_that_is_over(cuda: FakeCuda) -> None:
    """The driver would spoil the capture if it was asked to wait for the GPU meanwhile."""
    body = """
stream, graph = c_void_p(), c_void_p()
call("cuStreamCreate", byref(stream), 1)
first, second = alloc(2 << 20), alloc(4 << 20)
call("cuStreamBeginCapture_v2", stream, 2)
assert free(first) == 0
assert free(first) == 1
start, size = c_uint64(), c_size_t()
assert cuda.cuMemGetAddressRange_v2(byref(start), byref(size), second) == 0
assert (start.value, size.value) == (second.value, 4 << 20)
stop("freed")
call("cuStreamEndCapture", stream, byref(graph))
stop("over")
third = alloc(8 << 20)
stop("more")
"""
    with script(cuda, body) as program:
        program.reach("freed")
        assert program.movable == 6 * MIB
        program.go_on()
        program.reach("over")
        with Conversation(program.pid) as library:
            assert [piece.size for piece in library.moved()] == [4 * MIB]
        program.go_on()
        program.reach("more")
        assert program.movable == 12 * MIB
        program.go_on()
        program.end()


def test_a_stream_that_is_destroyed_ends_its_capture(cuda: FakeCuda) -> None:
    body = """
stream = c_void_p()
call("cuStreamCreate", byref(stream), 1)
alloc(2 << 20)
call("cuStreamBeginCapture_v2", stream, 2)
stop("captured")
call("cuStreamDestroy_v2", stream)
stop("gone")
"""
    with script(cuda, body) as program:
        program.reach("captured")
        with Conversation(program.pid) as library:
            assert library.hold(100).status
            program.go_on()
            program.reach("gone")
            assert not library.hold().status
            assert not library.ask(Kind.OPEN).status
        program.go_on()
        program.end()


def test_a_context_that_goes_ends_its_captures(cuda: FakeCuda) -> None:
    """Nothing would be freed any more otherwise, and nothing held."""
    body = """
other, stream = c_void_p(), c_void_p()
call("cuCtxCreate_v2", byref(other), 0, 0)
call("cuStreamCreate", byref(stream), 1)
call("cuStreamBeginCapture_v2", stream, 2)
call("cuCtxDestroy_v2", other)
call("cuCtxSetCurrent", context)
assert free(alloc(2 << 20)) == 0
alloc(4 << 20)
stop("gone")
"""
    with script(cuda, body) as program:
        program.reach("gone")
        with Conversation(program.pid) as library:
            assert not library.hold().status
            assert library.about().movable == 4 * MIB
            assert not library.ask(Kind.OPEN).status
        program.go_on()
        program.end()


def test_a_context_that_nobody_knows_any_more_has_come_to_rest(cuda: FakeCuda) -> None:
    with script(cuda, 'alloc(2 << 20)\nstop("there")') as program:
        program.reach("there")
        with Conversation(program.pid) as library:
            cuda.answer("cuCtxPushCurrent_v2", INVALID_CONTEXT)
            assert not library.hold().status
            assert not library.ask(Kind.OPEN).status
            cuda.answer("cuCtxPushCurrent_v2", NOT_SUPPORTED)
            assert library.hold().value == NOT_SUPPORTED
        program.go_on()
        program.end()


def test_what_a_program_learns_of_an_address(cuda: FakeCuda) -> None:
    """Its context, and that it can be exported only as far as that was asked for."""
    body = """
at = alloc(5 << 20)
found, types = c_void_p(), c_uint64(77)
call("cuPointerGetAttribute", byref(found), 1, c_uint64(at.value + 4096))
assert found.value == context.value
call("cuPointerGetAttribute", byref(types), 14, at)
assert types.value == 0
stop("asked")
call("cuPointerGetAttribute", byref(found), 1, c_uint64(at.value + 4096))
assert found.value == context.value
"""
    with script(cuda, body) as program:
        program.reach("asked")
        move(program)
        program.go_on()
        program.end()


SYNCHRONOUS = """
at, small = alloc(5 << 20), alloc(4096)
vmm, place, access = c_uint64(), c_uint64(), (c_int * 3)(1, 0, 3)
wanted = (c_int * 8)(1, 0, 1, 0, 0, 0, 0, 0)
call("cuMemCreate", byref(vmm), c_size_t(2 << 20), wanted, c_uint64(0))
call("cuMemAddressReserve", byref(place), c_size_t(2 << 20), c_size_t(0), c_uint64(0), c_uint64(0))
call("cuMemMap", place, c_size_t(2 << 20), c_size_t(0), vmm, c_uint64(0))
call("cuMemSetAccess", place, c_size_t(2 << 20), access, c_size_t(1))
one, none, flags = c_int(1), c_int(0), c_int()
def synchronous(of):
    found = c_int()
    call("cuPointerGetAttribute", byref(found), 6, of)
    return found.value
def set(value, of):
    return cuda.cuPointerSetAttribute(byref(value), 6, of)
"""


def test_synchronous_copies_are_had_for_the_whole_context(cuda: FakeCuda) -> None:
    """The driver knows them for what cuMemAlloc gives, but not for VMM memory, which this is."""
    body = (
        SYNCHRONOUS
        + """
call("cuCtxSetFlags", 4)
assert (set(one, place), synchronous(at)) == (801, 0)
assert set(none, at) == set(one, small) == 0
call("cuCtxGetFlags", byref(flags))
assert flags.value == 4
assert set(one, c_uint64(at.value + 4096)) == 0 and synchronous(at) == 1
call("cuCtxGetFlags", byref(flags))
assert flags.value == 0x84
stop("set")
assert synchronous(at) == 1 and set(none, at) == 0 and synchronous(at) == 0
"""
    )
    with script(cuda, body) as program:
        program.reach("set")
        move(program)
        program.go_on()
        program.end()


def test_a_driver_without_such_flags_is_asked_itself(tmp_path: Path) -> None:
    cuda = FakeCuda(tmp_path, without=("cuCtxSetFlags",))
    with script(
        cuda, f"{SYNCHRONOUS}\nassert (set(one, at), set(one, small)) == (801, 0)"
    ) as program:
        program.end()


def test_memory_may_be_freed_in_stream_order(cuda: FakeCuda) -> None:
    body = """
first, second = alloc(2 << 20), alloc(4 << 20)
assert cuda.cuMemFreeAsync(first, None) == 0
stop("freed")
"""
    with script(cuda, body) as program:
        program.reach("freed")
        assert program.movable == 4 * MIB
        program.go_on()
        program.end()


def test_a_child_of_one_that_has_only_asked_is_like_any_other(cuda: FakeCuda) -> None:
    """Many a library asks about every address that it sees, before anyone has initialized CUDA."""
    before = """
at, size = c_uint64(), c_size_t()
for address in (0, 4096):
    assert cuda.cuMemGetAddressRange_v2(byref(at), byref(size), c_uint64(address)) == 3
    assert cuda.cuPointerGetAttribute(byref(at), 2, c_uint64(address)) == 3
    assert free(c_uint64(address)) == 3
    assert cuda.cuMemAlloc_v2(byref(at), c_size_t(4 << 20)) == 3
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    body = """
alloc(2 << 20)
assert open("/proc/self/maps").read().count("memfd:thaw-gpu") == 1
"""
    with script(cuda, body, before) as program:
        program.end()


def test_a_program_may_opt_out_by_itself(cuda: FakeCuda) -> None:
    """The kernel still shows what it was started with."""
    before = 'os.environ["THAW_GPU_MEMORY"] = "driver"'
    body = """
alloc(2 << 20)
maps, environment = (open(f"/proc/self/{name}").read() for name in ("maps", "environ"))
assert "memfd:thaw-gpu" not in maps and "THAW_GPU_MEMORY" not in environment
"""
    with script(cuda, body, before) as program:
        program.end()


def test_a_library_that_was_closed_again_stays(cuda: FakeCuda) -> None:
    """Programs open it to see whether there is one; its functions must not be elsewhere then."""
    body = """
from _ctypes import dlclose, dlopen, dlsym
def mapped():
    return "/libcuda.so.1" in open("/proc/self/maps").read()
for _ in range(3):
    handle = dlopen("libcuda.so.1", 2)
    assert dlsym(handle, "cuMemAlloc_v2")
    dlclose(handle)
dlclose(cuda._handle)
assert mapped()
cuda = ctypes.CDLL("libcuda.so.1")
alloc(2 << 20)
stop("there")
"""
    with script(cuda, body) as program:
        program.reach("there")
        assert program.movable == 2 * MIB
        program.go_on()
        program.end()


def test_a_program_that_closes_all_descriptors_goes_on(cuda: FakeCuda) -> None:
    """Nobody speaks for its memory then; what is large goes to the driver from there on."""
    body = """
first = alloc(2 << 20)
os.closerange(3, 1024)
stop("closed")
second = alloc(4 << 20)
for at in (first, second):
    call("cuMemsetD8_v2", at, 7, c_size_t(2 << 20))
    assert free(at) == 0
"""
    with script(cuda, body) as program:
        program.reach("closed")
        program.hear()  # what it says last: the program must not end before
        assert marker.find(program.pid) is None
        program.go_on()
        assert "closed the GPU memory library's sockets" in program.end()
