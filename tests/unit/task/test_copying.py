"""Pipes at both ends, so that every pause is the kernel's and not a sleep."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace

import pytest
from fakes.host import Node, open_fds
from fakes.settled import PATIENCE

from shim.task.copying import CHUNK, Copies

BIG = bytes(range(256)) * 4096  # 1 MiB: sixteen times a pipe's capacity


def test_bytes_arrive_in_order_and_the_end_too(node: Node) -> None:
    copies, (source, feed), (drain, sink) = Copies(node.loop), os.pipe(), os.pipe()
    copies.add(source, sink, output=True)
    with open(drain, "rb") as reader, open(feed, "wb", 0) as writer:
        writer.write(b"one ")
        writer.write(b"two")
        writer.close()
        assert reader.read() == b"one two"
    assert copies.drain(PATIENCE)


def test_a_slow_reader_holds_the_writer_back(node: Node) -> None:
    """What nobody reads stays in the two pipes; the copy takes no more than one chunk beside."""
    copies, (source, feed), (drain, sink) = Copies(node.loop), os.pipe(), os.pipe()
    copies.add(source, sink, output=True)
    os.set_blocking(feed, False)
    written = 0
    while True:
        try:
            written += os.write(feed, BIG[written : written + CHUNK])
        except BlockingIOError:
            before = written
            node.do(lambda: None)  # a round in which the copy could have read more
            try:
                written += os.write(feed, BIG[written : written + CHUNK])
            except BlockingIOError:
                if written == before:
                    break
    assert written <= 4 * CHUNK
    got = b""
    os.set_blocking(feed, True)
    with open(drain, "rb", 0) as reader:
        while len(got) < written:
            got += reader.read(4096)
        os.write(feed, b"more")
        os.close(feed)
        assert got + reader.read(99) == BIG[:written] + b"more"
    assert copies.drain(PATIENCE)


def test_an_output_that_comes_as_the_last_one_ends(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for: that the other has ended is not taken for the end of both."""
    copies, (source, feed), (drain, sink) = Copies(node.loop), os.pipe(), os.pipe()
    (source_2, feed_2), (drain_2, sink_2) = os.pipe(), os.pipe()
    adding = threading.Thread(target=lambda: copies.add(source_2, sink_2, output=True))
    told = copies._drained.set

    def late() -> None:
        adding.start()
        adding.join(0.1)  # as far as it gets meanwhile
        told()

    copies.add(source, sink, output=True)
    with monkeypatch.context() as patch:
        patch.setattr(copies, "_drained", SimpleNamespace(set=late, clear=copies._drained.clear))
        os.close(feed)
        assert os.read(drain, 1) == b""
        node.do(lambda: None)
    adding.join()
    assert not copies.drain(0)
    os.close(feed_2)
    assert copies.drain(PATIENCE)
    os.close(drain)
    os.close(drain_2)


def test_drain_waits_for_outputs_only(node: Node) -> None:
    copies, (source, feed), (drain, sink) = Copies(node.loop), os.pipe(), os.pipe()
    assert copies.drain(0), "nothing to wait for"
    copies.add(source, sink)
    assert copies.drain(0), "an input is not waited for"
    other_source, other_feed = os.pipe()
    copies.add(other_source, os.open("/dev/null", os.O_WRONLY), output=True)
    assert not copies.drain(0)
    os.close(other_feed)
    assert copies.drain(PATIENCE)
    copies.close()
    node.do(lambda: None)
    os.close(feed)
    os.close(drain)


def readable(fd: int) -> bool:
    import select

    return bool(select.select([fd], [], [], 0)[0])


def test_a_reader_that_has_gone_ends_the_copy(node: Node) -> None:
    copies, (source, feed), (drain, sink) = Copies(node.loop), os.pipe(), os.pipe()
    copies.add(source, sink, output=True)
    os.close(drain)
    os.write(feed, b"nobody")
    assert copies.drain(PATIENCE)
    with pytest.raises(BrokenPipeError):
        os.write(feed, BIG)
    os.close(feed)


def test_the_last_holder_of_a_terminal_goes(node: Node) -> None:
    master, terminal = os.openpty()
    copies, (drain, sink) = Copies(node.loop), os.pipe()
    copies.add(master, sink, output=True)
    os.write(terminal, b"bye")
    os.close(terminal)
    with open(drain, "rb") as reader:
        assert reader.read() == b"bye", "EIO is the end, and no error"
    assert copies.drain(PATIENCE)


def test_close_lets_go_of_every_descriptor(node: Node) -> None:
    before = open_fds()
    copies, (source, feed), (drain, sink) = Copies(node.loop), os.pipe(), os.pipe()
    copies.add(source, sink, output=True)
    copies.close()
    assert copies.drain(PATIENCE), "an end is an end"
    os.close(feed)
    os.close(drain)
    assert open_fds(before) == set()


def test_an_end_gives_back_both_descriptors(node: Node) -> None:
    before = open_fds()
    copies, (source, feed), (drain, sink) = Copies(node.loop), os.pipe(), os.pipe()
    copies.add(source, sink, output=True)
    os.close(feed)
    assert copies.drain(PATIENCE)
    os.close(drain)
    copies.close()
    node.do(lambda: None)
    assert open_fds(before) == set()
