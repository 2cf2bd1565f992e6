"""What engines and the command line ask of the holder.

A restore never depends on it: where there is no holder, or it does not have what is wanted, the
engine fills GPU memory by itself.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from shim import log
from shim.cache.records import with_data
from shim.cache.wire import (
    BATCH,
    key_of,
    raise_error,
    receive,
    send,
    send_files,
    socket_path,
)
from shim.config import Config
from shim.errors import ThawError, Unavailable
from shim.gpu.memory.index import Stored
from shim.gpu.memory.making import Batch, Wanted
from shim.snapshot.snapshot import Snapshot

_ASKING = 1.0  # seconds for an answer that needs no work
_WAITING = 120.0  # seconds for the next word: memory of what is dropped is given back first
_FILLING = 15.0  # seconds for a fill, and one more for every GiB: it does 20 and more in one
_GIB = 1 << 30
_START = "systemctl start thaw-cache; cache.size must not be 0"


class Lost(Exception):
    """The holder is gone while it had regions: it may write to them yet."""


class Cached:
    """What the cache may have of one snapshot, for one restore; `needed`: regions with data."""

    def __init__(self, address: str, key: str, path: Path, needed: Collection[int]) -> None:
        self._address = address
        self._key = key
        self._path = path
        self._needed = needed
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

    def fill(self, wanted: Sequence[Wanted], coming: Iterable[Batch]) -> bool:
        """Have regions, which are all zeros, filled as they come; True if all is in its place.

        `coming` are those of `wanted`, with their numbers; what has no data is not waited for. If
        it is False, others may fill them. Raises Lost, and whatever `coming` does or GpuFailed if a
        region cannot be handed over: then they are of no use to anybody.
        """
        batches = iter(coming)
        first = next(batches, [])  # the holder waits for nobody who has yet to load a driver
        try:
            sock = _connected(self._address, _ASKING)
        except OSError:
            return False
        with closing(sock):
            with self._lock:
                if self._cancelled:
                    return False
                self._filling = sock
            try:
                return self._is_here(sock, wanted) and _filled(
                    sock, wanted, self._needed, chain([first], batches)
                )
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
                    "regions": [[gpus.index(region.uuid), region.size] for region in wanted],
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
    needed = with_data(stored.extents)
    return Cached(socket_path(config), key_of(snapshot.path, stored), snapshot.path, needed)


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


def _filled(
    sock: socket.socket, wanted: Sequence[Wanted], needed: Collection[int], coming: Iterable[Batch]
) -> bool:
    """Hand the regions over and wait. Raises Lost if it cannot be known what becomes of them."""
    began = time.monotonic()
    sock.settimeout(_FILLING + sum(region.size for region in wanted) / _GIB)
    _send_all(sock, set(needed), coming)
    try:
        answer = receive(sock)
    except (OSError, ValueError) as error:  # also a JSON document that is none
        raise Lost from error
    if answer is None:
        raise Lost
    try:
        raise_error(answer)
    except ThawError as error:
        log.warning("the cache could not fill GPU memory", reason=str(error))
        return False
    log.debug("filled from the cache", answer=json.dumps(answer), waited=time.monotonic() - began)
    return True


def _send_all(sock: socket.socket, left: set[int], coming: Iterable[Batch]) -> None:
    """Hand over those that are `left`, as they come. Raises Lost if the holder does not listen."""
    for batch in coming:
        given = [(number, region) for number, region in batch if number in left]
        left.difference_update(number for number, _ in given)
        try:
            for at in range(0, len(given), BATCH):
                _send_some(sock, given[at : at + BATCH])
        except TimeoutError as error:
            raise Lost from error
        except OSError:
            return  # it has hung up, and may have said why
        if not left:
            return


def _send_some(sock: socket.socket, given: Batch) -> None:
    files: list[int] = []
    try:
        files.extend(region.descriptor() for _, region in given)
        send(sock, {"made": [number for number, _ in given]})
        send_files(sock, files)
    finally:
        for fd in files:
            os.close(fd)


def _connected(address: str, seconds: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(seconds)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock
