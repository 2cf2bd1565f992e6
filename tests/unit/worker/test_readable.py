"""What workers say, made harmless."""

from __future__ import annotations

import pytest

from shim.worker.readable import end_of, excerpt


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b"", ""),
        (b" two\n\twords ", "two words"),
        (b"\x1b[31mred\x00\xff", "?[31mred?\N{REPLACEMENT CHARACTER}"),
        (b"x" * 201, "x" * 200 + "\N{HORIZONTAL ELLIPSIS}"),
    ],
)
def test_the_beginning(said: bytes, shown: str) -> None:
    assert excerpt(said) == shown


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b"", ""),
        (b"0123456789", "23456789"),
        (b"one\ntwo\n", "one\ntwo\n"),
        (b"\x1b[31mx\r\n", "?[31mx?\n"),
        ("\u00e9".encode() * 9, "\u00e9" * 4),
        ("\u00e9".encode() * 4 + b"x", "\N{REPLACEMENT CHARACTER}" + "\u00e9" * 3 + "x"),
    ],
)
def test_the_end(said: bytes, shown: str) -> None:
    assert end_of(said, 8) == shown
