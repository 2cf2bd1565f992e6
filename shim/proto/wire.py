"""A table-driven protobuf codec, small enough for a process that every pod carries.

A message class lists its fields in `FIELDS`; everything else follows from that table. The classes
come from `generate.py`; the rules are those of the encoding guide at protobuf.dev, proto3 flavour:
defaults are not written, unknown fields are skipped, repeated numbers are written packed and read
either way, a sub-message that comes twice is merged. Whatever arrives, `decode` either returns a
message or raises WireError. Recursion is as deep as the schema, which cannot refer to itself.

Left to others: services and frames (shim.ttrpc), and what an Any means (shim.proto.known).
"""

from __future__ import annotations

import struct

from shim.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, Self

    # Number, attribute, kind (see below), and the class of a sub-message.
    Field = tuple[int, str, int, "type[Message] | None"]
    Read = Callable[[bytes, int, int], tuple[Any, int]]
    Write = Callable[[Any], bytes]

# Kinds carry the numbers of FieldDescriptorProto.Type; MAP, of strings to strings, is ours.
DOUBLE, FLOAT, INT64, UINT64, INT32, FIXED64, FIXED32, BOOL, STRING = range(1, 10)
MAP, MESSAGE, BYTES, UINT32, ENUM, SFIXED32, SFIXED64, SINT32, SINT64 = range(10, 19)
REPEATED, OPTIONAL, _PACKED = 32, 64, 128
_KIND = 31

_VARINT, _EIGHT, _BLOCK, _GROUP, _END, _FOUR = range(6)
_U64 = (1 << 64) - 1
_GROUPS_DEEP = 100  # protobuf's own limit for nested messages
_SHOWN = 32  # bytes of a bytes field in a repr; a process specification carries secrets


class WireError(InvalidArgument):
    """Bytes that are not the message they should be, or a value its field cannot hold."""

    reason = "BadMessage"


class Message:
    """Base of the generated messages; equal when type and fields are."""

    __slots__ = ()
    TYPE: ClassVar[str] = ""
    FIELDS: ClassVar[tuple[Field, ...]] = ()
    __hash__ = None  # type: ignore[assignment]  # fields change

    def encode(self) -> bytes:
        """Return the message as bytes; WireError if a value does not fit its field."""
        out = bytearray()
        for field in self.FIELDS:
            try:
                _emit(out, field, getattr(self, field[1]))
            except WireError as exc:
                raise WireError(f"{self.TYPE}.{field[1]}: {exc.message}") from None
        return bytes(out)

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> Self:
        """Return the message that `data` holds; WireError if it holds none."""
        message = cls()
        try:
            _merge(message, bytes(data), 0, len(data))
        except WireError as exc:
            raise WireError(f"{cls.TYPE}: {exc.message}") from None
        return message

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, f[1]) == getattr(other, f[1]) for f in self.FIELDS)

    def __repr__(self) -> str:
        shown = ((f[1], getattr(self, f[1])) for f in self.FIELDS)
        fields = ", ".join(f"{name}={_show(value)}" for name, value in shown if value)
        return f"{type(self).__name__}({fields})"


def _show(value: object) -> str:
    if isinstance(value, bytes) and len(value) > _SHOWN:
        return f"<{len(value)} bytes>"
    return repr(value)


# Writing


def varint(value: int) -> bytes:
    """A number that is not negative, as the wire has it."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _emit(out: bytearray, field: Field, value: Any) -> None:
    number, _, kind, _ = field
    if kind & REPEATED:
        _emit_all(out, number, kind & _KIND, value)
    elif kind == MAP:
        for key, text in value.items():
            _emit_block(out, number, _text(1, key) + _text(2, text))
    elif value is None:
        pass
    elif kind == MESSAGE or kind & OPTIONAL or value or _is_negative_zero(value):
        _emit_one(out, number, kind & _KIND, value)


def _emit_one(out: bytearray, number: int, kind: int, value: Any) -> None:
    if kind == MESSAGE:
        _emit_block(out, number, value.encode())
    elif kind == STRING:
        _emit_block(out, number, _utf8(value))
    elif kind == BYTES:
        _emit_block(out, number, value)
    else:
        wire_type, _, write = _SCALARS[kind]
        out += varint(number << 3 | wire_type)
        out += write(value)


def _emit_all(out: bytearray, number: int, kind: int, values: list[Any]) -> None:
    if kind not in _SCALARS:
        for value in values:
            _emit_one(out, number, kind, value)
    elif values:
        write = _SCALARS[kind][2]
        _emit_block(out, number, b"".join([write(value) for value in values]))


def _emit_block(out: bytearray, number: int, block: bytes) -> None:
    out += varint(number << 3 | _BLOCK)
    out += varint(len(block))
    out += block


def _text(number: int, text: str) -> bytes:
    out = bytearray()
    _emit_block(out, number, _utf8(text))
    return bytes(out)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        # A path with bytes that are no UTF-8 arrives here as lone surrogates.
        raise WireError(f"{text!r} is not valid text") from None


def _is_negative_zero(value: Any) -> bool:
    # -0.0 is false, yet not the default: only the all-zero pattern is.
    return isinstance(value, float) and str(value) == "-0.0"


# Reading


def _read_varint(data: bytes, pos: int, end: int) -> tuple[int, int]:
    if pos < end and (value := data[pos]) < 0x80:
        return value, pos + 1
    value = shift = 0
    while pos < end and shift < 70:
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value > _U64:
                raise WireError("a number exceeds 64 bits")
            return value, pos
        shift += 7
    raise WireError("a number is cut off" if shift < 70 else "a number exceeds 64 bits")


def _read_size(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """Return where the block after this length starts and ends."""
    size, pos = _read_varint(data, pos, end)
    if size > end - pos:
        raise WireError(f"a field of {size} bytes is cut off after {end - pos}")
    return pos, pos + size


def _read_text(data: bytes, pos: int, stop: int) -> str:
    try:
        return data[pos:stop].decode()
    except UnicodeDecodeError:
        raise WireError(f"a string is not UTF-8: {data[pos:stop][:_SHOWN]!r}") from None


def _merge(message: Message, data: bytes, pos: int, end: int) -> None:
    """Read `data[pos:end]` into `message`."""
    table = _TABLES.get(type(message)) or _tabulate(type(message))
    while pos < end:
        tag, pos = _read_varint(data, pos, end)
        field = table.get(tag)
        if field is None:
            pos = _skip(data, pos, end, tag)
        elif tag & 7 == _BLOCK:
            pos, stop = _read_size(data, pos, end)
            _take_block(message, field, data, pos, stop)
            pos = stop
        else:
            value, pos = _SCALARS[field[2] & _KIND][1](data, pos, end)
            _take(message, field, value)


def _take(message: Message, field: Field, value: Any) -> None:
    if field[2] & REPEATED:
        getattr(message, field[1]).append(value)
    else:
        setattr(message, field[1], value)


def _take_block(message: Message, field: Field, data: bytes, pos: int, stop: int) -> None:
    _, name, kind, child = field
    base = kind & _KIND
    if kind & _PACKED:
        _unpack_numbers(getattr(message, name), _SCALARS[base][1], data, pos, stop)
    elif base == STRING:
        _take(message, field, _read_text(data, pos, stop))
    elif base == BYTES:
        _take(message, field, data[pos:stop])
    elif base == MAP:
        entry = _Entry()
        _merge(entry, data, pos, stop)
        getattr(message, name)[entry.key] = entry.value
    elif child is not None:
        part = None if kind & REPEATED else getattr(message, name)
        if part is None:
            part = child()
            _take(message, field, part)
        _merge(part, data, pos, stop)


def _unpack_numbers(values: list[Any], read: Read, data: bytes, pos: int, stop: int) -> None:
    while pos < stop:
        value, pos = read(data, pos, stop)
        values.append(value)


def _skip(data: bytes, pos: int, end: int, tag: int) -> int:
    """Return the position after the unknown field that `tag` has opened."""
    groups: list[int] = []
    while True:
        number, wire_type = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise WireError(f"there is no field number {number}")
        if wire_type == _GROUP and len(groups) < _GROUPS_DEEP:
            groups.append(number)
        elif wire_type != _END:
            pos = _skip_value(data, pos, end, wire_type)
        elif not groups or groups.pop() != number:
            raise WireError(f"group {number} ends without a beginning")
        if not groups:
            return pos
        tag, pos = _read_varint(data, pos, end)


def _skip_value(data: bytes, pos: int, end: int, wire_type: int) -> int:
    if wire_type == _VARINT:
        return _read_varint(data, pos, end)[1]
    if wire_type == _BLOCK:
        return _read_size(data, pos, end)[1]
    if wire_type not in (_EIGHT, _FOUR):
        raise WireError(f"wire type {wire_type} is unknown or nested too deeply")
    pos += 8 if wire_type == _EIGHT else 4
    if pos > end:
        raise WireError("a fixed number is cut off")
    return pos


# The tables by which a class is read, by tag; made when a class is first read.
_TABLES: dict[type[Message], dict[int, Field]] = {}


def _tabulate(cls: type[Message]) -> dict[int, Field]:
    table: dict[int, Field] = {}
    for field in cls.FIELDS:
        number, name, kind, child = field
        scalar = _SCALARS.get(kind & _KIND)
        if scalar is None:
            table[number << 3 | _BLOCK] = field
            continue
        table[number << 3 | scalar[0]] = field
        if kind & REPEATED:
            table[number << 3 | _BLOCK] = (number, name, kind | _PACKED, child)
    _TABLES[cls] = table
    return table


# Scalars: the wire type, the reader and the writer of each kind


def _integer(bits: int, signed: bool, zigzag: bool = False) -> tuple[int, Read, Write]:
    sign = 1 << bits - 1
    low, high = (-sign, sign) if signed else (0, sign << 1)

    def read(data: bytes, pos: int, end: int) -> tuple[int, int]:
        value, pos = _read_varint(data, pos, end)
        value &= (sign << 1) - 1
        if zigzag:
            value = value >> 1 ^ -(value & 1)
        elif signed and value & sign:
            value -= sign << 1
        return value, pos

    def write(value: int) -> bytes:
        if not low <= value < high:
            raise WireError(f"{value} does not fit {bits} bits")
        return varint(value << 1 ^ value >> bits - 1 if zigzag else value & _U64)

    return _VARINT, read, write


def _fixed(code: str) -> tuple[int, Read, Write]:
    packer = struct.Struct("<" + code)

    def read(data: bytes, pos: int, end: int) -> tuple[float, int]:
        if end - pos < packer.size:
            raise WireError("a fixed number is cut off")
        return packer.unpack_from(data, pos)[0], pos + packer.size

    def write(value: float) -> bytes:
        try:
            return packer.pack(value)
        except (struct.error, OverflowError):
            raise WireError(f"{value} does not fit {packer.size} bytes") from None

    return _EIGHT if packer.size == 8 else _FOUR, read, write


def _read_bool(data: bytes, pos: int, end: int) -> tuple[bool, int]:
    value, pos = _read_varint(data, pos, end)
    return bool(value), pos


_SCALARS: dict[int, tuple[int, Read, Write]] = {
    DOUBLE: _fixed("d"),
    FLOAT: _fixed("f"),
    INT64: _integer(64, signed=True),
    UINT64: _integer(64, signed=False),
    INT32: _integer(32, signed=True),
    FIXED64: _fixed("Q"),
    FIXED32: _fixed("I"),
    BOOL: (_VARINT, _read_bool, lambda value: b"\1" if value else b"\0"),
    UINT32: _integer(32, signed=False),
    ENUM: _integer(32, signed=True),
    SFIXED32: _fixed("i"),
    SFIXED64: _fixed("q"),
    SINT32: _integer(32, signed=True, zigzag=True),
    SINT64: _integer(64, signed=True, zigzag=True),
}


class _Entry(Message):
    """One entry of a map; protobuf defines maps as repeated messages of this shape."""

    __slots__ = ("key", "value")
    TYPE = "entry of a map"
    FIELDS = ((1, "key", STRING, None), (2, "value", STRING, None))

    def __init__(self, *, key: str = "", value: str = "") -> None:
        self.key = key
        self.value = value
