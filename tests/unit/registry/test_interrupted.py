"""Pulls that are interrupted: at any byte, by the registry or by the end of the process."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakes.artifacts import PIECE, Artifact, files, left
from fakes.registry import Registry, Request, digest_of
from fakes.settled import PATIENCE

from shim.config import Config
from shim.errors import RegistryFailed
from shim.reference import Reference
from shim.registry import attempts, pull
from shim.registry.fetching import Fetch
from shim.registry.partial import SUFFIX, Partial
from shim.registry.progress import Halt, Progress
from shim.registry.transport import Interrupted
from shim.snapshot.store import Store

BLOB = random.Random(7).randbytes(150) + bytes(100) + b"end"
DIGEST = digest_of(BLOB)


class Source:
    """Gives a blob in blocks, and hangs up after some bytes; ranges are known to it, or not."""

    def __init__(self, cut: int = len(BLOB), ranges: bool = True, data: bytes = BLOB) -> None:
        self.cut = cut
        self.ranges = ranges
        self.data = data
        self.starts: list[int] = []

    @contextmanager
    def blob(self, digest: str, size: int, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        self.starts.append(start)
        first = start if self.ranges else 0
        yield first, self._blocks(first)

    def _blocks(self, first: int) -> Iterator[bytes]:
        last = min(first + self.cut, len(self.data))
        for position in range(first, last, 40):
            yield self.data[position : min(position + 40, last)]
        if last < len(self.data):
            self.cut += 1
            raise Interrupted("cut")


class Counted(Progress):
    def __init__(self) -> None:
        self.done = 0

    def advance(self, count: int) -> None:
        self.done += count


def fetch(folder: Path, source: Source) -> tuple[bytes, int]:
    """What has been fetched, and what progress was told of."""
    counted = Counted()
    Fetch(folder, DIGEST, len(BLOB), Halt(), counted).run(source)
    assert not list(folder.glob(f"*{SUFFIX}"))
    return (folder / DIGEST.removeprefix("sha256:")).read_bytes(), counted.done


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_is_cut_at_any_byte(tmp_path: Path, ranges: bool) -> None:
    for cut in range(1, len(BLOB)):
        source = Source(cut, ranges)
        assert fetch(tmp_path, source) == (BLOB, len(BLOB)), cut
        assert source.starts[1] == cut


def test_what_another_process_has_left_at_any_byte(tmp_path: Path) -> None:
    for there in range(len(BLOB) + 1):
        (tmp_path / f"{DIGEST.removeprefix('sha256:')}{SUFFIX}").write_bytes(BLOB[:there])
        source = Source()
        assert fetch(tmp_path, source) == (BLOB, len(BLOB)), there
        assert source.starts == ([there] if there < len(BLOB) else [])


@pytest.mark.parametrize("size", [1, 100, len(BLOB), len(BLOB) + 1])
def test_what_is_left_is_wrong(tmp_path: Path, size: int) -> None:
    (tmp_path / f"{DIGEST.removeprefix('sha256:')}{SUFFIX}").write_bytes(b"?" * size)
    source = Source()
    assert fetch(tmp_path, source) == (BLOB, len(BLOB))
    assert source.starts[-1] == 0


def test_nothing_comes_at_all(tmp_path: Path) -> None:
    source = Source(cut=0)
    source._blocks = lambda first: iter(())  # type: ignore[method-assign]
    with pytest.raises(RegistryFailed, match=DIGEST):
        fetch(tmp_path, source)
    assert len(source.starts) == len(attempts.WAITS) + 1


def test_next_to_nothing_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("shim.registry.attempts.time.monotonic", lambda: now[0])

    class Slow(Source):
        def _blocks(self, first: int) -> Iterator[bytes]:
            for position in range(first, len(BLOB)):
                now[0] += attempts.WINDOW / 3  # never so long that a read would time out
                yield BLOB[position : position + 1]

    with pytest.raises(RegistryFailed, match="in a second"):
        fetch(tmp_path, Slow())


def test_it_cannot_be_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{DIGEST.removeprefix('sha256:')}{SUFFIX}").write_bytes(b"?" * 10)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = Source()
    finish = Partial.finish

    def finished(partial: Partial) -> None:
        monkeypatch.setattr("shim.registry.fetching.Partial", full)
        finish(partial)

    monkeypatch.setattr(Partial, "finish", finished)
    with pytest.raises(OSError, match="No space"):
        fetch(tmp_path, source)


@pytest.mark.parametrize("cut", [40_000, 65_536, 131_073])
def test_cut_again_and_again(
    there: Store,
    artifact: Artifact,
    reference: Reference,
    config: Config,
    registry: Registry,
    pushed: str,
    cut: int,
) -> None:
    registry.cut = cut
    id = pull(there, reference, config)
    assert files(there.path_of(id)) == artifact.files
    assert registry.sent == sum(map(len, registry.blobs.values()))  # no byte twice


PULL = """
import sys
from shim.config import Config
from shim.reference import parse
from shim.registry import pull
from shim.snapshot.store import Store
store, reference, host = sys.argv[1:]
settings = {"registry.plain_http": host, "audit.log": "", "registry.transfers": 1}
pull(Store(store), parse(reference), Config(settings))
"""


def test_a_puller_that_is_killed(
    there: Store,
    artifact: Artifact,
    reference: Reference,
    config: Config,
    registry: Registry,
    pushed: str,
) -> None:
    registry.cut = PIECE // 2
    held, over = threading.Event(), threading.Event()

    def play(request: Request) -> bool:
        if request.headers.get("Range"):
            held.set()
            over.wait(2 * PATIENCE)
            request.hang_up()
        return bool(request.headers.get("Range"))

    registry.play = play
    arguments = [str(there.folder), reference.text, registry.host]
    puller = subprocess.Popen([sys.executable, "-c", PULL, *arguments])
    try:
        assert held.wait(PATIENCE)
    finally:
        puller.send_signal(signal.SIGKILL)
        puller.wait()
    over.set()
    registry.play = lambda _: False
    registry.cut = 0
    sent = registry.sent
    (remains,) = (there.folder / name for name in left(there))
    have = sum(map(os.path.getsize, (remains / "blobs/sha256").iterdir()))
    assert have >= PIECE // 2

    id = pull(there, reference, config)
    assert files(there.path_of(id)) == artifact.files
    assert left(there) == []
    assert registry.sent - sent == sum(map(len, registry.blobs.values())) - have
