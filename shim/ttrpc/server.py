"""The listening socket: who may connect, and how serving ends.

The listener is made by others (it is inherited across the start of the daemon), and the socket's
file is theirs to remove.
"""

from __future__ import annotations

import errno
import os
import select
import struct
import sys

from shim.lean.sockets import SO_PEERCRED, SOL_SOCKET
from shim.ttrpc.call import Call, Deferred, Method
from shim.ttrpc.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.lean.sockets import Socket
    from shim.loop import Loop, Timer
    from shim.ttrpc.call import Services

__all__ = ["Call", "Deferred", "Method", "Server"]

_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE = 0.1  # seconds without accepting when there are no descriptors left
_DRAIN = 2.0  # seconds; containerd waits three for the answer to Shutdown


class Server:
    """Serves `services` to every client of `listener` that may connect.

    `on_error` is called with each exception that a handler did not mean to raise (anything but a
    ThawError); the caller of the method only hears its type and text.
    """

    def __init__(
        self,
        loop: Loop,
        listener: Socket,
        services: Services,
        on_error: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._services = services
        self._on_error = on_error or _print
        self._sessions: set[Session] = set()
        self._listening = True
        self._drained: Callable[[], None] | None = None
        self._drain_timer: Timer | None = None
        listener.setblocking(False)
        loop.watch(listener.fileno(), select.EPOLLIN, self._accept)

    def drain(self, done: Callable[[], None], timeout: float = _DRAIN) -> None:
        """Accept no more clients, and call `done` once all answers are out; from any thread.

        Deferred calls are not waited for, and nothing is waited for longer than `timeout`
        seconds. A handler may call this: its own answer counts.
        """
        self._loop.call_soon(lambda: self._drain(done, timeout))

    def close(self) -> None:
        """Close the listener and every connection; on the loop thread, or when it has ended."""
        self._stop_listening()
        for session in list(self._sessions):
            session.close()

    def _accept(self, _mask: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            # Nothing to accept after all, or the client has gone: neither is ours to report.
            if error.errno in _EXHAUSTED:
                self._pause()
            return
        if not _may_connect(sock):
            sock.close()
            return
        session = Session(self._loop, sock, self._services, self._on_error, self._change)
        self._sessions.add(session)

    def _pause(self) -> None:
        """Look away for a moment: the listener stays readable, and epoll would spin."""
        self._loop.unwatch(self._listener.fileno())
        self._loop.call_later(_PAUSE, self._resume)

    def _resume(self) -> None:
        if self._listening:
            self._loop.watch(self._listener.fileno(), select.EPOLLIN, self._accept)

    def _stop_listening(self) -> None:
        if self._listening:
            self._listening = False
            self._loop.unwatch(self._listener.fileno())
            self._listener.close()

    def _drain(self, done: Callable[[], None], timeout: float) -> None:
        self._stop_listening()
        self._drained = done
        self._drain_timer = self._loop.call_later(timeout, self._end_drain)
        self._check_drained()

    def _check_drained(self) -> None:
        if self._drained is not None and all(session.quiet for session in self._sessions):
            self._end_drain()

    def _end_drain(self) -> None:
        done, self._drained = self._drained, None
        if self._drain_timer is not None:
            self._drain_timer.cancel()
        if done is not None:
            done()

    def _change(self, session: Session) -> None:
        if session.closed:
            self._sessions.discard(session)
        self._check_drained()


def _may_connect(sock: Socket) -> bool:
    """Whether root or our own user is at the other end; the file's mode says the same."""
    data = sock.getsockopt(SOL_SOCKET, SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(data)[1] in (0, os.geteuid())


def _print(error: BaseException) -> None:
    sys.excepthook(type(error), error, error.__traceback__)
