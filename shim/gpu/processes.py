"""Which processes use CUDA, and doing one thing to all of them at the same time.

Pids are this machine's (of the engine's own pid namespace): those that the driver's calls take. No
call of the driver can be given up, and some have been seen that never returned: what may hang is
done in a thread that nobody waits for at the end of the engine, which leaves by os._exit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Generic, TypeVar

from shim.errors import GpuFailed, GpuLost
from shim.gpu.driver import Driver
from shim.gpu.watch import Watch

_T = TypeVar("_T")
_RETURN = 10.0  # seconds for a call to return whose process was killed; the driver's do at once
_ENDING = 10.0  # seconds for a process that is being killed to end
_HANGS = "look for Xid messages in the kernel's log; nvidia-smi hangs too if the driver does"


def cuda_processes(driver: Driver, pids: Iterable[int]) -> list[int]:
    """Those of `pids` that the driver knows, sorted. Raises GpuFailed.

    CRIU and nvidia-smi do not know them all: a process that has only called cuInit has no context,
    and a server in front of an engine process is as a rule such a one.
    """
    return [pid for pid in sorted(set(pids)) if driver.state(pid) is not None]


class _Call(Generic[_T]):
    """Something that is done in a thread of its own, and may never come to its end."""

    def __init__(self, act: Callable[[], _T]) -> None:
        self._act = act
        self._answer: list[_T] = []
        self._error: BaseException | None = None
        self._done = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._answer.append(self._act())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._error = error
        finally:
            self._done.set()

    def done(self, until: float | None) -> bool:
        """Whether it has come to its end by that moment of the monotonic clock."""
        left = None if until is None else max(0.0, until - time.monotonic())
        return self._done.wait(left)

    def answer(self) -> _T:
        """What came of it, once it is done."""
        if self._error is not None:
            raise self._error
        return self._answer[0]


def within(seconds: float, act: Callable[[], _T]) -> _T:
    """What `act` answers, which asks the driver something. Raises GpuFailed if it takes longer."""
    call = _Call(act)
    if not call.done(time.monotonic() + seconds):
        raise GpuFailed(f"the NVIDIA driver has not answered within {seconds:g} s", hint=_HANGS)
    return call.answer()


def each(
    act: Callable[[int], None],
    pids: Sequence[int],
    seconds: float | None = None,
    kill: Callable[[int], None] | None = None,
) -> dict[int, GpuFailed]:
    """Do something to every process, to all at the same time; answers what went wrong for whom.

    It is waited for all of them, so that nobody is at work on a process when this returns. The
    driver's calls release the interpreter lock, and those for several processes overlap completely
    (measured, two of 2 GiB each on one H100). After `seconds`, if there is such a limit, `kill`
    ends whoever is not done, for whom the failure is GpuLost: nothing but that makes a call return.
    """
    calls = {pid: _Call(partial(act, pid)) for pid in pids}
    end = None if seconds is None else time.monotonic() + seconds
    hanging = [pid for pid, call in calls.items() if not call.done(end)]
    for pid in hanging:
        if kill is not None:
            kill(pid)
    end = time.monotonic() + _RETURN
    for pid in hanging:
        calls[pid].done(end)
    failures: dict[int, GpuFailed] = {}
    for pid in sorted(calls):
        if pid in hanging:
            said = f"process {pid}: the NVIDIA driver is not done with it after {seconds:g} s"
            failures[pid] = GpuLost(said, hint=_HANGS)
            continue
        try:
            calls[pid].answer()
        except GpuFailed as error:
            failures[pid] = error
    return failures


def all_of(failures: dict[int, GpuFailed]) -> GpuFailed:
    """One error for several; there is at least one. Each names its process."""
    first = next(iter(failures.values()))
    lost = any(isinstance(error, GpuLost) for error in failures.values())
    leaf = GpuLost if lost else GpuFailed
    return leaf("; ".join(e.message for e in failures.values()), hint=first.hint)


def ended_over_it(driver: Driver, failed: Iterable[int], watch: Watch) -> set[int]:
    """All that have ended, given for whom a call has failed: a killed one takes a while to end.

    The driver answers, and knows nothing of it any more, as soon as the signal is there.
    """
    ending = []
    for pid in failed:
        with suppress(GpuFailed):
            ending += [pid] if driver.state(pid) is None else []
    watch.wait(ending, _ENDING)
    return watch.ended()


def is_stopped(pid: int) -> bool:
    """Whether a signal (SIGSTOP) or a tracer has stopped it: no thread of it can do anything."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "Tt"
    except (FileNotFoundError, ProcessLookupError):
        return False
