"""Any and Timestamp made convenient; the only hand-written messages code.

containerd names the type of an Any by its bare full name, others put a URL before it, so types are
compared after the last slash. Times are nanoseconds since the epoch, as time.time_ns() gives.
"""

from __future__ import annotations

import time

from shim.proto.known_pb import Any, Empty, Timestamp
from shim.proto.wire import Message, WireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    M = TypeVar("M", bound=Message)

__all__ = ["Any", "Empty", "Timestamp", "nanoseconds", "now", "pack", "timestamp", "type_name"]
__all__ += ["unpack"]

_SECOND = 1_000_000_000


def pack(message: Message) -> Any:
    """Return the message in an Any, named as containerd does."""
    return Any(type_url=message.TYPE, value=message.encode())


def type_name(packed: Any | None) -> str:
    """Return the full name of what an Any holds; empty if there is none."""
    return packed.type_url.rpartition("/")[2] if packed is not None else ""


def unpack(packed: Any | None, cls: type[M]) -> M:
    """Return what an Any holds as a `cls`; WireError if it holds anything else.

    The name is checked before the bytes are read: messages of different types often decode as
    each other, and a configuration file has been taken for a cgroup path that way.
    """
    if packed is None or type_name(packed) != cls.TYPE:
        raise WireError(f"expected {cls.TYPE}, not {type_name(packed) or 'nothing'}")
    return cls.decode(packed.value)


def timestamp(ns: int) -> Timestamp:
    """Return nanoseconds since the epoch as a Timestamp."""
    return Timestamp(seconds=ns // _SECOND, nanos=ns % _SECOND)


def now() -> Timestamp:
    """Return the present moment as a Timestamp."""
    return timestamp(time.time_ns())


def nanoseconds(moment: Timestamp) -> int:
    """Return a Timestamp as nanoseconds since the epoch."""
    return moment.seconds * _SECOND + moment.nanos
