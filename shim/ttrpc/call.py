"""What a service looks like to the server, and what a handler sees of a call.

    Services = {service name: {method name: Method(request class, handler)}}

A handler is called with the request and a Call, and returns the response, or a Deferred that will
be given it later, or raises. ThawErrors become their status code, anything else code 2.
"""

from __future__ import annotations

import time

from shim.errors import Cancelled
from shim.lean.threads import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from shim.proto.wire import Message

    Outcome = Message | Exception
    Handler = Callable[[Any, "Call"], "Message | Deferred"]
    Services = Mapping[str, Mapping[str, "Method"]]


class Call:
    """The circumstances of one call."""

    __slots__ = ("deadline", "method", "service")

    def __init__(self, service: str, method: str, timeout_nano: int) -> None:
        self.service = service
        self.method = method
        # In seconds of time.monotonic(); None if the caller waits for ever.
        self.deadline = time.monotonic() + timeout_nano / 1e9 if timeout_nano > 0 else None

    def remaining(self) -> float | None:
        """Return the seconds the caller will still wait, never negative; None is for ever."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


class Method:
    """One method: what its request is, who answers it, and where.

    An inline handler runs on the loop thread and must not block; any other has a thread of its
    own for as long as it takes.
    """

    __slots__ = ("handler", "inline", "request")

    def __init__(self, request: type[Message], handler: Handler, inline: bool = False) -> None:
        self.request = request
        self.handler = handler
        self.inline = inline


class Deferred:
    """The answer to one call, to be given later and from any thread; the first answer counts.

    A call that waits for days holds one of these instead of a thread. `on_abandon` is called on
    the loop thread if the caller goes away first, so that the waiter can be forgotten.
    """

    __slots__ = ("_deliver", "_lock", "_outcome", "on_abandon")

    def __init__(self, on_abandon: Callable[[], None] | None = None) -> None:
        self.on_abandon = on_abandon
        self._lock = Lock()
        self._outcome: Outcome | None = None
        self._deliver: Callable[[Outcome], None] | None = None

    def resolve(self, message: Message) -> None:
        """Answer the call."""
        self._settle(message)

    def fail(self, error: Exception) -> None:
        """Answer the call with an error, as if the handler had raised it."""
        self._settle(error)

    def subscribe(self, deliver: Callable[[Outcome], None]) -> None:
        """Have the answer delivered, at once if it is there (for the session)."""
        with self._lock:
            if self._deliver is not None:
                raise RuntimeError("a Deferred answers one call only")
            if self._outcome is None:
                self._deliver = deliver
                return
        deliver(self._outcome)

    def abandon(self) -> None:
        """Note that nobody waits any longer (for the session)."""
        if self._settle(Cancelled("the caller is gone"), quietly=True) and self.on_abandon:
            self.on_abandon()

    def _settle(self, outcome: Outcome, quietly: bool = False) -> bool:
        with self._lock:
            if self._outcome is not None:
                return False
            self._outcome = outcome
            deliver, self._deliver = self._deliver, None
        if deliver is not None and not quietly:
            deliver(outcome)
        return True
