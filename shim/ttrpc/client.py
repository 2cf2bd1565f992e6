"""A blocking ttrpc client, for any number of threads over one connection.

There is no reading thread: of the callers that wait, one reads for all. The connection is not
made anew when it breaks; whoever wants that makes a new client.
"""

from __future__ import annotations

import os
import select
import time

from shim.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    Denied,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    StoreFull,
    ThawError,
    Unavailable,
    Unimplemented,
    Unknown,
)
from shim.lean.sockets import MSG_NOSIGNAL, SHUT_RDWR, Socket, stream
from shim.lean.threads import Condition, Lock
from shim.proto.ttrpc_pb import Request, Response
from shim.proto.wire import WireError
from shim.ttrpc.frames import REQUEST, RESPONSE, Frame, FrameTooBig, Reader, pack, too_big

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self, TypeVar

    from shim.proto.wire import Message

    M = TypeVar("M", bound=Message)

_CHUNK = 64 << 10
_PATH = 107  # bytes of sun_path before its final zero
_LEAVES: dict[int, type[ThawError]] = {
    leaf.code: leaf
    for leaf in (
        Cancelled,
        Unknown,
        InvalidArgument,
        DeadlineExceeded,
        NotFound,
        AlreadyExists,
        Denied,
        StoreFull,
        FailedPrecondition,
        Unimplemented,
        Unavailable,
    )
}


class Client:
    """A connection to the server at `address`; Unavailable if there is none.

    An address is a path, with or without `unix://`, or an abstract name after `@` or a zero.
    `timeout` is for connecting, in seconds.
    """

    def __init__(self, address: str, *, timeout: float = 5.0) -> None:
        self.address = address
        self._sock = connect(address, timeout)
        self._sock.setblocking(False)
        self._reader = Reader()
        self._sending = Lock()
        self._changed = Condition()
        self._answers: dict[int, Frame | None] = {}
        self._next_stream = 1
        self._reading = False
        self._broken = ""

    def call(
        self,
        service: str,
        method: str,
        request: Message,
        response: type[M],
        timeout: float | None = None,
    ) -> M:
        """Return the answer; raise the ThawError leaf of its status code.

        Raises Unavailable if the connection breaks and DeadlineExceeded after `timeout` seconds,
        which the server is told of; None waits for ever.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        body = Request(
            service=service,
            method=method,
            payload=request.encode(),
            timeout_nano=0 if timeout is None else max(1, int(timeout * 1e9)),
        ).encode()
        stream = self._send(body, deadline)
        try:
            return _unwrap(self._wait(stream, deadline), response)
        finally:
            with self._changed:
                del self._answers[stream]

    def close(self) -> None:
        """Close the connection; callers that still wait get Unavailable."""
        self._break("the client has been closed")
        # The descriptor's number must not be used again while somebody polls it.
        with self._sending, self._changed:
            while self._reading:
                self._changed.wait()
            self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, body: bytes, deadline: float | None) -> int:
        # One at a time: streams must reach the server in the order of their numbers.
        with self._sending:
            with self._changed:
                if self._broken:
                    raise Unavailable(self._broken)
                stream = self._next_stream
                frame = pack(stream, REQUEST, body)
                self._next_stream += 2
                self._answers[stream] = None
            try:
                self._write(frame, deadline)
            except ThawError:
                del self._answers[stream]
                raise
            return stream

    def _write(self, frame: bytes, deadline: float | None) -> None:
        rest = memoryview(frame)
        while rest:
            try:
                rest = rest[self._sock.send(rest, MSG_NOSIGNAL) :]
            except BlockingIOError:
                if self._ready(select.POLLOUT, deadline):
                    continue
                why = f"{self.address} takes no more requests"
                if len(rest) < len(frame):
                    self._break(why)  # part of a frame is out: no other can follow it
                raise DeadlineExceeded(why) from None
            except OSError as error:
                self._break(f"connection to {self.address} broke: {error.strerror}")
                raise Unavailable(self._broken) from None

    def _wait(self, stream: int, deadline: float | None) -> Frame:
        with self._changed:
            while True:
                frame = self._answers[stream]
                if frame is not None:
                    return frame
                if self._broken:
                    raise Unavailable(self._broken)
                left = _left(deadline)
                if left == 0:
                    raise DeadlineExceeded(f"no answer from {self.address} in time")
                if self._reading:
                    self._changed.wait(left)
                else:
                    self._read(deadline)

    def _read(self, deadline: float | None) -> None:
        """Read once, for everybody; called with the lock held, which is let go meanwhile."""
        self._reading = True
        self._changed.release()
        data = None
        try:
            if self._ready(select.POLLIN, deadline):
                data = self._receive()
        finally:
            self._changed.acquire()
            self._reading = False
            self._changed.notify_all()
        if data == b"":
            self._broken = self._broken or f"{self.address} closed the connection"
        for frame in self._reader.feed(data or b""):
            # Answers nobody waits for any more are dropped.
            if frame.kind == RESPONSE and frame.stream in self._answers:
                self._answers[frame.stream] = frame

    def _receive(self) -> bytes | None:
        try:
            return self._sock.recv(_CHUNK)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _ready(self, event: int, deadline: float | None) -> bool:
        poll = select.poll()
        poll.register(self._sock, event)
        left = _left(deadline)
        return bool(poll.poll(None if left is None else left * 1000))

    def _break(self, why: str) -> None:
        with self._changed:
            self._broken = self._broken or why
            self._changed.notify_all()
        try:
            self._sock.shutdown(SHUT_RDWR)  # wakes whoever polls it
        except OSError:
            pass  # it was down already


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _unwrap(frame: Frame, response: type[M]) -> M:
    if frame.body is None:
        raise FrameTooBig(too_big(frame.length))
    try:
        answer = Response.decode(frame.body)
        if answer.status is None or answer.status.code == 0:
            return response.decode(answer.payload)
    except WireError as error:
        raise Unknown(f"the answer cannot be read: {error}") from None
    leaf = _LEAVES.get(answer.status.code)
    if leaf is None:
        raise Unknown(f"{answer.status.message} (status code {answer.status.code})")
    raise leaf(answer.status.message)


def connect(address: str, timeout: float) -> Socket:
    """Return a socket connected to `address`, see Client."""
    name = address.removeprefix("unix://")
    sock = stream()
    try:
        sock.settimeout(timeout)
        if name.startswith(("@", "\0")):
            sock.connect("\0" + name[1:])
        elif len(os.fsencode(name)) <= _PATH:
            sock.connect(name)
        else:
            _connect_long(sock, name)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise Unavailable(f"cannot connect to {address}: {reason}") from None
        raise
    return sock


def _connect_long(sock: Socket, path: str) -> None:
    """Connect to a path too long for a socket address, by way of its folder's descriptor."""
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{folder}/{os.path.basename(path)}"
        if len(os.fsencode(short)) > _PATH:
            raise InvalidArgument(f"{path} has a name too long for a socket")
        sock.connect(short)
    finally:
        os.close(folder)
