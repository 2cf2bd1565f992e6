"""A checkpoint of a worker that is put to sleep for it: when, and what follows a failure."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.dumping import SPEC, Criu, left, made, native, work_of
from fakes.snapshots import make
from fakes.talkers import answer, talker

from shim.bundle import CRIU_CONFIG
from shim.checkpoint import engine
from shim.checkpoint.engine import checkpoint
from shim.errors import AlreadyExists, CheckpointFailed, WorkerFailed
from shim.snapshot.store import Store
from shim.work import Work


class Sleeper:
    """Notes what is asked of a worker, and how far the dump is then."""

    def __init__(self, criu: Criu, folder: Path) -> None:
        self._criu = criu
        self._store = Store(folder / "snapshots")
        self.seen: list[tuple[str, int, bool]] = []
        self.refused = ""

    def talk(self, connection: socket.socket, request: bytes) -> None:
        path = request.split()[1].decode()
        self.seen.append((path, len(self._criu.dumps), list(self._store.names()) != []))
        answer(500 if path == self.refused else 200)(connection, request)


@pytest.fixture
def sleeper(criu: Criu, tmp_path: Path) -> Sleeper:
    return Sleeper(criu, tmp_path)


@pytest.fixture
def asleep(sleeper: Sleeper, tmp_path: Path) -> Iterator[Work]:
    """The request to dump a container with such a worker."""
    with talker(sleeper.talk) as server:
        notes = {
            "thaw.dev/quiesce": f"http:{server.port}/sleep",
            "thaw.dev/resume": f"http:{server.port}/wake",
        }
        steered = {CRIU_CONFIG: str(tmp_path / "state" / "criu.conf")}
        yield work_of(tmp_path, {**SPEC, "annotations": {**steered, **notes}})


def test_it_sleeps_only_for_the_dump(asleep: Work, sleeper: Sleeper, tmp_path: Path) -> None:
    """Also if it is dumped twice; what takes time comes once it is awake again."""
    reply = checkpoint(native(asleep))
    assert sleeper.seen == [("/sleep", 0, False), ("/wake", 2, False)]
    spans = {span.name: span for span in made(tmp_path).config.spans}
    assert {"quiesce", "dump", "resume"} <= spans.keys()
    assert spans["resume"].start < spans["write"].start
    assert reply["unresumed"] == ""
    assert reply["quiet"] > reply["frozen"] > 0


def test_one_that_cannot_sleep_is_not_dumped(
    asleep: Work, sleeper: Sleeper, criu: Criu, tmp_path: Path
) -> None:
    sleeper.refused = "/sleep"
    with pytest.raises(WorkerFailed, match=r"no snapshot is made.*/sleep: answered 500"):
        checkpoint(asleep)
    assert (criu.options, left(tmp_path)) == ([], [])
    assert [seen[0] for seen in sleeper.seen] == ["/sleep", "/wake"]


@pytest.mark.parametrize("exit", [False, True])
def test_a_dump_that_fails_wakes_it(
    asleep: Work, sleeper: Sleeper, criu: Criu, tmp_path: Path, exit: bool
) -> None:
    criu.fails_after = "criu failed: out of luck"
    sleeper.refused = "/wake"
    with pytest.raises(CheckpointFailed, match=r"(?s)out of luck.*cannot be resumed.*/wake"):
        checkpoint(native(asleep, "criu", exit=exit))
    assert [seen[0] for seen in sleeper.seen] == ["/sleep", "/wake"]


def test_a_name_that_is_taken_lets_it_be(asleep: Work, sleeper: Sleeper, tmp_path: Path) -> None:
    make(Store(tmp_path / "snapshots"), "one")
    with pytest.raises(AlreadyExists):
        checkpoint(asleep)
    assert sleeper.seen == []


def test_one_that_does_not_wake_up_has_a_snapshot(
    asleep: Work, sleeper: Sleeper, tmp_path: Path
) -> None:
    sleeper.refused = "/wake"
    reply = checkpoint(asleep)
    assert "/wake: answered 500" in reply["unresumed"]
    assert reply["path"] == str(made(tmp_path).path)


def test_one_that_is_to_end_is_left_asleep(
    asleep: Work, sleeper: Sleeper, criu: Criu, tmp_path: Path
) -> None:
    """It runs until its snapshot is published; unless that fails, nobody needs it."""
    checkpoint(native(asleep, ends=True))
    assert "--leave-running" in criu.options
    assert [seen[0] for seen in sleeper.seen] == ["/sleep"]
    made(tmp_path)


def test_one_that_does_not_end_after_all_is_woken(
    asleep: Work, sleeper: Sleeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise CheckpointFailed("no room", hint="the container runs on")

    monkeypatch.setattr(engine, "_pack", full)
    with pytest.raises(CheckpointFailed, match="no room"):
        checkpoint(native(asleep, ends=True))
    assert [seen[0] for seen in sleeper.seen] == ["/sleep", "/wake"]
    assert left(tmp_path) == []


def test_into_a_folder_it_sleeps_too(asleep: Work, sleeper: Sleeper, tmp_path: Path) -> None:
    checkpoint(native(asleep, "criu", name="", path=str(tmp_path / "images")))
    assert [seen[0] for seen in sleeper.seen] == ["/sleep", "/wake"]
