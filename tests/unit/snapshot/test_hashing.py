"""SHA-256 of files, several at once."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from shim.errors import Cancelled
from shim.snapshot.hashing import hash_blobs


def test_hashes_in_order(tmp_path: Path) -> None:
    sizes = [0, 1, (4 << 20) - 1, 4 << 20, (9 << 20) + 7]
    datas = [os.urandom(size) for size in sizes]
    paths = [tmp_path / str(number) for number in range(len(sizes))]
    for path, data in zip(paths, datas, strict=True):
        path.write_bytes(data)
    told: list[int] = []
    for threads in (0, 1, 3):
        told.clear()
        assert hash_blobs(paths, threads, told.append) == [
            hashlib.sha256(data).hexdigest() for data in datas
        ]
        assert sum(told) == sum(sizes)
    assert hash_blobs([]) == []


def test_hashing_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"x" * (16 << 20))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("good")
    for name in ("fifo", "link", "gone", "."):
        with pytest.raises(OSError, match=r"\w"):
            hash_blobs([tmp_path / "good", tmp_path / name], 2)


def test_hashing_that_is_cancelled_midway(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(64 << 20))
    cancelled = threading.Event()
    told: list[int] = []

    def progress(count: int) -> None:
        told.append(count)
        cancelled.set()

    with pytest.raises(Cancelled):
        hash_blobs([tmp_path / "large"], 1, progress, cancelled)
    assert len(told) == 1
