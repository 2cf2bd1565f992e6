"""Tars as they can be written by anybody: by hand, header for header."""

from __future__ import annotations

import os
from pathlib import Path

from shim.snapshot.archive import Archive
from shim.snapshot.tree import open_directory

END = bytes(1024)


def header(name: bytes, kind: bytes = b"0", size: int = 0, **fields: bytes) -> bytes:
    """One block of 512 bytes; `fields` are put in as they are."""
    values = {
        "name": name, "mode": b"0000644\0", "uid": b"0000000\0", "gid": b"0000000\0",
        "size": b"%011o\0" % size, "mtime": b"%011o\0" % 1_700_000_000, "sum": b" " * 8,
        "kind": kind, "target": b"", "magic": b"ustar\x0000", "owner": b"", "group": b"",
        "major": b"0000000\0", "minor": b"0000000\0", "prefix": b"", **fields,
    }  # fmt: skip
    widths = (100, 8, 8, 8, 12, 12, 8, 1, 100, 8, 32, 32, 8, 8, 155)
    block = b"".join(
        value.ljust(width, b"\0") for value, width in zip(values.values(), widths, strict=True)
    ).ljust(512, b"\0")
    return summed(block)


def summed(block: bytes) -> bytes:
    """The block with its right checksum."""
    total = sum(block[:148] + b" " * 8 + block[156:])
    return block[:148] + b"%06o\0 " % total + block[156:]


def member(name: bytes, data: bytes = b"", kind: bytes = b"0", **fields: bytes) -> bytes:
    """A header with its data, padded."""
    return header(name, kind, len(data), **fields) + data + bytes(-len(data) % 512)


def records(**pairs: bytes) -> bytes:
    """The records of an extended header; "__" in a key stands for a dot."""
    return b"".join(record(key.replace("__", ".").encode(), v) for key, v in pairs.items())


def record(key: bytes, value: bytes) -> bytes:
    """One record, which begins with its own length."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length += 1
    return str(length).encode() + rest


def extended(data: bytes) -> bytes:
    """A pax header with these records."""
    return member(b"x", data, b"x")


def write(folder: Path, *pieces: bytes) -> Archive:
    """An archive in one part."""
    (folder / "a.tar.0000").write_bytes(b"".join(pieces))
    return Archive(folder / "a.tar")


def lay(archive: Archive, target: Path, *, whiteouts: bool = False) -> int:
    """Extract into a folder by its path."""
    fd = open_directory(target)
    try:
        return archive.extract(fd, whiteouts=whiteouts)
    finally:
        os.close(fd)


def take_back(archive: Archive, target: Path) -> None:
    """Remove from a folder by its path what was extracted."""
    fd = open_directory(target)
    try:
        archive.remove_extracted(fd)
    finally:
        os.close(fd)
