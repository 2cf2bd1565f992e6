"""Internet sockets in CRIU's files.img: read and changed field by field, all else left as it is.

Messages are images/fdinfo.proto's file_entry and images/sk-inet.proto's inet_sk_entry (CRIU 4.2).
Only the fields that change are written anew: what a newer CRIU adds stays, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from shim.errors import Damaged
from shim.lean.values import Value
from shim.restore.fields import Changes, Field, block, fields, replaced, varint
from shim.snapshot import images
from shim.snapshot.images import FILES, NotIndexable

NAME = "files.img"
_HINT = "the snapshot is damaged, or a newer CRIU has made it"
_HEAD = (0x54564319).to_bytes(4, "little") + FILES.to_bytes(4, "little")
LARGEST = 1 << 24  # bytes; a hundred thousand open files have less
_INET_SOCKET = 4  # the field of file_entry
_WORD = 0xFFFFFFFF

# Numbers of the fields of inet_sk_entry.
_ID, _FAMILY, _TYPE, _PROTOCOL, _STATE = 1, 3, 4, 5, 6
_SOURCE_PORT, _PEER_PORT, _SOURCE, _PEER, _NAMESPACE, _SHUTDOWN = 7, 8, 11, 12, 18, 19
_WORDS = {2: 1, 10: 4}  # 32-bit words of an address, by family: AF_INET, AF_INET6

TCP = 6
CLOSED, LISTENING = 7, 10  # states, include/net/tcp_states.h
_BOTH = 3  # sk_shutdown of images/sk-opts.proto: neither reads nor writes


class Socket(Value):
    """One socket. Addresses are 4 or 16 bytes, in network order."""

    id: int
    family: int
    type: int
    protocol: int
    state: int
    source: bytes
    source_port: int
    peer: bytes
    peer_port: int
    namespace: int


class FilesImage:
    """A files.img and its internet sockets. Raises Damaged for bytes that are none."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._places = list(_places(data))
        self.sockets = [place.socket for place in self._places]
        if len({socket.id for socket in self.sockets}) != len(self.sockets):
            raise Damaged(f"{NAME}: two sockets have one id", hint=_HINT)

    def changed(self, changes: Mapping[int, Changes]) -> bytes:
        """The image with other fields in the sockets of these ids."""
        out, done = [], 0
        for begin, end, field, socket in self._places:
            if socket.id not in changes:
                continue
            record = self._data[begin:end]
            entry = replaced(_content(field), changes[socket.id])
            record = record[: field.start] + block(_INET_SOCKET, entry) + record[field.stop :]
            out += [self._data[done : begin - 4], len(record).to_bytes(4, "little"), record]
            done = end
        return b"".join([*out, self._data[done:]])


def moved(source: bytes | None = None, peer: bytes | None = None) -> Changes:
    """Changes: other addresses, for `changed`."""
    both = ((_SOURCE, source), (_PEER, peer))
    return {field: _words(address) for field, address in both if address is not None}


def closed(socket: Socket) -> Changes:
    """Changes: the socket comes back as one whose peer has closed, and that was shut down.

    Without a peer's port it is no connection to CRIU (tcp_connection, criu/sk-inet.c:702), without
    a port of its own it is not bound (:926), and shutdown(2) on a socket that is not connected
    returns ENOTCONN, which CRIU lets pass (:971), and works: reading gives end of file, writing
    EPIPE, poll says hang-up. `tcp-close` leaves the same (sk-tcp.c:464), but for all connections.
    """
    nowhere = [0] * _WORDS[socket.family]
    return {
        _STATE: [CLOSED],
        _SOURCE_PORT: [0],
        _PEER_PORT: [0],
        _SOURCE: nowhere,
        _PEER: nowhere,
        _SHUTDOWN: [_BOTH],
    }


class _Place(NamedTuple):
    begin: int  # of the record in the image, after its length
    end: int
    field: Field  # in the record
    socket: Socket


def _places(data: bytes) -> Iterator[_Place]:
    if len(data) > LARGEST:
        raise Damaged(f"{NAME} has {len(data)} bytes, more than {LARGEST}", hint=_HINT)
    if data[:8] != _HEAD:
        raise Damaged(f"{NAME} begins with other magic numbers", hint=_HINT)
    end = 8
    try:
        for record in images.records(data, 8, NAME):
            begin, end = end + 4, end + 4 + len(record)
            found = [field for field in fields(record) if field.number == _INET_SOCKET]
            if len(found) > 1:
                raise ValueError("a file is two sockets")
            for field in found:
                yield _Place(begin, end, field, _socket(_content(field)))
    except (IndexError, ValueError) as error:
        said = str(error) if isinstance(error, ValueError) else "a record is cut off"
        raise Damaged(f"{NAME}: {said}", hint=_HINT) from None
    except NotIndexable as error:
        raise Damaged(str(error), hint=_HINT) from None


def _socket(entry: bytes) -> Socket:
    last: dict[int, int] = {}
    lists: dict[int, list[int]] = {_SOURCE: [], _PEER: []}
    for field in fields(entry):
        if field.number in lists:
            lists[field.number] += _unpacked(field.value)
        elif isinstance(field.value, int):
            last[field.number] = field.value & _WORD
    missing = {_ID, _FAMILY, _TYPE, _PROTOCOL, _STATE, _SOURCE_PORT, _PEER_PORT} - last.keys()
    if missing:
        raise ValueError(f"a socket has no field {min(missing)}")
    words = _WORDS.get(last[_FAMILY])
    # Nothing but these is accepted by inet_validate_address (criu/sk-inet.c:734); v0.1's four
    # words for IPv4 are older than anything that we read.
    if words is None or {len(lists[_SOURCE]), len(lists[_PEER])} != {words}:
        raise ValueError(f"socket {last[_ID]:#x} has addresses that cannot be")
    return Socket(
        id=last[_ID],
        family=last[_FAMILY],
        type=last[_TYPE],
        protocol=last[_PROTOCOL],
        state=last[_STATE],
        source=_address(lists[_SOURCE]),
        source_port=last[_SOURCE_PORT],
        peer=_address(lists[_PEER]),
        peer_port=last[_PEER_PORT],
        namespace=last.get(_NAMESPACE, 0),
    )


def _content(field: Field) -> bytes:
    if isinstance(field.value, int):
        raise ValueError("a socket is a number")
    return field.value


def _unpacked(value: int | bytes) -> list[int]:
    if isinstance(value, int):
        return [value & _WORD]
    found, pos = [], 0
    while pos < len(value):
        number, pos = varint(value, pos)
        found.append(number & _WORD)
    return found


def _address(words: list[int]) -> bytes:
    # CRIU copies the bytes of the address into the words (dump_sockaddr, criu/sk-inet.c:215).
    return b"".join(word.to_bytes(4, "little") for word in words)


def _words(address: bytes) -> list[int]:
    return [int.from_bytes(address[n : n + 4], "little") for n in range(0, len(address), 4)]
