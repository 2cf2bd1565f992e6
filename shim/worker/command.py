"""A command in a container with an end: what runs there is killed when its time is over.

Killing `runc exec` would not do that, as the command goes on without it. So everything that
descends from it is killed, and everything in a session that one of these leads: a command whose
parent ended is init's child then, but still of its session. What has made a session of its own and
lost its parent since is a daemon, which was meant to stay.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from shim import spawn
from shim.bundle import read_pid
from shim.worker.readable import rest_of

_ERRORS = 4096  # bytes of stderr that are kept
_CHUNK = 65536
_GRACE = 2.0  # seconds for the runtime to see that its command has ended
_ROUNDS = 50


@dataclass(frozen=True)
class Done:
    """How it ended: the exit status (128 + signal), and what it wrote."""

    status: int
    stdout: bytes
    stderr: bytes
    timed_out: bool = False
    too_much: bool = False


class Command:
    """A running `runc exec`; leaving the block ends it and what it has started.

    runc itself waits until nobody has the output open any longer: a daemon must be given another.
    """

    def __init__(
        self, call: Callable[[str], Sequence[str]], env: Mapping[str, str], folder: str
    ) -> None:
        """`call` is given where the command's pid is to be written: into `folder`.

        That one is the container's, so that nothing is left of a process that was killed over it.
        """
        self._call = call
        self._env = env
        self._pid_file = f"{folder}/command-{os.urandom(8).hex()}.pid"
        self._pid = 0
        self._fds: list[int] = []

    def __enter__(self) -> Self:
        out, out_child = os.pipe2(os.O_CLOEXEC)
        error, error_child = os.pipe2(os.O_CLOEXEC)
        self._fds = [out, error]
        try:
            fds = {1: out_child, 2: error_child}
            # Should we be killed over it, it goes on, and must not look to the daemon like us.
            self._pid = spawn.spawn(self._call(self._pid_file), self._env, fds, alone=True)
            self._fds.append(os.pidfd_open(self._pid))
        except BaseException:
            self._close()
            raise
        finally:
            os.close(out_child)
            os.close(error_child)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
        self._close()

    def wait(self, seconds: float, most: int) -> Done:
        """Wait for its end, at most so long and for so many bytes of output."""
        ends = time.monotonic() + seconds
        out, error, ended = self._fds
        said: dict[int, bytes] = {out: b"", error: b""}
        poll = select.poll()
        for fd in self._fds:
            poll.register(fd, select.POLLIN)
        over = False
        while not over:
            left = ends - time.monotonic()
            if left <= 0:
                return Done(-1, said[out], said[error], timed_out=True)
            ready = dict(poll.poll(left * 1000))
            over = ended in ready  # what it left in the pipes is there by now
            for fd in said.keys() & ready.keys():
                said[fd] += _read(fd, poll)
            said[error] = said[error][-_ERRORS:]
            if len(said[out]) > most:
                return Done(-1, said[out][:most], said[error], too_much=True)
        for fd in said:
            said[fd] += rest_of(fd, most + 1)
        if len(said[out]) > most:
            return Done(-1, said[out][:most], said[error], too_much=True)
        status = spawn.exit_status(os.waitpid(self._pid, 0)[1])
        self._pid = 0
        return Done(status, said[out], said[error][-_ERRORS:])

    def _end(self) -> None:
        """Kill all of it, but the runtime itself: it has to see to what it has begun."""
        if not self._pid:
            return
        *outputs, ended = self._fds
        for fd in outputs:  # the runtime must not wait for us to read on
            os.close(fd)
        self._fds = [ended]
        seen = {read_pid(self._pid_file)} - {0}  # it may have ended; its session goes on
        for _ in range(_ROUNDS):
            members = family(self._pid, seen)
            seen |= members
            for pid in members:
                _kill(pid)
            if select.select([ended], [], [], _GRACE / _ROUNDS)[0] and not members:
                break
        else:
            _kill(self._pid)
        os.waitpid(self._pid, 0)
        self._pid = 0

    def _close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        with suppress(FileNotFoundError):
            os.unlink(self._pid_file)


def family(ancestor: int, leaders: AbstractSet[int] = frozenset()) -> set[int]:
    """All that descend from a process, and the sessions that they lead; without itself.

    `leaders` have descended from it, too, and may have ended since.
    """
    everyone = list(_processes())
    members: set[int] = set()
    while True:
        more = {
            pid
            for pid, parent, session in everyone
            if pid != ancestor
            and (parent == ancestor or parent in members or session in members | leaders)
        }
        if more == members:
            return members
        members = more


def _processes() -> list[tuple[int, int, int]]:
    """Pid, parent and session of every process that is not a zombie; proc(5)."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue  # it has ended
        if fields[0] not in b"ZX":
            found.append((int(name), int(fields[1]), int(fields[3])))
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        pass


def _read(fd: int, poll: select.poll) -> bytes:
    data = os.read(fd, _CHUNK)
    if not data:
        poll.unregister(fd)
    return data
