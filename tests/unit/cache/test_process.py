"""The holder as a process: what it has outlives it, and its death is noticed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fakes.cuda import FakeCuda
from fakes.gpu_snapshots import saved
from fakes.regions import UUIDS, fill, pattern
from fakes.settled import eventually

from shim.cache import client, holder
from shim.cache.client import Cached, Lost
from shim.config import Config
from shim.errors import Unavailable
from shim.gpu.memory.index import stored
from shim.gpu.memory.making import Wanted
from shim.snapshot import store as snapshots
from shim.snapshot.snapshot import Snapshot

from .conftest import SEGMENT

WANTED = [pattern("x" * 48, 1), pattern("1.x" * 20, 3)]


@pytest.fixture
def snapshot(stores: snapshots.Store) -> Snapshot:
    return saved(stores, "one", WANTED)


PROGRAM = """
import json, sys
from pathlib import Path
from shim.cache import holder
from shim.config import Config
holder.run(Config(json.loads(sys.argv[1])), Path(sys.argv[2]), segment=int(sys.argv[3]))
"""


class Process:
    """A holder of its own."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config = config
        folder.mkdir(exist_ok=True)
        words = [json.dumps(config.as_dict()), str(folder), str(SEGMENT)]
        self._process = subprocess.Popen([sys.executable, "-c", PROGRAM, *words])
        self.pid = self._process.pid
        eventually(self.answers)

    def answers(self) -> bool:
        try:
            return len(list(client.ask(self.config, {"verb": "list"}))) == 1
        except Unavailable:
            assert self._process.poll() is None, "it has ended"
            return False

    def take(self, snapshot: Snapshot) -> None:
        """Have it read a snapshot in."""
        list(client.ask(self.config, {"verb": "take", "path": str(snapshot.path), "wait": True}))

    def end(self, number: int) -> int:
        self._process.send_signal(number)
        return self._process.wait()


@pytest.fixture
def processes(config: Config, tmp_path: Path) -> Iterator[list[Process]]:
    made: list[Process] = []
    yield made
    for process in made:
        process.end(signal.SIGKILL)


def replica(config: Config, snapshot: Snapshot) -> tuple[Cached, list[Wanted]]:
    """An engine's side of it: whom it asks, and for what."""
    found = stored(snapshot)
    assert found is not None
    cached = client.of(config, snapshot, found)
    assert cached is not None
    return cached, [Wanted(UUIDS[0], len(data)) for data in WANTED]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_it_has_outlives_it(
    config: Config, tmp_path: Path, snapshot: Snapshot, processes: list[Process], number: int
) -> None:
    processes.append(Process(config, tmp_path / "cache"))
    processes[0].take(snapshot)
    assert processes[0].end(number) == (0 if number == signal.SIGTERM else -number)
    (snapshot.path / "pages" / "gpu-1.img.0000").unlink()
    processes.append(Process(config, tmp_path / "cache"))
    assert fill(*replica(config, snapshot)) == WANTED


def test_killed_while_it_copies(
    config: Config,
    tmp_path: Path,
    snapshot: Snapshot,
    processes: list[Process],
    cuda: FakeCuda,
) -> None:
    """Whoever waits is told, and has none of those regions."""
    processes.append(Process(config, tmp_path / "cache"))
    processes[0].take(snapshot)
    pid = processes[0].pid
    with cuda.held("cuEventSynchronize", pid):
        cuda.trace()

        def kill() -> None:
            eventually(lambda: ("cuEventSynchronize", pid) in cuda.traced)
            os.kill(pid, signal.SIGKILL)

        killing = threading.Thread(target=kill)
        killing.start()
        with pytest.raises(Lost):
            fill(*replica(config, snapshot))
        killing.join()


def test_there_is_one_a_folder(config: Config, tmp_path: Path, processes: list[Process]) -> None:
    processes.append(Process(config, tmp_path / "cache"))
    with pytest.raises(Exception, match="another holder has"):
        holder.owned(tmp_path / "cache")


def test_none_is_configured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text(f'state = "{tmp_path}"\n')
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setattr(sys, "argv", ["holder", "--config", str(tmp_path / "config.toml")])
        assert holder.main() == 0
        assert manager.recv(100) == b"READY=1"
    assert "there is no cache" in capsys.readouterr().err
