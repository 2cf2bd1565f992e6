"""One client's calls: requests are checked and dispatched, answers and errors sent back.

Calls run side by side and are answered in the order they finish. Everything here but the handlers
themselves runs on the loop thread, so nothing needs a lock.
"""

from __future__ import annotations

from shim.errors import InvalidArgument, ThawError, Unavailable, Unimplemented
from shim.lean import threads
from shim.proto.ttrpc_pb import Request, Response, Status
from shim.ttrpc.call import Call, Deferred
from shim.ttrpc.connection import Connection
from shim.ttrpc.frames import DATA, REQUEST, RESPONSE, FrameTooBig, pack, too_big

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.lean.sockets import Socket
    from shim.loop import Loop
    from shim.proto.wire import Message
    from shim.ttrpc.call import Method, Outcome, Services
    from shim.ttrpc.frames import Frame

_TEXT = 32 << 10  # characters of an error that are sent; a log's tail must not exceed a frame


class Session:
    """A connection and the calls that came over it."""

    def __init__(
        self,
        loop: Loop,
        sock: Socket,
        services: Services,
        on_error: Callable[[BaseException], None],
        on_change: Callable[[Session], None],
    ) -> None:
        self._loop = loop
        self._services = services
        self._on_error = on_error
        self._on_change = on_change
        self._last_stream = 0
        self._running = 0  # calls whose handlers have not returned
        self._held: dict[int, Deferred] = {}
        self._connection = Connection(loop, sock, self._frame, self._changed, self._closed)

    @property
    def closed(self) -> bool:
        """Whether the connection is gone."""
        return self._connection.closed

    @property
    def quiet(self) -> bool:
        """Whether every call but the deferred ones is answered, and the answers are out."""
        return self._running == 0 and self._connection.flushed

    def close(self) -> None:
        """Close the connection; answers that are still to come are dropped."""
        self._connection.close()

    def _changed(self) -> None:
        self._on_change(self)

    def _closed(self) -> None:
        held, self._held = self._held, {}
        self._changed()
        for deferred in held.values():
            try:
                deferred.abandon()
            except Exception as error:  # noqa: BLE001 (the others are to hear of it all the same)
                self._on_error(error)

    def _frame(self, frame: Frame) -> None:
        try:
            if frame.body is None:
                raise FrameTooBig(too_big(frame.length))
            if frame.kind == REQUEST:
                self._request(frame.stream, frame.body)
            elif frame.kind == DATA:
                raise InvalidArgument(f"stream {frame.stream} does not take data")
            # Responses and kinds of the future are ignored, as upstream does.
        except ThawError as error:
            self._answer(frame.stream, error)

    def _request(self, stream: int, body: bytes) -> None:
        # Numbers as in HTTP/2: the client's are odd and only grow.
        if stream % 2 == 0:
            raise InvalidArgument(f"stream {stream} of a client must be odd")
        if stream <= self._last_stream:
            raise InvalidArgument(f"stream {stream} comes after {self._last_stream}")
        self._last_stream = stream
        request = Request.decode(body)
        method = self._find(request.service, request.method)
        message = method.request.decode(request.payload)
        call = Call(request.service, request.method, request.timeout_nano)
        self._running += 1
        if method.inline:
            self._finish(stream, _run(method, message, call))
        else:
            self._start(stream, method, message, call)

    def _find(self, service: str, method: str) -> Method:
        methods = self._services.get(service)
        if methods is None:
            raise Unimplemented(f"service {service} is not offered")
        if method not in methods:
            raise Unimplemented(f"method {service}/{method} is not offered")
        return methods[method]

    def _start(self, stream: int, method: Method, message: Message, call: Call) -> None:
        def run() -> None:
            result = _run(method, message, call)
            self._loop.call_soon(lambda: self._finish(stream, result))

        try:
            threads.start(run)
        except RuntimeError as error:  # the cgroup's or the user's limit of tasks
            self._finish(stream, Unavailable(f"cannot run {call.method}: {error}"))

    def _finish(self, stream: int, result: Outcome | Deferred) -> None:
        self._running -= 1
        if not isinstance(result, Deferred):
            self._answer(stream, result)
        elif self._connection.closed:
            result.abandon()
        else:
            self._hold(stream, result)
        self._changed()

    def _hold(self, stream: int, deferred: Deferred) -> None:
        def deliver(outcome: Outcome) -> None:
            self._loop.call_soon(lambda: self._settle(stream, outcome))

        self._held[stream] = deferred
        deferred.subscribe(deliver)

    def _settle(self, stream: int, outcome: Outcome) -> None:
        if self._held.pop(stream, None) is not None:
            self._answer(stream, outcome)

    def _answer(self, stream: int, outcome: Outcome) -> None:
        if not isinstance(outcome, Exception):
            try:
                frame = pack(stream, RESPONSE, Response(payload=outcome.encode()).encode())
                self._connection.send(frame)
                return
            except Exception as error:  # noqa: BLE001 (whatever a handler returned is answered)
                outcome = error
        if not isinstance(outcome, ThawError):
            self._on_error(outcome)
        refusal = Response(status=_status(outcome)).encode()
        self._connection.send(pack(stream, RESPONSE, refusal))


def _run(method: Method, message: Message, call: Call) -> Outcome | Deferred:
    try:
        return method.handler(message, call)
    except Exception as error:  # noqa: BLE001 (whatever a handler raises is its answer)
        return error


def _status(error: Exception) -> Status:
    if isinstance(error, ThawError):
        code, text = error.code, str(error)
    else:
        code, text = 2, f"{type(error).__name__}: {error}"
    # Paths can hold bytes that are no UTF-8, which arrive here as lone surrogates.
    printable = text[:_TEXT].encode(errors="backslashreplace").decode()
    return Status(code=code, message=printable)
