"""What is said between the holder and others: on a socket that is root's alone.

Every message is a JSON object behind its length (four bytes, the lowest first). Descriptors come
after a message that says whose they are, all of them with one byte.

    has     {"key"}                       → {"here": bool}
    fill    {"key", "gpus", "regions"}    → {"here": bool}; if it is, then, as often as it takes
                                            until all regions have come, in any order, {"made":
                                            [number, …]} and their descriptors; and at the end
                                            {"filled": bytes, "seconds"}
    take    {"path", "wait"}              → {"queued": true}; with `wait`, {"done", "total"} now and
                                            then, and at the end {"taken": true}
    list    {}                            → store.Accounts, by the names of its fields
    drop    {"key"}                       → {"dropped": true}

The holder makes the regions, and fills them while the engine gets them. A region comes with the
number that it has in `regions`, each of which is [number in `gpus`, bytes, whether network cards
are to reach it]; once; and at most BATCH of them in a message. An engine that hangs up wants none.

Anything may be answered with {"error": {"class", "message", "hint"}} instead, also before all has
been said; after that, nothing that was asked for is done any more, and the holder has no region.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shim import errors
from shim.config import Config
from shim.errors import ThawError, Unavailable
from shim.gpu.memory.index import Stored
from shim.lean.digests import sha256

MOST = 4 << 20  # bytes of a message
BATCH = 200  # descriptors in a message; the kernel takes 253 (SCM_MAX_FD)
_LENGTH = struct.Struct("<I")
_PEER = struct.Struct("iII")  # struct ucred: pid, uid, gid


def socket_path(config: Config) -> str:
    """Where the holder listens."""
    return os.path.join(config.text("state"), "cache.sock")


def peer(sock: socket.socket) -> tuple[int, int]:
    """Pid and user of whoever has connected, or listens where we have. Raises OSError.

    The pid is 0 if it is not in our pid namespace.
    """
    pid, user, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, user


def key_of(path: Path, stored: Stored) -> str:
    """What stands for the GPU memory of the snapshot in the folder `path`: its regions, its data.

    The folder is part of it: one snapshot never gets what another one, that only says it has the
    same, has brought into the cache.
    """
    pieces = [[blob.name, blob.size] for blob in stored.sources]
    head = json.dumps([str(path), stored.regions, pieces]).encode()
    return sha256(_LENGTH.pack(len(head)) + head + stored.extents)


def send(sock: socket.socket, message: Mapping[str, Any]) -> None:
    """Send one message. Raises OSError."""
    data = json.dumps(message).encode()
    sock.sendall(_LENGTH.pack(len(data)) + data)


def receive(sock: socket.socket) -> dict[str, Any] | None:
    """The next message; None if there will be no more. Raises OSError, ValueError."""
    head = _exactly(sock, _LENGTH.size)
    if not head:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > MOST:
        raise ValueError("a message is too long")
    message = json.loads(_exactly(sock, length))
    if not isinstance(message, dict):
        raise ValueError("a message is no object")
    return message


def send_files(sock: socket.socket, files: Sequence[int]) -> None:
    """Send descriptors, BATCH of them at most. Raises OSError."""
    socket.send_fds(sock, [b"+"], files)


def receive_files(sock: socket.socket, count: int) -> list[int]:
    """So many descriptors, close-on-exec: the caller's. Raises OSError, ValueError."""
    _, files, flags, _ = socket.recv_fds(sock, 1, BATCH)
    for fd in files:  # recv_fds passes no flags on (CPython 3.11)
        os.set_inheritable(fd, False)
    if len(files) != count or flags & socket.MSG_CTRUNC:
        for fd in files:
            os.close(fd)
        raise ValueError("descriptors are missing, or too many")
    return files


def as_error(error: Exception) -> dict[str, Any]:
    """An error as it is answered."""
    hint = error.hint if isinstance(error, ThawError) else ""
    words = error.message if isinstance(error, ThawError) else str(error)
    leaf = type(error).__name__
    return {"error": {"class": leaf, "message": words or leaf, "hint": hint}}


def raise_error(answer: Mapping[str, Any]) -> None:
    """Raise what was answered, if that is an error."""
    error = answer.get("error")
    if not isinstance(error, dict):
        return
    kind = getattr(errors, str(error.get("class")), None)
    if not (isinstance(kind, type) and issubclass(kind, ThawError)):
        kind = Unavailable
    raise kind(str(error.get("message")), hint=str(error.get("hint") or ""))


def _exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes, or none at the end. Raises ValueError if it ends amid them."""
    data = b""
    while len(data) < size:
        got = sock.recv(size - len(data))
        if not got:
            if data:
                raise ValueError("a message is cut off")
            break
        data += got
    return data
