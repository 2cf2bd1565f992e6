"""One socket on the event loop: received frames go to a callback, sent frames to the peer.

All of it runs on the loop thread and nothing blocks: what the socket does not take at once waits
in a buffer. A peer that sends requests but does not read the answers is not read any further.
"""

from __future__ import annotations

import select

from shim.lean.sockets import MSG_NOSIGNAL
from shim.ttrpc.frames import Reader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.lean.sockets import Socket
    from shim.loop import Loop
    from shim.ttrpc.frames import Frame

_CHUNK = 64 << 10  # bytes read per turn, so that one busy peer does not starve the others
_BACKLOG = 8 << 20  # bytes unsent before reading stops: two answers of the greatest size
_GONE = select.EPOLLHUP | select.EPOLLERR


class Connection:
    """A connected stream socket, from the moment it is watched until either side closes it."""

    def __init__(
        self,
        loop: Loop,
        sock: Socket,
        on_frame: Callable[[Frame], None],
        on_flushed: Callable[[], None],
        on_close: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._on_frame = on_frame
        self._on_flushed = on_flushed
        self._on_close = on_close
        self._reader = Reader()
        self._out = bytearray()
        self._mask = select.EPOLLIN
        self.closed = False
        sock.setblocking(False)
        loop.watch(sock.fileno(), self._mask, self._ready)

    @property
    def flushed(self) -> bool:
        """Whether the peer's side has everything that was sent."""
        return self.closed or not self._out

    def send(self, frame: bytes) -> None:
        """Send a packed frame, now or when the peer takes it; dropped if the peer is gone."""
        if self.closed:
            return
        self._out += frame
        if len(self._out) == len(frame):
            self._flush()
        else:  # the socket is known to be full
            self._watch()

    def close(self) -> None:
        """Close the socket, dropping what is unsent; harmless if it is closed."""
        if self.closed:
            return
        self.closed = True
        self._loop.unwatch(self._sock.fileno())
        self._sock.close()
        self._out.clear()
        self._on_close()

    def _ready(self, mask: int) -> None:
        if mask & select.EPOLLOUT:
            self._flush()
        if mask & select.EPOLLIN and not self.closed:
            self._receive()
        elif mask & _GONE:  # while not reading, this is all that is heard of a closed peer
            self.close()

    def _receive(self) -> None:
        try:
            data = self._sock.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        for frame in self._reader.feed(data):
            if self.closed:
                return
            self._on_frame(frame)
        if not data:
            self.close()

    def _flush(self) -> None:
        try:
            while self._out:
                # MSG_NOSIGNAL: a peer that is gone is an error here, not a signal to the process.
                del self._out[: self._sock.send(self._out, MSG_NOSIGNAL)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.close()
            return
        self._watch()
        if not self._out:
            self._on_flushed()

    def _watch(self) -> None:
        mask = select.EPOLLOUT if self._out else 0
        if len(self._out) <= _BACKLOG:
            mask |= select.EPOLLIN
        if mask != self._mask:
            self._mask = mask
            self._loop.modify(self._sock.fileno(), mask)
