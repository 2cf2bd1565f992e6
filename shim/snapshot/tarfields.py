"""The fields of a tar's headers, each read with suspicion: ValueError says what is wrong."""

from __future__ import annotations

import re

PATH = 4095  # bytes: no longer one can be used with the kernel (PATH_MAX)
COMPONENT = 255  # bytes (NAME_MAX)
DEPTH = 256  # folders in each other: one descriptor each while they are written

_LARGEST = (1 << 63) - 1
_DIGITS = 19  # of the largest number
_TIME = re.compile(rb"(-?)([0-9]{1,12})(?:\.([0-9]{1,9})[0-9]{0,9})?")


def inner_path(name: bytes, *, folder: bool = False) -> bytes:
    """A member's place as its components, joined. Raises ValueError for what leads elsewhere."""
    words = (name[:-1] if folder and name.endswith(b"/") else name).split(b"/")
    if words[0] == b".":
        words = words[1:]
    if not words and not folder:
        raise ValueError("a root that is no folder")
    if len(name) > PATH or len(words) > DEPTH or b"\0" in name:
        raise ValueError(f"a bad name {name[:80]!r}")
    for word in words:
        if word in (b"", b".", b"..") or len(word) > COMPONENT:
            raise ValueError(f"a bad name {name[:80]!r}")
    return b"/".join(words)


def decimal(text: bytes) -> int:
    """A number of a record: it is not negative, and fits into 63 bits."""
    if text.isdigit() and len(text) <= _DIGITS and (found := int(text)) <= _LARGEST:
        return found
    raise ValueError(f"{text[:24]!r} is no number")


def octal(text: bytes) -> int:
    """A number of a header; nothing is 0."""
    digits = text.strip(b" \0")
    if digits.strip(b"01234567"):
        raise ValueError(f"{text!r} is no octal number")
    return int(digits or b"0", 8)


def number(text: bytes) -> int:
    """A number of a header: octal, or in GNU's way for large ones: a set bit, then big-endian."""
    if text[0] != 0x80:
        return octal(text)
    found = int.from_bytes(text[1:], "big")
    if found > _LARGEST:
        raise ValueError(f"{text!r} is too large")
    return found


def owner(number: int) -> int:
    """`number` itself, if it can be a user's or a group's."""
    if number >= (1 << 32) - 1:  # the last one means "as it is"
        raise ValueError(f"{number} is nobody's number")
    return number


def time(text: bytes) -> int:
    """Seconds with a fraction, as nanoseconds."""
    match = _TIME.fullmatch(text)
    if not match:
        raise ValueError(f"{text[:40]!r} is no time")
    sign, seconds, fraction = match.groups()
    nanoseconds = int(seconds) * 10**9 + int((fraction or b"").ljust(9, b"0"))
    return -nanoseconds if sign else nanoseconds
