"""Unary gRPC calls over a Unix socket, for a process that a pod waits for.

Importing the gRPC library takes a tenth of a second, more than anything that a restore asks
containerd. This here does the one case that matters: a call that succeeds, on a connection of its
own. Anything else, a refusal, say, is `Unanswered`, and the library is asked to do the call again
and to say what is wrong; so headers, whose compression would be the larger part, are never read.

HTTP/2 frames as of RFC 9113, header fields as literals without indexing of RFC 7541 6.2.2, messages
as of gRPC's PROTOCOL-HTTP2: one byte, 0 if it is not compressed, four of length, the message.
"""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import Mapping
from typing import Self

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME = struct.Struct(">HBBBI")  # length: 16 and 8 bits, type, flags, stream
_MESSAGE = struct.Struct(">BI")
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 0x1, 0x1, 0x4, 0x8
_LARGEST = 4 << 20  # bytes of an answer; also what the server may send without being allowed more
_LARGEST_FRAME = 16 << 10  # bytes, as long as we set nothing else
_OPENING = 65535  # bytes that a server may send on a connection to begin with
_INITIAL_WINDOW = 4  # the setting


class Unanswered(Exception):
    """There is no answer, for whatever reason: let the library ask."""


class Connection:
    """To a server on a Unix socket. Each step waits for `seconds` at most."""

    def __init__(self, path: str, seconds: float) -> None:
        self._seconds = seconds
        self._stream = -1
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(seconds)
        try:
            self._socket.connect(path)
            settings = struct.pack(">HI", _INITIAL_WINDOW, _LARGEST)
            more = struct.pack(">I", _LARGEST - _OPENING)
            opening = _PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW, 0, 0, more)
            self._socket.sendall(opening)
        except OSError as error:
            self._socket.close()
            raise Unanswered(str(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self, method: str, message: bytes, metadata: Mapping[str, str]) -> bytes:
        """The answer to `/SERVICE/METHOD`. Raises Unanswered if there is no good one."""
        self._stream += 2
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": method,
            ":authority": "localhost",
            "content-type": "application/grpc",
            "te": "trailers",
            "grpc-timeout": f"{math.ceil(self._seconds * 1000)}m",
            **metadata,
        }
        block = b"".join(_text(b"\0", name) + _text(b"", value) for name, value in fields.items())
        body = _MESSAGE.pack(0, len(message)) + message
        try:
            if max(len(block), len(body)) > _LARGEST_FRAME:
                raise Unanswered("that is a matter for the library")
            self._send(_HEADERS, _END_HEADERS, block)
            self._send(_DATA, _END_STREAM, body)
            return _only(self._receive())
        except OSError as error:
            raise Unanswered(str(error)) from error

    def _send(self, kind: int, flags: int, payload: bytes) -> None:
        self._socket.sendall(_frame(kind, flags, self._stream, payload))

    def _receive(self) -> bytes:
        """The data of our stream, up to its end."""
        data = b""
        while _announced(data) <= _LARGEST:
            high, low, kind, flags, stream = _FRAME.unpack(self._read(_FRAME.size))
            payload = self._read(high << 8 | low)
            if kind in (_RESET, _GOAWAY):
                raise Unanswered("it broke off")
            if kind in (_SETTINGS, _PING) and not flags & _ACK:
                answer = payload if kind == _PING else b""
                self._socket.sendall(_frame(kind, _ACK, 0, answer))
            if stream != self._stream:
                continue
            if kind == _DATA:
                data += _unpadded(payload) if flags & _PADDED else payload
            if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                return data
        raise Unanswered("too long an answer")

    def _read(self, length: int) -> bytes:
        if length > _LARGEST_FRAME:
            raise Unanswered("a frame is longer than agreed")
        data = b""
        while len(data) < length:
            chunk = self._socket.recv(length - len(data))
            if not chunk:
                raise Unanswered("it hung up")
            data += chunk
        return data


def _announced(data: bytes) -> int:
    """How long it will be at least."""
    if len(data) < _MESSAGE.size:
        return len(data)
    length: int = _MESSAGE.unpack_from(data)[1]
    return max(len(data), _MESSAGE.size + length)


def _unpadded(payload: bytes) -> bytes:
    if not payload or len(payload) <= payload[0]:
        raise Unanswered("more padding than there is")
    return payload[1 : len(payload) - payload[0]]


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    length = len(payload)
    return _FRAME.pack(length >> 8, length & 0xFF, kind, flags, stream) + payload


def _text(before: bytes, text: str) -> bytes:
    """A string literal without Huffman's code: its length with a prefix of seven bits."""
    data = text.encode()
    if len(data) < 127:
        return before + bytes([len(data)]) + data
    length, rest = b"\x7f", len(data) - 127
    while rest >= 128:
        length, rest = length + bytes([rest & 127 | 128]), rest >> 7
    return before + length + bytes([rest]) + data


def _only(data: bytes) -> bytes:
    """The one message in it."""
    if len(data) < _MESSAGE.size:
        raise Unanswered("no answer, but a status")
    compressed, length = _MESSAGE.unpack_from(data)
    if compressed or len(data) != _MESSAGE.size + length:
        raise Unanswered("not one plain message")
    return data[_MESSAGE.size :]
