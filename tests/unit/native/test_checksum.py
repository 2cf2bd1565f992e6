"""CRC-32C: the standard's own values, and the same however the data is cut."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim._native import ffi, lib
from shim.native import check

# RFC 3720, B.4; the last is the usual check value.
KNOWN = [
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (b"123456789", 0xE3069283),
    (b"", 0),
]
NOISE = random.Random(3).randbytes(200_000)


def crc32c(data: bytes, crc: int = 0) -> int:
    return lib.thaw_crc32c(crc, data, len(data))


def slow(data: bytes, crc: int = 0) -> int:
    """Bit by bit, as the definition says."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def of_file(path: Path) -> tuple[int, int]:
    crc, size = ffi.new("uint32_t *"), ffi.new("uint64_t *")
    fd = os.open(path, os.O_RDONLY)
    try:
        check(lib.thaw_crc32c_file(fd, crc, size))
    finally:
        os.close(fd)
    return crc[0], size[0]


@pytest.mark.parametrize(("data", "crc"), KNOWN)
def test_known(data: bytes, crc: int) -> None:
    assert crc32c(data) == crc


# Around what is done at once: 8 bytes, three streams of 256, three of 4096.
@pytest.mark.parametrize("size", [1, 7, 8, 9, 767, 768, 769, 4096, 12287, 12288, 12289, 14000])
def test_lengths(size: int) -> None:
    assert crc32c(NOISE[:size]) == slow(NOISE[:size])


@given(
    st.integers(0, 64), st.integers(0, 100_000), st.integers(0, 100_000), st.integers(0, 2**32 - 1)
)
def test_pieces(start: int, first: int, second: int, crc: int) -> None:
    data = NOISE[start : start + first + second]
    assert crc32c(data[first:], crc32c(data[:first], crc)) == crc32c(data, crc)


@pytest.mark.parametrize("size", [0, 1, 4096, 1 << 18, (1 << 18) + 5, 700_001])
def test_file(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (tmp_path / "data").write_bytes(data)
    assert of_file(tmp_path / "data") == (crc32c(data), size)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        of_file(tmp_path)
