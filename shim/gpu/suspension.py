"""Taking a worker's GPU state into host memory while it is dumped, and giving it back.

lock: no CUDA call of the process goes on, work that was submitted is finished. checkpoint: device
memory lies in host memory, and the process holds nothing of a GPU any more. Both are the driver's
(cuCheckpointProcessLock and …Checkpoint), from outside and per process: all are locked before the
first is checkpointed, because one that still runs could wait for one that does not.

What was done to a process is asked of the driver and never remembered: so the same few lines put
everything back after a failure, after a dump, and after an engine that was killed.

A restore that has failed is never tried again (see Driver.restore): the process is lost, and so is
its worker, which would wait for ever in its next CUDA call. That is GpuLost; whoever gets it has
to end the container.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Self

from shim.errors import GpuFailed, GpuLost, ThawError
from shim.gpu.driver import Driver
from shim.gpu.processes import all_of, each, ended_over_it, is_stopped
from shim.gpu.watch import Watch
from shim.timeline import Timeline

_CANNOT = "the worker is lost, its GPU state cannot be given back"
_OTHER = "does another tool checkpoint it? Unlock it, or restart the container"


class Area(NamedTuple):
    """A run of addresses: where it begins, and bytes."""

    address: int
    length: int


class Suspension:
    """A block in which the CUDA processes `pids` hold nothing of a GPU.

    `resume` gives their state back; so does leaving the block if it has not been called. Raises
    GpuFailed, with everything given back, if one cannot be locked within `seconds` or cannot be
    checkpointed, and GpuLost if something cannot be given back, or if the driver takes more than
    `limit` seconds over a process, which is killed then. `ready` is called before anything is
    restored, to wait for what that needs. `staging` are the mappings in which the driver has put
    device memory, per process: with 580.159.04 one that is new, between others without any access,
    of 780 MiB and what the process has on the GPU.
    """

    def __init__(
        self,
        driver: Driver,
        pids: Sequence[int],
        timeline: Timeline | None = None,
        seconds: float = 10.0,
        limit: float = 300.0,
        ready: Callable[[], object] = lambda: None,
    ) -> None:
        self.staging: dict[int, list[Area]] = {}
        self._driver = driver
        self._pids = list(pids)
        self._timeline = timeline or Timeline()
        self._seconds = seconds
        self._limit = limit
        self._ready = ready
        self._watch = Watch(())
        self._held = False

    def __enter__(self) -> Self:
        self._watch = Watch(self._pids)
        try:
            self._refuse_others_work()
            self._held = True
            with self._timeline.span("lock"):
                waits = self._seconds + self._limit
                self._do(lambda pid: self._driver.lock(pid, self._seconds), waits)
            before = self._mapped()
            with self._timeline.span("device"):
                self._do(self._driver.checkpoint, self._limit)
            self.staging = _appeared(before, self._mapped())
            self.check()
        except BaseException as error:
            self._leave(error)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._leave(error)

    def check(self) -> None:
        """Raise GpuFailed if a process has ended: a snapshot of the rest would be of no use."""
        ended = self._watch.ended()
        if ended:
            words = ", ".join(map(str, sorted(ended)))
            raise GpuFailed(
                f"process {words} ended before the snapshot was made",
                hint="has the worker been killed? There is none to be restored",
            )

    def resume(self) -> None:
        """Restore and unlock all of them, once; one that has ended is passed over.

        Raises GpuLost if that is not possible.
        """
        held, self._held = self._held, False
        if not held:
            return
        with self._timeline.span("device back"):
            self._ready()
            failures = give_back(self._driver, self._pids, self._watch, self._limit)
        if failures:
            raise _lost(failures)

    def _leave(self, error: BaseException | None) -> None:
        """Whatever ends the block: `error` is what the caller hears, and what more came of it."""
        try:
            self.resume()
        except GpuLost as lost:
            if isinstance(error, ThawError):
                both = f"{error.message}\n{lost.message}"
                raise GpuLost(both, hint=lost.hint) from error
            raise
        finally:
            self._watch.close()

    def _refuse_others_work(self) -> None:
        for pid in self._pids:
            state = self._driver.state(pid)
            if state != "running":
                raise GpuFailed(f"process {pid} is {state or 'gone'} for CUDA", hint=_OTHER)
            if is_stopped(pid):  # it is a thread of its own that does what the driver is asked for
                raise GpuFailed(f"process {pid} is stopped", hint="let it go on: kill -CONT")

    def _do(self, act: Callable[[int], None], limit: float) -> None:
        failures = each(act, self._pids, limit, self._watch.kill)
        if not failures:
            return
        told = all_of(failures)
        if not isinstance(told, GpuLost):
            ended_over_it(self._driver, failures, self._watch)
            self.check()  # what has ended could not be locked either
        raise told

    def _mapped(self) -> dict[int, list[Area]]:
        return {pid: anonymous_areas(pid) for pid in self._pids}


def give_back(
    driver: Driver, pids: Sequence[int], watch: Watch, limit: float
) -> dict[int, GpuFailed]:
    """Restore whoever is checkpointed, then unlock whoever is locked; answers who could not be.

    Each is helped whatever becomes of the others, and has `limit` seconds for each of the two.
    Those that run, or have ended, need nothing.
    """

    def restore(pid: int) -> None:
        if driver.state(pid) == "checkpointed":
            driver.restore(pid)

    def unlock(pid: int) -> None:
        state = driver.state(pid)
        if state == "locked":
            driver.unlock(pid)
        elif state not in ("running", None):
            raise GpuFailed(f"process {pid} is {state} for CUDA")

    ended = watch.ended()
    there = [pid for pid in pids if pid not in ended]
    failures = each(restore, there, limit, watch.kill)
    failures |= each(unlock, [pid for pid in there if pid not in failures], limit, watch.kill)
    ended = ended_over_it(driver, failures, watch)
    return {
        pid: error
        for pid, error in sorted(failures.items())
        if pid not in ended or isinstance(error, GpuLost)  # that one was killed for it
    }


def recover(driver: Driver, pids: Sequence[int], limit: float = 300.0) -> None:
    """Let processes go on that an engine which died had suspended. Raises GpuLost."""
    with Watch(pids) as watch:
        failures = give_back(driver, pids, watch, limit)
    if failures:
        raise _lost(failures)


def _lost(failures: dict[int, GpuFailed]) -> GpuLost:
    told = all_of(failures)
    return GpuLost(f"{_CANNOT}: {told.message}", hint=told.hint)


def anonymous_areas(pid: int) -> list[Area]:
    """The anonymous, private, readable and writable mappings of a process, by address.

    None if it has ended. See proc_pid_maps(5).
    """
    areas: list[Area] = []
    try:
        with open(f"/proc/{pid}/maps") as file:
            for line in file:
                words = line.split(maxsplit=5)
                named = words[5].strip() if len(words) > 5 else ""
                if words[1] != "rw-p" or words[4] != "0" or not _is_anonymous(named):
                    continue
                begin, end = (int(part, 16) for part in words[0].split("-"))
                areas.append(Area(begin, end - begin))
    except (FileNotFoundError, ProcessLookupError):
        return []
    return areas


def _is_anonymous(name: str) -> bool:
    """A heap and a stack grow by themselves; [anon:…] is a name that the process has given."""
    return not name or name.startswith("[anon:")


def _appeared(
    before: Mapping[int, Iterable[Area]], after: Mapping[int, Iterable[Area]]
) -> dict[int, list[Area]]:
    return {pid: beyond(before.get(pid, ()), areas) for pid, areas in after.items()}


def beyond(before: Iterable[Area], after: Iterable[Area]) -> list[Area]:
    """What of `after` was not in `before`, adjoining areas as one. Both are sorted, by address.

    By addresses and not by whole mappings: the kernel makes one of two that adjoin.
    """
    known = list(before)
    new: list[Area] = []
    first = 0  # of `known` that can still matter
    for address, length in after:
        begin, end = address, address + length
        while first < len(known) and sum(known[first]) <= begin:
            first += 1
        place = first
        while begin < end:
            there = known[place] if place < len(known) else Area(end, 0)
            stop = min(max(there.address, begin), end)
            if stop > begin:
                _append(new, begin, stop)
            begin = max(begin, min(sum(there), end)) if there.length else end
            place += 1
    return new


def _append(areas: list[Area], begin: int, end: int) -> None:
    if areas and sum(areas[-1]) == begin:
        areas[-1] = Area(areas[-1].address, end - areas[-1].address)
    else:
        areas.append(Area(begin, end - begin))
