"""Logging programs (`binary://` and `binary-v2://` streams).

The contract is containerd's: the program gets stdout's read end as descriptor 3, stderr's as 4
and the write end of a "ready" pipe as 5, CONTAINER_ID and CONTAINER_NAMESPACE in its environment,
and the URI's query as arguments. `binary` takes a closed ready pipe for ready; `binary-v2`
(containerd 2.2) wants one byte first.
"""

from __future__ import annotations

import os
import select

from shim.errors import InvalidArgument, Unavailable
from shim.lean import signals
from shim.lean.threads import Event

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from shim.task.reaper import Exit, Reaper

READY_TIMEOUT = 10.0  # seconds until a logging program must have said that it is ready
END_TIMEOUT = 3.0  # seconds to write out its last lines before SIGTERM, and again before SIGKILL


def is_binary(uri: str) -> bool:
    """Whether a stream's name asks for a logging program."""
    return uri.startswith(("binary://", "binary-v2://"))


class LoggingProgram:
    """A running logging program and the pipes between it and the container."""

    def __init__(self, reaper: Reaper, uri: str, env: Mapping[str, str], *, terminal: bool) -> None:
        self._reaper = reaper
        self._ended = Event()
        self._writers: dict[int, int] = {}
        ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
        readers: dict[int, int] = {5: ready_write}
        try:
            for number in (1, 2):
                readers[number + 2], self._writers[number] = os.pipe2(os.O_CLOEXEC)
            self._pid = reaper.start(_argv(uri), env, readers, self._exited)
        except BaseException:
            self.close_pipes()
            os.close(ready_read)
            raise
        finally:
            for fd in readers.values():
                os.close(fd)
        try:
            _await_ready(ready_read, uri)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(ready_read)
        if terminal:  # one stream only
            os.close(self._writers.pop(2))

    def child_fds(self) -> dict[int, int]:
        """The container's ends, by descriptor number; the caller owns them from now on."""
        fds, self._writers = self._writers, {}
        return fds

    def take_stdout(self) -> int:
        """The write end of stdout, for copying a terminal's output into it."""
        return self._writers.pop(1)

    def close_pipes(self) -> None:
        """Drop our write ends: the program sees the end when the container's are closed too."""
        for fd in self.child_fds().values():
            os.close(fd)

    def close(self) -> None:
        """Wait for the program to write out what it has, then ask it to end, then make it."""
        self.close_pipes()
        for signum in (0, signals.SIGTERM, signals.SIGKILL):
            if signum:
                self._reaper.kill(self._pid, signum)
            if self._ended.wait(END_TIMEOUT):
                return

    def _exited(self, _exit: Exit) -> None:
        self._ended.set()


def _await_ready(fd: int, uri: str) -> None:
    if not select.select([fd], [], [], READY_TIMEOUT)[0]:
        raise Unavailable(
            f"logging program {uri!r} was not ready within {READY_TIMEOUT:.0f} s",
            hint="it must close descriptor 5 once it reads",
        )
    if not os.read(fd, 1) and uri.startswith("binary-v2://"):
        raise Unavailable(
            f"logging program {uri!r} ended before it was ready", hint="see its own log"
        )


def _argv(uri: str) -> list[str]:
    from urllib.parse import parse_qsl, urlsplit

    parts = urlsplit(uri)
    if not os.path.isabs(parts.path):
        raise InvalidArgument(f"logging program in {uri!r} has no absolute path")
    arguments = [word for pair in parse_qsl(parts.query, True) for word in pair if word]
    return [parts.path, *arguments]
