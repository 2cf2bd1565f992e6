"""Sockets are read and changed in files.img, and nothing else is; whatever the bytes are."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address

import pytest
from fakes.inet_images import entry, field, image, states
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import Damaged
from shim.restore.sockets import FilesImage, closed, moved

BOUND = entry(1, "10.0.0.5 80", state=10)
CONNECTED = entry(2, "fd00::5 9", "fd00::9 8")
NEW = ip_address("10.0.0.6").packed


def test_what_is_read() -> None:
    one, two = FilesImage(image(BOUND, CONNECTED)).sockets
    assert (one.id, one.family, one.type, one.protocol, one.state) == (1, 2, 1, 6, 10)
    assert (one.source, one.source_port, one.peer_port) == (bytes([10, 0, 0, 5]), 80, 0)
    assert (one.namespace, len(two.source), two.source_port, two.peer_port) == (7, 16, 9, 8)
    assert two.peer == ip_address("fd00::9").packed


def test_only_that_changes() -> None:
    before = image(BOUND, CONNECTED)
    assert FilesImage(before).changed({}) == before
    after = FilesImage(before).changed({1: moved(NEW)})
    assert after == image(entry(1, "10.0.0.6 80", state=10), CONNECTED)
    assert FilesImage(after).changed({1: moved(bytes([10, 0, 0, 5]))}) == before


def test_closed() -> None:
    before = FilesImage(image(BOUND, CONNECTED))
    after = before.changed({2: closed(before.sockets[1])})
    assert states(after) == [("10.0.0.5", 80, 10), ("::", 0, 7)]
    assert field(19, 3) in after, "shut down for both reading and writing"
    again = FilesImage(after)
    assert again.changed({2: closed(again.sockets[1])}) == after


def test_numbers_in_a_block() -> None:
    before = FilesImage(image(entry(1, "fd00::5 80", state=10, packed=True)))
    after = before.changed({1: moved(ip_address("fd00::6").packed)})
    assert states(after) == [("fd00::6", 80, 10)]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "other magic numbers"),
        (image(BOUND)[:-3], "cut off"),
        (image(BOUND, BOUND), "two sockets have one id"),
        (image(field(4, b"") + field(4, b"")), "a file is two sockets"),
        (image(field(4, b"")), "has no field 1"),
        (image(field(4, 5)), "a socket is a number"),
        (image(b"\x0b"), "wire type 3"),
        (image(b"\x00\x00"), "a field has no number"),
        (image(b"\x22\x7f"), "a field of 127 bytes"),
        (image(b"\x08" + b"\xff" * 11), "a number exceeds 64 bits"),
        (image(BOUND.replace(b"\x18\x02", b"\x18\x03")), "addresses that cannot be"),
        (image(BOUND) + bytes(1 << 24), "more than 16777216"),
    ],
)
def test_what_is_no_image(data: bytes, said: str) -> None:
    with pytest.raises(Damaged, match=f"files.img.*{said}"):
        FilesImage(data)


@given(st.binary(max_size=60), st.integers(0, 200), st.integers(0, 255))
def test_whatever_the_bytes_are(tail: bytes, at: int, byte: int) -> None:
    whole = image(BOUND, CONNECTED)
    one = bytearray(whole)
    one[at % len(whole)] = byte
    for data in (tail, whole + tail, whole[: at % len(whole)], bytes(one), whole[:8] + tail):
        with suppress(Damaged):
            read = FilesImage(data)
            changes = {s.id: closed(s) for s in read.sockets}
            assert FilesImage(read.changed(changes)).changed(changes) == read.changed(changes)
