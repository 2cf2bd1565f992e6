"""Descriptors on their way to the holder: as many as were said, and they are nobody else's."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from fakes.host import open_fds

from shim.cache import wire

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_descriptors_are_closed_on_exec(pair: Pair) -> None:
    ours, theirs = pair
    wire.send_files(ours, [ours.fileno()] * wire.BATCH)
    files = wire.receive_files(theirs, wire.BATCH)
    inherited = [fd for fd in files if os.get_inheritable(fd)]
    for fd in files:
        os.close(fd)
    assert (len(files), inherited) == (wire.BATCH, [])


@pytest.mark.parametrize(("sent", "wanted"), [(3, 2), (wire.BATCH + 1, wire.BATCH), (0, 1)])
def test_other_than_were_said(pair: Pair, sent: int, wanted: int) -> None:
    """They are closed."""
    ours, theirs = pair
    before = open_fds()
    socket.send_fds(ours, [b"+"], [ours.fileno()] * sent)
    ours.shutdown(socket.SHUT_WR)
    with pytest.raises(ValueError, match="missing, or too many"):
        wire.receive_files(theirs, wanted)
    assert open_fds() == before


def test_they_do_not_come(pair: Pair) -> None:
    ours, theirs = pair
    ours.close()
    with pytest.raises(ValueError, match="missing, or too many"):
        wire.receive_files(theirs, 1)
