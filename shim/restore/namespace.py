"""The addresses that a network namespace has, seen from outside.

By rtnetlink (rtnetlink(7), linux/if_addr.h) and nothing else: the libraries for it take longer to
import than a restore may take.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

from shim.errors import Unavailable
from shim.namespaces import inside

SECONDS = 2.0  # for an answer of the kernel's
_GETADDR, _NEWADDR, _ERROR, _DONE = 22, 20, 2, 3
_REQUEST, _DUMP = 0x1, 0x300
_ADDRESS, _LOCAL = 1, 2  # IFA_ADDRESS, IFA_LOCAL
_HEADER = struct.Struct("=IHHII")
_MESSAGE = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, interface
_ATTRIBUTE = struct.Struct("=HH")


def addresses(namespace: str) -> list[str]:
    """The addresses of a network namespace, "INTERFACE ADDRESS" each, in the kernel's order.

    Without 127.0.0.1 and ::1, which every namespace has. Raises OSError, Unavailable.
    """
    return inside(namespace, "net", _addresses)


def _addresses() -> list[str]:
    names = dict(socket.if_nameindex())
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as route:
        route.settimeout(SECONDS)
        size = _HEADER.size + _MESSAGE.size
        head = _HEADER.pack(size, _GETADDR, _REQUEST | _DUMP, 1, 0)
        route.send(head + _MESSAGE.pack(0, 0, 0, 0, 0))
        found = [(index, ip_address(packed)) for index, packed in _answers(route)]
    return [
        f"{names.get(index, '')} {address}" for index, address in found if not address.is_loopback
    ]


def _answers(route: socket.socket) -> Iterator[tuple[int, bytes]]:
    """The interface and the address of each answer."""
    while True:
        data = route.recv(1 << 16)
        pos = 0
        while pos < len(data):
            size, kind, _, _, _ = _HEADER.unpack_from(data, pos)
            if kind == _DONE:
                return
            if kind == _ERROR:
                raise Unavailable("the kernel does not list addresses", hint="is it under load?")
            if kind == _NEWADDR:
                begin = pos + _HEADER.size
                index = _MESSAGE.unpack_from(data, begin)[4]
                found = _attributes(data[begin + _MESSAGE.size : pos + size])
                # They differ on a point-to-point link, where IFA_ADDRESS is the peer's.
                yield index, found.get(_LOCAL) or found[_ADDRESS]
            pos += size + 3 & ~3


def _attributes(data: bytes) -> dict[int, bytes]:
    found, pos = {}, 0
    while pos < len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, pos)
        found[kind] = data[pos + _ATTRIBUTE.size : pos + size]
        pos += size + 3 & ~3
    return found
