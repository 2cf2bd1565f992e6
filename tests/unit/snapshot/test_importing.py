"""Layouts read from a stream; `thaw import` has the rest, see tests/unit/cli/test_import.py."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest
from fakes.artifacts import made
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shim.errors import Damaged, Unfit
from shim.snapshot.artifact import seal
from shim.snapshot.exporting import write_layout
from shim.snapshot.importing import Layout, Stream, files_of, is_layout, take_tar
from shim.snapshot.store import Store


def piped(data: bytes) -> int:
    reader, writer = os.pipe()

    def feed() -> None:
        try:
            with open(writer, "wb", buffering=0) as file:
                file.write(data)
        except BrokenPipeError:
            pass

    threading.Thread(target=feed).start()
    return reader


def test_a_stream_only_goes_on() -> None:
    told: list[int] = []
    reader = piped(bytes(range(256)) * 1000)
    stream = Stream(reader, told.append)
    assert stream.read(3, 4) == b"\3\4\5\6"
    assert b"".join(stream.chunks(7, 249)) == bytes(range(7, 256))
    assert stream.read(255_999, 10) == b"\xff"
    assert stream.read(300_000, 10) == b""
    stream.drain()
    os.close(reader)
    assert sum(told) == 256_000


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("oci-layout", True),
        ("index.json", True),
        (f"blobs/sha256/{'0' * 64}", True),
        (f"blobs/sha256/{'0' * 64}\n", False),
        (f"blobs/sha256/{'A' * 64}", False),
        ("checkpoint/x", False),
    ],
)
def test_names(name: str, good: bool) -> None:
    assert is_layout(name) == good


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    folder = tmp_path_factory.mktemp("store")
    snapshot = made(Store(folder))
    digest = seal(snapshot)
    with open(folder / "out", "wb", buffering=0) as file:
        write_layout(snapshot, "worker", file.fileno(), lambda _: None)
    return (folder / "out").read_bytes(), digest


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_change(exported: tuple[bytes, str], tmp_path: Path, data: st.DataObject) -> None:
    """Refused, or of no effect: never another snapshot than that of the digest."""
    whole, digest = exported
    position = data.draw(st.integers(0, min(len(whole) - 1, 12_000)))
    changed = bytearray(whole)
    changed[position] ^= data.draw(st.integers(1, 255))
    target = tmp_path / "draft"
    target.mkdir()
    reader = piped(bytes(changed))
    try:
        stream = Stream(reader)
        assert take_tar(Layout(target, "x"), files_of(stream, "x")) == digest
    except (Unfit, Damaged):
        pass
    finally:
        os.close(reader)
        shutil.rmtree(target)
