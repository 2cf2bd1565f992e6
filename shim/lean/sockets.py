"""Unix sockets as in `socket`, on `_socket` alone."""

from __future__ import annotations

import _socket
from _socket import (
    AF_UNIX,
    MSG_NOSIGNAL,
    SCM_RIGHTS,
    SHUT_RDWR,
    SO_PEERCRED,
    SOCK_CLOEXEC,
    SOCK_STREAM,
    SOL_SOCKET,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from socket import socket as Socket  # noqa: N812
    from typing import Self
else:

    class Socket(_socket.socket):
        """`socket.socket` as far as a stream socket needs it."""

        __slots__ = ()

        def accept(self) -> tuple[Socket, object]:
            """The next connection and its peer's address."""
            fd, address = self._accept()
            return Socket(fileno=fd), address

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()


__all__ = [
    "AF_UNIX",
    "MSG_NOSIGNAL",
    "SHUT_RDWR",
    "SOCK_CLOEXEC",
    "SOCK_STREAM",
    "SOL_SOCKET",
    "SO_PEERCRED",
    "Socket",
    "pair",
    "receive_fds",
    "send_fds",
    "stream",
]

_INT = 4  # bytes of a descriptor number


def stream() -> Socket:
    """A new Unix stream socket, closed on exec."""
    return Socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)


def pair() -> tuple[Socket, Socket]:
    """Two connected stream sockets, closed on exec."""
    one, other = _socket.socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    return Socket(fileno=one.detach()), Socket(fileno=other.detach())


def send_fds(sock: Socket, data: bytes, fds: Sequence[int]) -> int:
    """Send data with descriptors; bytes sent."""
    packed = b"".join(fd.to_bytes(_INT, "little") for fd in fds)
    return sock.sendmsg([data], [(SOL_SOCKET, SCM_RIGHTS, packed)] if fds else [])


def receive_fds(sock: Socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """Receive data and at most `most` descriptors, closed on exec."""
    space = _socket.CMSG_SPACE(most * _INT)
    data, ancillary, _flags, _address = sock.recvmsg(size, space, _socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, packed in ancillary:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            whole = len(packed) - len(packed) % _INT
            fds += [int.from_bytes(packed[i : i + _INT], "little") for i in range(0, whole, _INT)]
    return data, fds
