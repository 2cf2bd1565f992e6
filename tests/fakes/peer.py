"""A worker with sockets of every kind, which tells on request what has become of them.

Run as `python -IS peer.py ADDRESS4 ADDRESS6 OUTSIDE4 OUTSIDE6 READY`. Port 8000 answers with JSON.
"""

from __future__ import annotations

import json
import select
import socket
import sys
from pathlib import Path

CONTROL, LISTEN4, LISTEN6, MAPPED, LOOPBACK, WILDCARD = range(8000, 8006)
DATAGRAM4, DATAGRAM6, SERVER, NAMES = range(8010, 8014)


def listening(family: int, address: str, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.bind((address, port))
    made.listen(8)
    return made


def datagrams(family: int, address: str, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.bind((address, port))
    return made


def pair(listener: socket.socket, address: str) -> tuple[socket.socket, socket.socket]:
    made = socket.socket(listener.family, socket.SOCK_STREAM)
    made.connect((address, listener.getsockname()[1]))
    made.sendall(b"unread")
    return made, listener.accept()[0]


def connected(family: int, kind: int, address: str, port: int) -> socket.socket:
    made = socket.socket(family, kind)
    made.connect((address, port))
    return made


def told(name: str, made: socket.socket) -> list[object]:
    """What the socket says of itself, without waiting."""
    try:
        peer: object = made.getpeername()[:2]
    except OSError as error:
        peer = type(error).__name__
    listens = made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if listens or made.type == socket.SOCK_DGRAM:
        return [made.getsockname()[:2], peer]
    events = select.poll()
    events.register(made)
    polled = sum(mask for _, mask in events.poll(0))
    try:
        made.settimeout(0)
        received: object = made.recv(64).decode()
    except OSError as error:
        received = type(error).__name__
    try:
        sent: object = made.send(b"more")
    except OSError as error:
        sent = type(error).__name__
    return [made.getsockname()[:2], peer, received, sent, polled]


def main(address4: str, address6: str, out4: str, out6: str, ready: str) -> None:
    four, six = socket.AF_INET, socket.AF_INET6
    control = listening(six, "::", CONTROL)
    sockets = {
        "listen4": listening(four, address4, LISTEN4),
        "listen6": listening(six, address6, LISTEN6),
        "mapped": listening(six, f"::ffff:{address4}", MAPPED),
        "loopback": listening(four, "127.0.0.1", LOOPBACK),
        "wildcard": listening(four, "0.0.0.0", WILDCARD),
        "datagram4": datagrams(four, address4, DATAGRAM4),
        "datagram6": datagrams(six, address6, DATAGRAM6),
        "names4": connected(four, socket.SOCK_DGRAM, out4, NAMES),
        "names6": connected(six, socket.SOCK_DGRAM, out6, NAMES),
        "server4": connected(four, socket.SOCK_STREAM, out4, SERVER),
        "server6": connected(six, socket.SOCK_STREAM, out6, SERVER),
    }
    sockets["inside"], sockets["inside-peer"] = pair(sockets["loopback"], "127.0.0.1")
    sockets["own"], sockets["own-peer"] = pair(sockets["listen4"], address4)
    sockets["own-mapped"], sockets["own-mapped-peer"] = pair(
        sockets["mapped"], f"::ffff:{address4}"
    )
    sockets["own6"], sockets["own6-peer"] = pair(sockets["listen6"], address6)
    sockets["half"], sockets["half-peer"] = pair(sockets["loopback"], "127.0.0.1")
    sockets["half"].shutdown(socket.SHUT_WR)
    Path(ready).touch()
    while True:
        with control.accept()[0] as asked:
            asked.sendall(json.dumps({n: told(n, made) for n, made in sockets.items()}).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
