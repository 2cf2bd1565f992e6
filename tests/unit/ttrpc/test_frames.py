from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.ttrpc.frames import HEADER, MAX_BODY, REQUEST, RESPONSE, FrameTooBig, Reader, pack

frames = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 255), st.binary(max_size=40))


def test_the_header_is_ten_bytes_big_endian() -> None:
    assert pack(3, RESPONSE, b"ab", flags=4) == b"\0\0\0\2" + b"\0\0\0\3" + b"\2" + b"\4" + b"ab"


@given(st.lists(frames, max_size=5), st.lists(st.integers(0, 250), max_size=8))
def test_frames_come_out_however_they_were_split(
    sent: list[tuple[int, int, bytes]], cuts: list[int]
) -> None:
    data = b"".join(pack(stream, kind, body) for stream, kind, body in sent)
    reader = Reader()
    received = []
    for start, end in itertools.pairwise([0, *sorted(cuts), len(data)]):
        received += reader.feed(data[start:end])
    received += reader.feed(data[max([0, *cuts]) :] if max([0, *cuts]) > len(data) else b"")
    assert [(frame.stream, frame.kind, frame.body) for frame in received] == sent


def test_one_byte_at_a_time() -> None:
    reader = Reader()
    data = pack(1, REQUEST, b"hello") + pack(3, REQUEST, b"")
    bodies = [frame.body for byte in data for frame in reader.feed(bytes([byte]))]
    assert bodies == [b"hello", b""]


def test_the_greatest_body_passes() -> None:
    body = bytes(MAX_BODY)
    (frame,) = Reader().feed(pack(1, REQUEST, body))
    assert frame.body == body


def test_a_greater_body_is_refused_when_sent() -> None:
    with pytest.raises(FrameTooBig, match="4194305 bytes exceeds the limit of 4194304"):
        pack(1, REQUEST, bytes(MAX_BODY + 1))


@pytest.mark.parametrize("piece", [1 << 16, 1 << 23])
def test_a_greater_body_is_dropped_when_received(piece: int) -> None:
    reader = Reader()
    length = MAX_BODY + 77
    data = HEADER.pack(length, 5, REQUEST, 1) + bytes(length) + pack(7, REQUEST, b"next")
    received = [
        frame for at in range(0, len(data), piece) for frame in reader.feed(data[at:][:piece])
    ]
    assert [(f.stream, f.length, f.body) for f in received] == [(5, length, None), (7, 4, b"next")]


def test_a_dropped_body_takes_no_memory() -> None:
    reader = Reader()
    assert reader.feed(HEADER.pack(2**32 - 1, 1, REQUEST, 0)) == []
    for _ in range(100):
        assert reader.feed(bytes(1 << 16)) == []
        assert len(reader._buffer) == 0
