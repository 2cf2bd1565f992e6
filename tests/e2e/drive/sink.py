"""containerd's event service, as a shim sees it: what is forwarded is kept in order."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shim.loop import Loop
from shim.proto import events_pb
from shim.proto.events_pb import Envelope, ForwardRequest
from shim.proto.known import Empty, type_name, unpack
from shim.ttrpc.server import Call, Method, Server

SERVICE = "containerd.services.events.ttrpc.v1.Events"
SECONDS = 60.0


class Sink:
    """A ttrpc server on a socket of its own, with a thread of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._events: list[Envelope] = []
        self._changed = threading.Condition()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(16)
        self._loop = Loop()
        methods = {"Forward": Method(ForwardRequest, self._forward, True)}
        self._server = Server(self._loop, listener, {SERVICE: methods})
        self._thread = threading.Thread(target=self._loop.run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.stop()
        self._thread.join()
        self._server.close()
        self._loop.close()

    def envelopes(self) -> list[Envelope]:
        """Everything that has arrived so far."""
        with self._changed:
            return list(self._events)

    def events(self, container: str = "") -> list[str]:
        """What has arrived, one line each; of one container if it is named."""
        lines = [line_of(envelope) for envelope in self.envelopes()]
        return [line for line in lines if not container or f" {container}" in f"{line} "]

    def wait_for(self, reached: Callable[[list[str]], bool]) -> list[str]:
        """Wait until `reached(lines)`; the lines."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: reached([line_of(envelope) for envelope in self._events]), SECONDS
            ):
                raise TimeoutError(f"events so far: {[line_of(e) for e in self._events]}")
        return self.events()

    def wait_for_line(self, start: str) -> list[str]:
        """Wait for an event whose line begins with `start`."""
        return self.wait_for(lambda lines: any(line.startswith(start) for line in lines))

    def _forward(self, request: ForwardRequest, _call: Call) -> Empty:
        assert request.envelope is not None
        with self._changed:
            self._events.append(request.envelope)
            self._changed.notify_all()
        return Empty()


def decoded(envelope: Envelope) -> Any:
    """The event in an envelope."""
    assert envelope.event is not None
    kind = getattr(events_pb, type_name(envelope.event).rpartition(".")[2])
    return unpack(envelope.event, kind)


def line_of(envelope: Envelope) -> str:
    """An event as `topic container[/exec] [status]`, without what differs between two runs."""
    event = decoded(envelope)
    who = event.container_id
    process = getattr(event, "exec_id", "") or getattr(event, "id", "")
    if process and process != who:
        who = f"{who}/{process}"
    status = f" {event.exit_status}" if hasattr(event, "exit_status") else ""
    return f"{envelope.topic.removeprefix('/tasks/')} {who}{status}"
