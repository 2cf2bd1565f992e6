"""Fields of headers: what they can be, and that nothing else passes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.snapshot.tarfields import decimal, inner_path, number, octal, owner, time


@given(st.binary(max_size=24))
def test_any_bytes(text: bytes) -> None:
    for read in (decimal, octal, number, time):
        try:
            read(text.ljust(1, b"\0"))
        except ValueError:
            continue


@given(st.integers(0, (1 << 63) - 1))
def test_numbers(value: int) -> None:
    assert decimal(b"%d" % value) == octal(b" %o\0" % value) == value
    assert number(b"\x80" + value.to_bytes(11, "big")) == number(b"%o\0" % value) == value


@pytest.mark.parametrize(
    "text", [b"", b"+1", b"-1", b"1_0", b" 1", b"1\n", "٣".encode(), b"9" * 19]
)
def test_what_is_no_number(text: bytes) -> None:
    with pytest.raises(ValueError, match="is no number"):
        decimal(text)


def test_owners() -> None:
    assert owner(0) == 0
    assert owner((1 << 32) - 2) == (1 << 32) - 2
    with pytest.raises(ValueError, match="nobody"):
        owner((1 << 32) - 1)


@given(st.binary(max_size=30))
def test_paths_stay_inside(name: bytes) -> None:
    try:
        path = inner_path(name)
    except ValueError:
        return
    assert path
    assert not path.startswith(b"/")
    assert not {b"", b".", b".."} & set(path.split(b"/"))
