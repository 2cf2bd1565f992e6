"""`thaw cache` and `thaw warm`: what they ask the holder, and what they make of its answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fakes.command import Thaw
from fakes.snapshots import make

from shim.cache import wire
from shim.cache.holder import listening
from shim.cli import exits

MIB = 1 << 20
Answers = Callable[[dict[str, Any]], list[dict[str, Any]]]


class Holder:
    """It answers what a test says, and notes what it was asked."""

    def __init__(self, path: str) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answers: Answers = lambda _: []
        self._listener = listening(path)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(2)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with closing(connection):
                request = wire.receive(connection)
                assert request is not None
                self.asked.append(request)
                for answer in self.answers(request):
                    wire.send(connection, answer)


@pytest.fixture
def holder(thaw: Thaw, tmp_path: Path) -> Iterator[Holder]:
    thaw.configure(state=str(tmp_path))
    made = Holder(str(tmp_path / "cache.sock"))
    yield made
    made.close()


def account(path: Path, key: str, **changes: Any) -> dict[str, Any]:
    known = {"key": key, "path": str(path), "size": 3 * MIB, "own": MIB, "used": 0.0}
    return {**known, "busy": False, **changes}


def contents(*snapshots: dict[str, Any]) -> dict[str, Any]:
    sizes = {"limit": 8 * MIB, "held": 4 * MIB, "used": 3 * MIB, "pinned": 4 * MIB}
    return {**sizes, "snapshots": list(snapshots)}


def test_what_is_in_it(thaw: Thaw, holder: Holder) -> None:
    named, nameless = make(thaw.store, "worker-1"), make(thaw.second, None)
    gone = Path("/gone/0123")
    found = contents(
        account(thaw.store.path_of(named), "a"),
        account(thaw.second.path_of(nameless), "b", busy=True),
        account(gone, "c"),
    )
    holder.answers = lambda _: [found]
    said = thaw("cache")
    width = max(len("worker-1"), len(nameless), len(str(gone)))
    assert said.lines == [
        "3.0 MiB used, 4.0 MiB held of 8.0 MiB, 4.0 MiB pinned",
        f"{'SNAPSHOT':{width}}     SIZE      OWN  USED",
        f"{'worker-1':{width}}  3.0 MiB  1.0 MiB  -",
        f"{nameless:{width}}  3.0 MiB  1.0 MiB  -     being copied",
        f"{gone!s:{width}}  3.0 MiB  1.0 MiB  -",
    ]
    assert thaw("cache", "-o", "json").json == found
    assert holder.asked == [{"verb": "list"}] * 2


def test_nothing_is_in_it(thaw: Thaw, holder: Holder) -> None:
    holder.answers = lambda _: [contents()]
    assert len(thaw("cache").lines) == 1


def test_dropped(thaw: Thaw, holder: Holder) -> None:
    """By its name, its id, or, if it is gone, what the list has."""
    id, other = make(thaw.store, "worker-1"), make(thaw.store, "other")
    found = contents(account(thaw.store.path_of(id), "a"), account(Path("/gone/0123"), "c"))
    holder.answers = lambda asked: [found if asked["verb"] == "list" else {"dropped": True}]
    said = thaw("cache", "--drop", "worker-1", "--drop", id, "--drop", "0123")
    assert (said.status, said.lines) == (0, [])
    assert said.err.splitlines()[0] == "worker-1: not in the cache any more"
    assert [asked["key"] for asked in holder.asked[1:]] == ["a", "a", "c"]
    for name in ("other", other):
        said = thaw("cache", "--drop", name)
        assert (said.status, f"{name} is not in the cache" in said.err) == (exits.MISSING, True)
    assert thaw("cache", "--drop", "nothing").status == exits.MISSING


def test_what_it_refuses(thaw: Thaw, holder: Holder) -> None:
    id = make(thaw.store, "worker-1")
    error = {"class": "FailedPrecondition", "message": "it is being copied", "hint": "wait"}
    holder.answers = lambda asked: [
        contents(account(thaw.store.path_of(id), "a"))
        if asked["verb"] == "list"
        else {"error": error}
    ]
    said = thaw("cache", "--drop", "worker-1")
    assert said.status == exits.TAKEN
    assert said.err == "thaw cache: it is being copied (wait)\n"


def test_a_holder_that_hangs_up(thaw: Thaw, holder: Holder) -> None:
    """Then nothing is known, and nothing was dropped."""
    id = make(thaw.store, "worker-1")
    assert thaw("cache").status == exits.UNREACHABLE
    holder.answers = lambda asked: (
        [contents(account(thaw.store.path_of(id), "a"))] if asked["verb"] == "list" else []
    )
    said = thaw("cache", "--drop", "worker-1")
    assert (said.status, "has hung up" in said.err) == (exits.UNREACHABLE, True)
    assert "not in the cache any more" not in said.err


def test_warmed(thaw: Thaw, holder: Holder) -> None:
    id = make(thaw.store, "worker-1")
    holder.answers = lambda _: [
        {"queued": True},
        {"done": MIB, "total": 3 * MIB},
        {"taken": True, "total": 3 * MIB},
    ]
    said = thaw("warm", "worker-1")
    assert said.status == 0
    assert said.lines[0].startswith("worker-1: in the cache (3.0 MiB in ")
    path = str(thaw.store.path_of(id))
    assert holder.asked == [{"verb": "take", "path": path, "wait": True}]


def test_not_all_are_warmed(thaw: Thaw, holder: Holder) -> None:
    make(thaw.store, "worker-1")
    holder.answers = lambda _: [{"queued": True}, {"taken": True, "total": 3 * MIB}]
    said = thaw("warm", "-o", "json", "nothing", "worker-1")
    assert said.status == exits.MISSING
    assert [(line["name"], line["bytes"]) for line in said.json] == [("worker-1", 3 * MIB)]


@pytest.mark.parametrize(
    ("last", "status"),
    [
        ([], exits.UNREACHABLE),
        ([{"error": {"class": "StoreFull", "message": "no room", "hint": ""}}], exits.FULL),
        ([{"error": {"class": "what", "message": "no room"}}], exits.UNREACHABLE),
    ],
)
def test_not_warmed(thaw: Thaw, holder: Holder, last: list[dict[str, Any]], status: int) -> None:
    make(thaw.store, "worker-1")
    holder.answers = lambda _: [{"queued": True}, *last]
    assert thaw("warm", "worker-1").status == status


def test_nobody_holds_a_cache(thaw: Thaw, tmp_path: Path) -> None:
    thaw.configure(state=str(tmp_path))
    make(thaw.store, "worker-1")
    for words in (["cache"], ["warm", "worker-1"]):
        said = thaw(*words)
        assert said.status == exits.UNREACHABLE
        assert "no cache answers at" in said.err
        assert "systemctl start thaw-cache" in said.err
