"""A files.img made by hand, with fields that nobody knows."""

from __future__ import annotations

from ipaddress import ip_address

from shim.restore.sockets import FilesImage


def number(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(tag: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return number(tag << 3) + number(value)
    return number(tag << 3 | 2) + number(len(value)) + value


def entry(
    id: int, source: str, peer: str = "", *, protocol: int = 6, state: int = 1, packed: bool = False
) -> bytes:
    """A file that is a socket, its ends as "ADDRESS PORT"."""
    (at, port), (to, to_port) = source.split(), (peer or "0.0.0.0 0").split()
    one, other = ip_address(at).packed, ip_address(to).packed
    if len(one) != len(other):
        other = bytes(16)
    family, kind = (2 if len(one) == 4 else 10), (1 if protocol == 6 else 2)
    values = (id, 100 + id, family, kind, protocol, state, int(port), int(to_port), 2, 0)
    body = b"".join(field(tag, value) for tag, value in enumerate(values, 1))
    for tag, address in ((11, one), (12, other)):
        words = [int.from_bytes(address[n : n + 4], "little") for n in range(0, len(one), 4)]
        if packed:
            body += field(tag, b"".join(map(number, words)))
        else:
            body += b"".join(field(tag, word) for word in words)
    body += field(900, b"unknown") + field(18, 7)
    return field(1, 4) + field(2, id) + field(4, body) + field(901, 5)


def image(*entries: bytes) -> bytes:
    """The image of these, and of a regular file before and after them."""
    head = bytes.fromhex("19435654") + (0x56303138).to_bytes(4, "little")
    other = field(1, 1) + field(2, 77) + field(3, b"a regular file's")
    return head + b"".join(len(e).to_bytes(4, "little") + e for e in (other, *entries, other))


def states(data: bytes) -> list[tuple[str, int, int]]:
    """Address, port and state of each socket."""
    found = FilesImage(data).sockets
    return [(str(ip_address(s.source)), s.source_port, s.state) for s in found]
