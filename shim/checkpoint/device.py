"""What of a container is on GPUs while it is dumped. Nothing of shim.gpu is loaded without need.

CRIU can dump a process only if it has nothing of a GPU; see gpu/suspension.py for how that comes
about. A container without CUDA costs a look at its processes' mappings.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shim.errors import GpuFailed, Unfit
from shim.processes import processes_below
from shim.snapshot.config import CudaProcess, CudaState, Gpu, Staging
from shim.timeline import Timeline
from shim.work import Work

if TYPE_CHECKING:
    from shim.gpu import nvml
    from shim.gpu.driver import Driver
    from shim.gpu.suspension import Suspension

_LIBRARY = b"/libcuda.so"
_MAJOR = 195  # of nvidiactl and the GPUs themselves (linux, admin-guide/devices.txt)


class Device:
    """A worker's GPU state during a dump. This one stands for workers that have none."""

    state = CudaState()
    gpus: tuple[Gpu, ...] = ()  # that it was given

    def check(self) -> None:
        """Raise GpuFailed if a process of it has ended: the dump is not what it should be."""

    def resume(self) -> None:
        """Give the worker its GPUs back. Raises GpuFailed if it cannot have them."""


class _Suspended(Device):
    def __init__(self, suspension: Suspension, state: CudaState, gpus: tuple[Gpu, ...]) -> None:
        self._suspension = suspension
        self.state = state
        self.gpus = gpus

    def check(self) -> None:
        self._suspension.check()

    def resume(self) -> None:
        self._suspension.resume()


@contextmanager
def suspended(work: Work, timeline: Timeline) -> Iterator[Device]:
    """A block in which nothing of `work`'s container is on a GPU.

    Left by an exception, the worker runs on as before. Raises Unfit before anything is touched if
    this machine's driver cannot do it, GpuFailed if it does not.
    """
    inside = candidates(int(work.details["pid"]))
    driver = _driver(work, inside) if inside else None
    cuda = _cuda(driver, inside)
    if driver is None or not cuda:
        yield Device()
        return
    from shim.gpu.suspension import Suspension

    before = _given(work)
    seconds = work.config.number("gpu.lock")
    with Suspension(driver, list(cuda), timeline, seconds) as suspension:
        processes = [
            CudaProcess(cuda[pid], [Staging(*area) for area in areas])
            for pid, areas in suspension.staging.items()
        ]
        state = CudaState(
            processes=sorted(processes, key=lambda process: process.pid),
            uuids=[gpu.uuid for gpu in before],
            memory=_in_use(before, _given(work)),
        )
        yield _Suspended(suspension, state, _kinds(before))


def recover(work: Work) -> None:
    """Give a worker its GPUs back that an engine which died has left without. Raises GpuFailed."""
    inside = candidates(int(work.details["pid"]))
    driver = _driver(work, inside) if inside else None
    if driver is not None:
        from shim.gpu.suspension import recover as recovered

        recovered(driver, list(_cuda(driver, inside)))


def candidates(init: int) -> dict[int, int]:
    """The processes below `init` (a pid of ours) that may use CUDA: our pid → the container's.

    Whoever does has the driver's library mapped; most that have it do. The driver knows better, but
    to ask it costs what a container without GPUs shall not pay.
    """
    return {pid: own for own, pid in processes_below(init).items() if _maps_driver(pid)}


def _maps_driver(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            return _LIBRARY in file.read()
    except (FileNotFoundError, ProcessLookupError):
        return False  # it has ended


def _driver(work: Work, pids: Iterable[int]) -> Driver | None:
    """The driver; None if there is none and nobody holds anything of a GPU either.

    Images bring libraries of their own along, which are loaded in vain on a machine without GPUs.
    """
    from shim.gpu.driver import Driver

    try:
        driver = Driver.open(work.config.text("gpu.library"))
        driver.init()
    except (Unfit, GpuFailed):
        if any(map(holds_gpu, pids)):
            raise
        return None
    return driver


def holds_gpu(pid: int) -> bool:
    """Whether a process has a device node of NVIDIA's open."""
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            return any(map(_is_nvidias, entries))
    except (FileNotFoundError, ProcessLookupError):
        return False  # it has ended


def _is_nvidias(entry: os.DirEntry[str]) -> bool:
    try:
        info = os.stat(entry.path)
    except OSError:
        return False  # it was closed meanwhile
    return stat.S_ISCHR(info.st_mode) and os.major(info.st_rdev) == _MAJOR


def _cuda(driver: Driver | None, inside: Mapping[int, int]) -> dict[int, int]:
    if driver is None:
        return {}
    from shim.gpu.processes import cuda_processes

    return {pid: inside[pid] for pid in cuda_processes(driver, inside)}


def _given(work: Work) -> list[nvml.Gpu]:
    """The GPUs that the container has, as they are now. Raises Unfit if they are none for us."""
    from shim.gpu.given import given
    from shim.gpu.nvml import gpus
    from shim.gpu.rules import unsupported

    found = given(work.bundle.spec(), gpus())
    for reason in unsupported(found):
        raise Unfit(reason, hint="give the container whole GPUs of a machine")
    return found


def _in_use(before: list[nvml.Gpu], after: list[nvml.Gpu]) -> dict[str, int]:
    """Bytes on each GPU that are free once the worker has left it: as much as it will need."""
    free = {gpu.uuid: gpu.free for gpu in before}
    return {gpu.uuid: max(0, gpu.free - free[gpu.uuid]) for gpu in after if gpu.uuid in free}


def _kinds(given: list[nvml.Gpu]) -> tuple[Gpu, ...]:
    from shim.gpu.rules import kinds

    return tuple(kinds(given))
