"""What engines and the command line ask of the holder.

A restore never depends on it: where there is no holder, or it does not have what is wanted, the
engine makes GPU memory and fills it by itself.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from shim import log
from shim.cache.wire import (
    BATCH,
    key_of,
    peer,
    raise_error,
    receive,
    receive_files,
    send,
    socket_path,
)
from shim.config import Config
from shim.errors import ThawError, Unavailable
from shim.gpu.memory.index import Stored
from shim.gpu.memory.making import Delivered, Wanted
from shim.snapshot.snapshot import Snapshot

_ASKING = 1.0  # seconds for an answer that needs no work
_WAITING = 120.0  # seconds for the next word: memory of what is dropped is given back first
_FILLING = 15.0  # seconds for a fill, and one more for every GiB: it does 20 and more in one
_GIB = 1 << 30
_START = "systemctl start thaw-cache; cache.size must not be 0"


class Lost(Exception):
    """The holder is gone, or not to be understood, while it had regions: it may have them yet."""


class Cached:
    """What the cache may have of one snapshot, for one restore."""

    def __init__(self, address: str, key: str, path: Path) -> None:
        self._address = address
        self._key = key
        self._path = path
        self._lock = threading.Lock()  # of the two that follow
        self._filling: socket.socket | None = None
        self._cancelled = False

    def has(self) -> bool:
        """Whether it is there now; False if nobody can tell."""
        try:
            with closing(_connected(self._address, _ASKING)) as sock:
                send(sock, {"verb": "has", "key": self._key})
                return (receive(sock) or {}).get("here") is True
        except (OSError, ValueError):
            return False

    def fill(self, wanted: Sequence[Wanted], made: Callable[[], None]) -> list[Delivered] | None:
        """Have regions made and filled; all of them, by number, once all is in its place.

        `made` is called when all have come, filled or not. None if the cache cannot do it: it has
        no region then. Raises Lost.
        """
        try:
            sock = _connected(self._address, _ASKING)
        except OSError:
            return None
        with closing(sock):
            with self._lock:
                if self._cancelled:
                    return None
                self._filling = sock
            try:
                return _delivered(sock, wanted, made) if self._is_here(sock, wanted) else None
            finally:
                with self._lock:
                    self._filling = None

    def offer(self) -> None:
        """Have it read in, if there is room for it: it was wanted, and is likely to be again."""
        try:
            with closing(_connected(self._address, _ASKING)) as sock:
                send(sock, {"verb": "take", "path": str(self._path), "wait": False})
        except (OSError, ValueError):
            pass  # nobody is there

    def cancel(self) -> None:
        """Nobody waits for a fill any more; from any thread."""
        with self._lock:
            self._cancelled = True
            if self._filling is not None:
                with suppress(OSError):
                    self._filling.shutdown(socket.SHUT_RDWR)

    def _is_here(self, sock: socket.socket, wanted: Sequence[Wanted]) -> bool:
        gpus = list(dict.fromkeys(region.uuid for region in wanted))
        try:
            send(
                sock,
                {
                    "verb": "fill",
                    "key": self._key,
                    "gpus": [uuid.hex() for uuid in gpus],
                    "regions": [[gpus.index(one.uuid), one.size, one.rdma] for one in wanted],
                },
            )
            answer = receive(sock) or {}
            raise_error(answer)
        except (OSError, ValueError, ThawError) as error:
            log.debug("the cache has nothing for us", reason=str(error))
            return False
        return answer.get("here") is True


def of(config: Config, snapshot: Snapshot, stored: Stored) -> Cached | None:
    """The cache's for a restore of that snapshot; None if there shall be no cache."""
    if config.number("cache.size") <= 0:
        return None
    return Cached(socket_path(config), key_of(snapshot.path, stored), snapshot.path)


def holder(config: Config) -> int:
    """The holder's pid; 0 if there is none, shall be none, or it is in another pid namespace."""
    if config.number("cache.size") <= 0:
        return 0
    try:
        with closing(_connected(socket_path(config), _ASKING)) as sock:
            pid, _ = peer(sock)
    except OSError:
        return 0
    return pid


def ask(config: Config, message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All answers to a message, one after another. Raises Unavailable, and what was answered."""
    address = socket_path(config)
    try:
        with closing(_connected(address, _WAITING)) as sock:
            send(sock, message)
            while (answer := receive(sock)) is not None:
                raise_error(answer)
                yield answer
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
        raise Unavailable(f"no cache answers at {address}: {reason}", hint=_START) from error


def answer(config: Config, message: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a message that has one. Raises as `ask`, also if there is none after all."""
    for found in ask(config, message):
        return found
    raise Unavailable(f"the cache at {socket_path(config)} has hung up", hint="try again")


def _delivered(
    sock: socket.socket, wanted: Sequence[Wanted], made: Callable[[], None]
) -> list[Delivered] | None:
    """Take all regions, and wait. Raises Lost if it cannot be known what becomes of them."""
    began = time.monotonic()
    sock.settimeout(_FILLING + sum(region.size for region in wanted) / _GIB)
    come: dict[int, Delivered] = {}
    try:
        while (answer := receive(sock) or {}).get("filled") is None:
            raise_error(answer)
            _take(sock, answer, wanted, come)
            if len(come) == len(wanted):
                made()
        if len(come) < len(wanted):
            raise ValueError("regions are missing")
    except BaseException as error:
        for region in come.values():
            region.close()
        if isinstance(error, ThawError):
            log.warning("the cache could not fill GPU memory", reason=str(error))
            return None
        if isinstance(error, (OSError, ValueError)):  # also a JSON document that is none
            raise Lost from error
        raise
    log.debug("filled from the cache", answer=json.dumps(answer), waited=time.monotonic() - began)
    return [come[number] for number in range(len(wanted))]


def _take(
    sock: socket.socket,
    answer: Mapping[str, Any],
    wanted: Sequence[Wanted],
    come: dict[int, Delivered],
) -> None:
    """The regions of one message. Raises ValueError if they are none of those to come; OSError."""
    numbers = answer.get("made")
    if not isinstance(numbers, list) or not 0 < len(numbers) <= BATCH:
        raise ValueError("no regions come")
    left = [n for n in numbers if type(n) is int and 0 <= n < len(wanted) and n not in come]
    if len(set(left)) < len(numbers):
        raise ValueError("a region comes that nobody waits for")
    for number, fd in zip(numbers, receive_files(sock, len(numbers)), strict=True):
        come[number] = Delivered(wanted[number].uuid, wanted[number].size, fd)


def _connected(address: str, seconds: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(seconds)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock
