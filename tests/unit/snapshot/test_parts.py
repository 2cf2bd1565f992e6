"""A file in parts, read and written as one."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.host import open_fds

from shim.errors import Damaged
from shim.snapshot import parts
from shim.snapshot.parts import Parts, cut, part, parts_of

CONTENT = os.urandom(300_001)


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds(before) == set()


def piped(base: Path, data: bytes, limit: int) -> None:
    reader, writer = os.pipe()

    def feed() -> None:
        try:
            with open(writer, "wb", buffering=0) as file:
                file.write(data)
        except BrokenPipeError:
            pass  # nobody wants it any more

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        cut(reader, base, limit)
    finally:
        os.close(reader)
        thread.join()


@pytest.mark.parametrize("limit", [1000, 100_000, 300_001, 1 << 30])
def test_cut_and_read(tmp_path: Path, limit: int) -> None:
    base = tmp_path / "a.tar"
    piped(base, CONTENT, limit)
    found = parts_of(base)
    assert [path.name for path in found][:2] == ["a.tar.0000", "a.tar.0001"][: len(found)]
    sizes = [path.stat().st_size for path in found]
    assert set(sizes[:-1]) <= {limit}
    assert b"".join(path.read_bytes() for path in found) == CONTENT
    with Parts(base) as source:
        assert source.size == len(CONTENT)
        for offset, length in ((0, 10), (999, 2), (99_990, 20), (5, 250_000), (300_000, 9)):
            assert source.read(offset, length) == CONTENT[offset : offset + length]
        assert source.read(400_000, 5) == b""


@pytest.mark.parametrize("kernel", ["copy_file_range", "sendfile"])
@pytest.mark.parametrize("limit", [70_001, 1 << 30])
def test_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, kernel: str) -> None:
    base = tmp_path / "a.tar"
    piped(base, CONTENT, limit)
    if kernel == "sendfile":

        def refuse(*_: object) -> int:
            raise OSError(errno.EXDEV, "elsewhere")

        monkeypatch.setattr(os, "copy_file_range", refuse)
    with Parts(base) as source, open(tmp_path / "out", "w+b") as out:
        for offset, length in ((7, 290_000), (290_007, 9000), (0, 7)):
            source.copy(offset, length, out.fileno(), offset)
        source.copy(0, 0, out.fileno(), 0)
        with pytest.raises(Damaged, match="cut off"):
            source.copy(200_000, 200_000, out.fileno(), 0)
        with pytest.raises(Damaged, match="cut off"):
            source.copy(300_000, 2, out.fileno(), 0)
    assert (tmp_path / "out").read_bytes()[290_007:299_007] == CONTENT[290_007:299_007]


def test_an_error_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    piped(tmp_path / "a.tar", CONTENT, 1 << 30)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "copy_file_range", full)
    with Parts(tmp_path / "a.tar") as source, pytest.raises(OSError, match="full"):
        source.copy(0, 100_000, 1, 0)


def test_nothing_is_nothing(tmp_path: Path) -> None:
    piped(tmp_path / "a.tar", b"", 100)
    assert parts_of(tmp_path / "a.tar") == []
    with pytest.raises(Damaged, match=r"a\.tar\.0000 is missing"):
        Parts(tmp_path / "a.tar")


def test_a_part_that_is_there_is_not_written_into(tmp_path: Path) -> None:
    part(tmp_path / "a.tar", 1).write_bytes(b"theirs")
    with pytest.raises(FileExistsError):
        piped(tmp_path / "a.tar", bytes(200), 100)
    assert part(tmp_path / "a.tar", 1).read_bytes() == b"theirs"


def test_parts_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "a.tar.0000").symlink_to("/etc/passwd")
    (tmp_path / "b.tar.0000").mkdir()
    os.mkfifo(tmp_path / "c.tar.0000")
    for name in "abc":
        with pytest.raises(Damaged, match="is no file"):
            Parts(tmp_path / f"{name}.tar")


def test_a_part_that_becomes_shorter(tmp_path: Path) -> None:
    piped(tmp_path / "a.tar", CONTENT, 100_000)
    with Parts(tmp_path / "a.tar") as source:
        os.truncate(tmp_path / "a.tar.0001", 10)
        with pytest.raises(Damaged, match="cut off"):
            source.read(150_000, 10)
        with open(tmp_path / "out", "wb") as out, pytest.raises(Damaged, match="cut off"):
            source.copy(90_000, 100_000, out.fileno(), 0)
    assert parts.PART == 1 << 30
