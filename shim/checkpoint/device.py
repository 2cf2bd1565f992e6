"""What of a container is on GPUs while it is dumped. Nothing of shim.gpu is loaded without need.

CRIU can dump a process only if it has nothing of a GPU; see gpu/suspension.py for how that comes
about. A container without CUDA costs a look at its processes' mappings.

A worker that cannot have its GPUs back is ended, with all of its container: it would wait for ever
in its next CUDA call, and no probe need notice that. Whoever watches over it starts it anew.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shim import audit
from shim.annotations import POD_NAME, POD_NAMESPACE
from shim.cgroup import Cgroup, of_pid
from shim.errors import FailedPrecondition, GpuFailed, GpuLost, NotFound, Unfit
from shim.processes import processes_below
from shim.snapshot.config import Gpu
from shim.snapshot.cuda import CudaState, Staging
from shim.task.dumping import BEGUN, mark
from shim.timeline import Timeline
from shim.work import Work

if TYPE_CHECKING:
    from shim.checkpoint.gpu_memory import Moved
    from shim.gpu import nvml
    from shim.gpu.driver import Driver
    from shim.gpu.suspension import Suspension

_LIBRARY = b"/libcuda.so"
_ENDING = 10.0  # seconds for a container that is killed; the driver may take its time with that
_MAJOR = 195  # of nvidiactl and the GPUs themselves (linux, admin-guide/devices.txt)


class Device:
    """A worker's GPU state during a dump. This one stands for workers that have none."""

    state = CudaState()
    gpus: tuple[Gpu, ...] = ()  # that it was given
    copies = False  # whether `save` copies something

    def check(self) -> None:
        """Raise GpuFailed if a process of it has ended: the dump is not what it should be."""

    def save(self, folders: Sequence[Path], budget: int) -> None:
        """Begin to copy what the driver does not have into `folders`.

        `budget`: bytes that may be read and not yet written when the worker goes on.
        """

    def resume(self) -> None:
        """Give the worker its GPUs back.

        Raises GpuFailed if it cannot have them, CheckpointFailed if something was not read.
        """

    def finish(self) -> None:
        """Any time later: wait until all is written. Raises CheckpointFailed."""

    def index(self, folder: Path) -> None:
        """Then: write what there is to say of it into the folder of the index. Raises OSError."""

    def report(self) -> dict[str, str]:
        """Words for the log: what was moved, how fast, and why the rest was not."""
        return {}


class _Suspended(Device):
    def __init__(
        self, suspension: Suspension, moved: Moved, state: CudaState, gpus: tuple[Gpu, ...]
    ) -> None:
        self._suspension = suspension
        self._moved = moved
        self.copies = moved.any
        self.state = state
        self.gpus = gpus

    def check(self) -> None:
        self._suspension.check()

    def save(self, folders: Sequence[Path], budget: int) -> None:
        self._moved.save(folders, budget)

    def resume(self) -> None:
        self._suspension.resume()
        self._moved.give_back()

    def finish(self) -> None:
        self._moved.finish()

    def index(self, folder: Path) -> None:
        self._moved.index(folder)

    def report(self) -> dict[str, str]:
        return self._moved.report()


@contextmanager
def suspended(work: Work, timeline: Timeline) -> Iterator[Device]:
    """A block in which nothing of `work`'s container is on a GPU.

    Left by an exception, the worker runs on as before. Raises Unfit or FailedPrecondition before
    anything is touched if it cannot be done, GpuFailed if the driver does not; GpuLost, with the
    container ended, if the worker cannot have its GPUs back.
    """
    driver, cuda = _asked(work)
    if driver is None or not cuda:
        yield Device()
        return
    from shim.checkpoint.gpu_memory import moved
    from shim.gpu.processes import within
    from shim.gpu.suspension import Suspension

    _refuse_frozen(work)
    limit = work.config.number("gpu.limit")
    there = within(limit, partial(_given, work))
    needed: dict[str, int] = {}
    with (
        _ending_the_lost(work),
        moved(work, cuda, there, timeline) as memory,
    ):
        # What was moved stays where it is, and our own context has come: neither is the driver's.
        before = within(limit, partial(_given, work)) if memory.any else there
        with Suspension(
            driver,
            list(cuda),
            timeline,
            seconds=work.config.number("gpu.lock"),
            limit=limit,
            ready=partial(_await_memory, work, needed),
        ) as suspension:
            needed |= _in_use(before, within(limit, partial(_given, work)))
            processes = [
                memory.process(pid, cuda[pid], [Staging(*area) for area in areas])
                for pid, areas in suspension.staging.items()
            ]
            state = CudaState(
                processes=sorted(processes, key=lambda process: process.pid),
                uuids=[gpu.uuid for gpu in before],
                memory=dict(needed),
            )
            yield _Suspended(suspension, memory, state, _kinds(before))


def recover(work: Work) -> None:
    """Give a worker its GPUs back that an engine which died has left without.

    Raises GpuLost, with the container ended, if that is not possible.
    """
    driver, cuda = _asked(work)
    if driver is not None and cuda:
        from shim.gpu.memory.keeper import recover as opened
        from shim.gpu.suspension import recover as recovered

        with _ending_the_lost(work):
            recovered(driver, list(cuda), work.config.number("gpu.limit"))
            opened(work.folder, cuda)


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


def _asked(work: Work) -> tuple[Driver | None, dict[int, int]]:
    """The driver, if it is needed, and the CUDA processes: our pid → the container's.

    Asked within a limit: with a GPU that has failed, cuInit may not return.
    """
    inside = candidates(int(work.details["pid"]))
    if not inside:
        return None, {}
    from shim.gpu.processes import cuda_processes, within

    def ask() -> tuple[Driver | None, dict[int, int]]:
        driver = _driver(work, inside)
        if driver is None:
            return None, {}
        return driver, {pid: inside[pid] for pid in cuda_processes(driver, inside)}

    return within(work.config.number("gpu.limit"), ask)


def _refuse_frozen(work: Work) -> None:
    """In the worker it is a thread of the driver's that does what it is asked for."""
    group = _cgroup(work)
    if group is not None and group.frozen:
        raise FailedPrecondition(
            f"container {work.id} is paused, and its GPU state cannot be taken",
            hint="resume it before: its worker is held by the driver meanwhile",
        )


def _await_memory(work: Work, needed: Mapping[str, int]) -> None:
    """A restore that finds no room is the end of the worker: somebody may have come meanwhile."""
    from shim.gpu.nvml import gpus
    from shim.gpu.processes import within
    from shim.gpu.rules import wait_for_memory

    seconds = work.config.number("gpu.wait")
    limit = seconds + work.config.number("gpu.limit")
    # It is tried all the same: what NVML counts as free is not all that there is.
    with suppress(Unfit, GpuFailed):
        within(limit, lambda: wait_for_memory(needed, gpus, seconds))


@contextmanager
def _ending_the_lost(work: Work) -> Iterator[None]:
    """If the worker is lost within this block, its container is ended."""
    from shim.gpu.watch import Watch

    init = int(work.details["pid"])
    with Watch([init]) as watch:
        try:
            yield
        except GpuLost as error:
            if watch.ended():
                raise
            mark(str(work.folder), BEGUN)  # or we would be dismissed with it, and nobody hear why
            group = _cgroup(work)
            if group is not None:
                group.kill(_ENDING)
            watch.kill(init)
            watch.wait([init], _ENDING)
            became = "the container was ended" if watch.ended() else "the container does not end"
            _record(work, outcome=became)
            raise GpuLost(f"{error.message}; {became}", hint=error.hint) from error


def _cgroup(work: Work) -> Cgroup | None:
    """The container's own; None if it has none."""
    try:
        return of_pid(int(work.details["pid"]))
    except NotFound:
        return None


def _record(work: Work, **fields: str) -> None:
    notes = work.bundle.spec().get("annotations") or {}
    audit.record(
        work.config,
        "end",
        who="thaw",
        container=work.id,
        pod=notes.get(POD_NAME, ""),
        namespace=notes.get(POD_NAMESPACE, ""),
        reason=GpuLost.reason,
        **fields,
    )


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


def _given(work: Work) -> list[nvml.Gpu]:
    """The GPUs that the container has, as they are now. Raises Unfit if they are none for us."""
    from shim.gpu.given import given
    from shim.gpu.nvml import gpus
    from shim.gpu.rules import unsupported

    found = given(work.bundle.spec(), gpus(), work.config.text("BinaryName"))
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
