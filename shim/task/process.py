"""One process of a container, init or exec'd: its streams, its pid, its end, who waits for it."""

from __future__ import annotations

import os

from shim.errors import FailedPrecondition, NotFound
from shim.lean.sockets import receive_fds, stream
from shim.lean.threads import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from shim.task.host import Host
    from shim.task.reaper import Exit
    from shim.task.stdio import Stdio, Streams


class Process:
    """What init and exec'd processes have in common. `ended` is called on the loop thread."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.stdio: Stdio | None = None
        self.pid = 0
        self.exit: Exit | None = None
        self._waiters: list[Callable[[Exit], None]] = []
        self._gate = Lock()
        self._input_is_over = False

    def when_ended(self, callback: Callable[[Exit], None]) -> None:
        """Call `callback(exit)` once the process has ended; at once if it has."""
        with self._gate:
            if self.exit is None:
                self._waiters.append(callback)
                return
            exit = self.exit
        callback(exit)

    def set_exit(self, exit: Exit) -> bool:
        """Record the end and tell everyone who waits; False if it was recorded before."""
        recorded = self.record_exit(exit, lambda: None)
        if recorded:
            self.tell_exit()
        return recorded

    def record_exit(self, exit: Exit, report: Callable[[], None]) -> bool:
        """Record the end, after `report()`; False, and no report, if it was recorded before."""
        with self._gate:
            if self.exit is not None:
                return False
            report()
            self.exit = exit
        return True

    def tell_exit(self) -> None:
        """Tell everyone who waits for the end, which is recorded."""
        assert self.exit is not None
        with self._gate:
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter(self.exit)

    def open_stdio(
        self, host: Host, env: dict[str, str], owner: tuple[int, int], *, held: bool = False
    ) -> Stdio:
        """Open the streams, or after a failed restore open them anew.

        With `held` nothing is passed on before `release`: a restore that fails, and its worker,
        write where the output of a cold boot would go. See restoration.py for what becomes of it.

        The old ones are closed last: a FIFO that has no writer for a moment is at its end for
        containerd, which would stop reading the log.
        """
        from shim.task.stdio import Stdio

        before = self.stdio
        opened = Stdio(host.loop, host.reaper, self.streams, env, owner, held=held)
        with self._gate:
            self.stdio = opened
            if self._input_is_over:
                opened.close_stdin()
        if before is not None:
            before.close()
        return self.stdio

    def close_stdio(self) -> None:
        """Let go of the streams."""
        if self.stdio is not None:
            self.stdio.close()

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in characters; no terminal, no effect."""
        if self.stdio is not None:
            self.stdio.resize(width, height)

    def close_stdin(self) -> None:
        """End the process's input.

        A client may have written all of it as soon as the FIFO has a reader, and say so before
        the streams are all open.
        """
        with self._gate:
            self._input_is_over = True
            if self.stdio is not None:
                self.stdio.close_stdin()


class Console:
    """A socket on which runc hands over the master end of a new terminal.

    Its path must fit into 107 bytes for runc too, so it lies in the state folder, not the bundle.
    """

    def __init__(self, folder: str) -> None:
        self.path = f"{folder}/pty-{os.urandom(4).hex()}"
        self._socket = stream()
        try:
            self._socket.bind(self.path)
            self._socket.listen(1)
        except OSError as error:
            self._socket.close()
            raise FailedPrecondition(
                f"cannot make console socket {self.path}: {error}", hint="a shorter `state` folder"
            ) from error

    def receive(self) -> int:
        """The terminal that runc sent before it exited. Raises NotFound if it sent none."""
        self._socket.settimeout(10.0)
        try:
            connection, _ = self._socket.accept()
            with connection:
                connection.settimeout(10.0)
                _, fds = receive_fds(connection, 4096, 1)
        except OSError as error:
            raise NotFound(f"no terminal arrived on {self.path}: {error}") from error
        if not fds:
            raise NotFound(f"no terminal arrived on {self.path}")
        return fds[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        os.unlink(self.path)
