"""Transactions of nftables over netlink: tables, chains and the few expressions that a hold needs.

Numbers are those of linux/netfilter/nf_tables.h and nfnetlink.h. It is written by hand because
it has to be done at once: in 1 ms here, in 7 by the `nft` program, which a node need not have, and
pyroute2 takes 200 to be imported.
"""

from __future__ import annotations

import os
import socket
import struct

INET, NETDEV = 1, 5  # families (NFPROTO_…)
INPUT, OUTPUT = 1, 3  # hooks of INET
EGRESS = 1  # the hook of NETDEV for all that leaves by a device, since Linux 5.16

_NETFILTER = 12  # NETLINK_NETFILTER
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_BEGIN, _END, _ERROR, _DONE = 0x10, 0x11, 2, 3
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = 0, 1, 2, 3, 6
_REQUEST, _ACK, _EXCLUSIVE, _CREATE, _APPEND = 0x1, 0x4, 0x200, 0x400, 0x800
_DUMP = 0x300
_NESTED = 0x8000
_HEADER = struct.Struct("=IHHII")
_FAMILY = struct.Struct("!BBH")  # nfgenmsg: family, version, subsystem of a batch
_REGISTER = 1
_BASES = {"network": 1, "transport": 2}
_KEYS = {"protocol": 1, "iif": 4, "oif": 5, "l4proto": 16}  # NFT_META_…
_OPERATIONS = {"==": 0, "<=": 3, ">=": 5}
_ACCEPT = 1


class Batch:
    """Changes that are made together or not at all."""

    def __init__(self) -> None:
        self._messages: list[tuple[int, int, int, bytes]] = []

    def table(self, family: int, name: str, *, new: bool = False) -> None:
        """Add a table; it may be there, unless it is to be new."""
        self._add(_NEWTABLE, family, _text(1, name), _CREATE | (_EXCLUSIVE if new else 0))

    def without_table(self, family: int, name: str) -> None:
        """Delete a table with all that is in it; it need not be there."""
        self.table(family, name)
        self._add(_DELTABLE, family, _text(1, name))

    def chain(
        self,
        family: int,
        table: str,
        name: str,
        *,
        hook: int,
        priority: int,
        devices: tuple[str, ...] = (),
    ) -> None:
        """Add a base chain of type filter that drops what no rule accepts."""
        place = _number(1, hook) + _number(2, priority)
        if devices:
            place += _nest(4, b"".join(_text(1, device) for device in devices))
        body = _text(1, table) + _text(3, name) + _nest(4, place)
        self._add(_NEWCHAIN, family, body + _number(5, 0) + _text(7, "filter"), _CREATE)

    def accept(self, family: int, table: str, chain: str, *tests: bytes) -> None:
        """Add a rule: what passes all of the tests is accepted. One without tests comes first."""
        verdict = _nest(2, _nest(2, _number(1, _ACCEPT)))
        rule = b"".join(tests) + _expression("immediate", _number(1, 0) + verdict)
        body = _text(1, table) + _text(2, chain) + _nest(4, rule)
        self._add(_NEWRULE, family, body, _CREATE | (_APPEND if tests else 0))

    def commit(self, seconds: float) -> None:
        """Make the changes in the network namespace of this thread, if any. Raises OSError."""
        if not self._messages:
            return  # the kernel answers to messages only
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER) as link:
            link.settimeout(seconds)
            link.bind((0, 0))
            link.send(self._encoded())
            _await(link, len(self._messages))

    def _add(self, kind: int, family: int, body: bytes, flags: int = 0) -> None:
        self._messages.append((_SUBSYSTEM << 8 | kind, flags, family, body))

    def _encoded(self) -> bytes:
        parts = [_message(_BEGIN, _REQUEST, 0, b"", 0, _SUBSYSTEM)]
        for number, (kind, flags, family, body) in enumerate(self._messages, 1):
            last = _ACK if number == len(self._messages) else 0
            parts.append(_message(kind, _REQUEST | flags | last, family, body, number))
        parts.append(_message(_END, _REQUEST, 0, b"", len(self._messages) + 1, _SUBSYSTEM))
        return b"".join(parts)


def has_table(family: int, name: str, seconds: float) -> bool:
    """Whether the network namespace of this thread has the table. Raises OSError."""
    return name in tables(family, seconds)


def tables(family: int, seconds: float) -> list[str]:
    """The tables of the network namespace of this thread, by name. Raises OSError."""
    found: list[str] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER) as link:
        link.settimeout(seconds)
        link.bind((0, 0))
        link.send(_message(_SUBSYSTEM << 8 | _GETTABLE, _REQUEST | _DUMP, family, b"", 1))
        while True:
            data = link.recv(1 << 16)
            while data:
                size, kind, *_ = _HEADER.unpack_from(data)
                code = struct.unpack_from("=i", data, _HEADER.size)[0]
                if kind == _ERROR and code:
                    raise OSError(-code, os.strerror(-code))
                if kind in (_DONE, _ERROR):
                    return found
                found += _names(data[_HEADER.size + _FAMILY.size : size])
                data = data[-size % 4 + size :]


def _names(attributes: bytes) -> list[str]:
    """The name of a table, the first kind of its attributes."""
    while attributes:
        size, kind = struct.unpack_from("=HH", attributes)
        if kind == 1:
            return [attributes[4:size].rstrip(b"\0").decode()]
        attributes = attributes[-size % 4 + size :]
    return []


def meta(key: str, operation: str, value: bytes) -> bytes:
    """A test of what the kernel knows of a packet; numbers are in the order that it keeps them."""
    load = _expression("meta", _number(1, _REGISTER) + _number(2, _KEYS[key]))
    return load + _compare(operation, value)


def payload(base: str, offset: int, operation: str, value: bytes) -> bytes:
    """A test of bytes of a packet, counted from its network or transport header."""
    place = _number(2, _BASES[base]) + _number(3, offset) + _number(4, len(value))
    return _expression("payload", _number(1, _REGISTER) + place) + _compare(operation, value)


def _compare(operation: str, value: bytes) -> bytes:
    body = _number(1, _REGISTER) + _number(2, _OPERATIONS[operation])
    return _expression("cmp", body + _nest(3, _attribute(1, value)))


def _expression(name: str, data: bytes) -> bytes:
    return _nest(1, _text(1, name) + _nest(2, data))


def _attribute(kind: int, value: bytes) -> bytes:
    size = 4 + len(value)
    return struct.pack("=HH", size, kind) + value + bytes(-size % 4)


def _nest(kind: int, value: bytes) -> bytes:
    return _attribute(kind | _NESTED, value)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("!I", value & 0xFFFFFFFF))


def _message(
    kind: int, flags: int, family: int, body: bytes, number: int, subsystem: int = 0
) -> bytes:
    size = _HEADER.size + _FAMILY.size + len(body)
    head = _HEADER.pack(size, kind, flags, number, 0)
    return head + _FAMILY.pack(family, 0, subsystem) + body


def _await(link: socket.socket, last: int) -> None:
    """Wait for the last change's acknowledgement, or anything's refusal."""
    while True:
        number, kind, code = _answer(link)
        if kind == _ERROR and code:
            raise OSError(-code, os.strerror(-code))
        if kind == _ERROR and number == last:
            return


def _answer(link: socket.socket) -> tuple[int, int, int]:
    """The number, the type, and for an error the code of the next message."""
    data = link.recv(1 << 16)
    _, kind, _, number, _ = _HEADER.unpack_from(data)
    code = struct.unpack_from("=i", data, _HEADER.size)[0] if kind == _ERROR else 0
    return number, kind, code
