"""The fields of protobuf messages in CRIU's images, for those that are changed in a few places.

Only what changes is written anew: what a newer CRIU adds stays, byte for byte. The wire is that of
protobuf.dev's encoding guide. CRIU's messages are proto2 and have no groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from shim.proto.wire import varint as written

_VARINT, _BLOCK, _FIXED = 0, 2, {1: 8, 5: 4}  # wire types; bytes of the fixed ones

Changes = Mapping[int, list[int]]  # the values that a field of a number is to have


class Field(NamedTuple):
    """One field of a message, where it is."""

    number: int
    value: int | bytes
    start: int  # of its tag
    stop: int


def fields(data: bytes) -> Iterator[Field]:
    """The fields of a message, in its order. Raises ValueError or IndexError if it is none."""
    pos = 0
    while pos < len(data):
        start = pos
        tag, pos = varint(data, pos)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == _VARINT:
            value, pos = varint(data, pos)
        else:
            size, pos = varint(data, pos) if kind == _BLOCK else (_FIXED.get(kind, -1), pos)
            value = data[pos : pos + size]
            pos += size
            if size < 0 or pos > len(data):
                raise ValueError(f"a field of {size} bytes" if size >= 0 else f"wire type {kind}")
        if not number:
            raise ValueError("a field has no number")
        yield Field(number, value, start, pos)


def replaced(entry: bytes, changes: Changes) -> bytes:
    """A message in which fields of numbers have others, at the place of the first of their kind."""
    left = dict(changes)
    out, done = [], 0
    for field in fields(entry):
        if field.number in changes:
            out += [entry[done : field.start], _encoded(field.number, left.pop(field.number, []))]
            done = field.stop
    out += [entry[done:], *(_encoded(number, values) for number, values in left.items())]
    return b"".join(out)


def block(number: int, content: bytes) -> bytes:
    """A field that is text, bytes or a message."""
    return written(number << 3 | _BLOCK) + written(len(content)) + content


def varint(data: bytes, pos: int) -> tuple[int, int]:
    """The number at `pos`, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
    raise ValueError("a number exceeds 64 bits")


def _encoded(number: int, values: list[int]) -> bytes:
    return b"".join(written(number << 3 | _VARINT) + written(value) for value in values)
