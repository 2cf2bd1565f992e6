"""What goes from a store, and in which order."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from fakes.snapshots import config, make

from shim.config import Config
from shim.snapshot import retention
from shim.snapshot.artifact import seal
from shim.snapshot.retention import Candidate, Limits
from shim.snapshot.store import Entry, Store, held

NOW = 1_000_000.0
GIB = 1 << 30
DAY = 86400.0


def candidate(id: str, age: float, **changes: Any) -> Candidate:
    """A snapshot of 1 GiB that was made so long ago, and has a name."""
    keys = ("arrived", "reachable", "busy", "blocks")
    own = {key: changes.pop(key) for key in keys if key in changes}
    fields = {"names": [id], "created": NOW - age, "size": GIB, **changes}
    return Candidate(Entry(id, **fields), **own)


def planned(candidates: list[Candidate], size: float = 0, age: float = 0) -> list[tuple[str, str]]:
    going = retention.plan(candidates, Limits(int(size * GIB), age), NOW)
    return [(why, entry.id) for why, entry in going]


def test_nothing_has_to_go() -> None:
    assert planned([]) == []
    assert planned([candidate("a", 1e6), candidate("b", 61)]) == []
    assert planned([candidate("a", 1e5), candidate("b", 61)], size=2, age=1e6) == []


def test_what_nobody_can_reach_goes_first_whatever_the_limits() -> None:
    found = [candidate("a", 500), candidate("b", 100, reachable=False, names=[])]
    assert planned(found) == [("unreachable", "b")]
    assert planned(found, size=1) == [("unreachable", "b")], "that is enough"
    assert planned(found, size=0.5) == [("unreachable", "b"), ("size", "a")]


def test_those_restored_longest_ago_go_until_there_is_room() -> None:
    found = [
        candidate("old, used now", 900, used=NOW - 70),
        candidate("new, never used", 200),
        candidate("new, used", 300, used=NOW - 250),
        candidate("old, never used", 800),
    ]
    assert planned(found, size=2) == [("size", "old, never used"), ("size", "new, used")]
    assert len(planned(found, size=0.1)) == 4


def test_age_counts_from_the_last_restore() -> None:
    found = [
        candidate("used", 10 * DAY, used=NOW - DAY),
        candidate("never used", 10 * DAY),
        candidate("used long ago", 20 * DAY, used=NOW - 8 * DAY),
        candidate("fetched", 20 * DAY, arrived=NOW - DAY),
    ]
    assert planned(found, age=7 * DAY) == [("age", "never used"), ("age", "used long ago")]


def test_age_makes_room() -> None:
    found = [candidate("a", 10 * DAY), candidate("b", DAY), candidate("c", 2 * DAY)]
    assert planned(found, size=2, age=7 * DAY) == [("age", "a")]


def test_what_two_have_in_common_is_free_when_both_are_gone() -> None:
    common = {"pages": GIB}
    found = [
        candidate("a", 300, blocks={"a": GIB, **common}),
        candidate("b", 200, blocks={"b": GIB, **common}),
        candidate("c", 100, blocks={"c": GIB}),
    ]
    assert planned(found, size=4) == []
    assert planned(found, size=3) == [("size", "a")]
    assert planned(found, size=2) == [("size", "a"), ("size", "b")]


@pytest.mark.parametrize(
    "changes",
    [{"busy": True}, {"created": NOW - 59}, {"arrived": NOW - 59}, {"created": NOW + 1000}],
)
def test_never_one_in_use_or_just_made(changes: dict[str, Any]) -> None:
    found = [candidate("a", 1e5, reachable=False, **changes), candidate("b", 1e4)]
    assert planned(found, size=0.1, age=1e3) == [("age", "b")]


# On a disk


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An hour has passed since anything was made."""
    now = time.time() + 3600
    monkeypatch.setattr(retention, "time", lambda: now)
    return Store(tmp_path / "store", [tmp_path / "stripe"])


def configured(store: Store, **values: float) -> Config:
    keys = {name.replace("__", "."): value for name, value in values.items()}
    return Config(
        {
            "snapshots": str(store.folder),
            "stripes": str(store.stripes[0]),
            "audit.log": str(store.folder.parent / "audit.log"),
            **keys,
        }
    )


def applied(store: Store, **values: float) -> list[tuple[str, str, bool]]:
    done = retention.apply(store, configured(store, **values))
    return [(r.why, r.id or r.path.name, bool(r.error)) for r in done]


def test_those_without_a_name_go(store: Store) -> None:
    lost = make(store, None)
    sealed, named = make(store, None), make(store, "named")
    seal(store.snapshot(sealed))
    assert applied(store) == [("unreachable", lost, False)]
    assert store.ids() == sorted([sealed, named])
    assert applied(store) == []
    audit = (store.folder.parent / "audit.log").read_text()
    assert audit.count("\n") == 1
    assert f'"{lost}"' in audit


def test_one_that_cannot_be_read_is_reached_by_its_digest(store: Store) -> None:
    """It may be of a newer version, which another node understands."""
    id = make(store, None)
    seal(store.snapshot(id))
    (store.path_of(id) / "config.json").write_text("{}")
    assert applied(store) == []
    assert store.ids() == [id]


def test_the_limit_of_size(store: Store) -> None:
    old = make(store, "old", config(created="2020-01-01T00:00:00Z"))
    used = make(store, "used", config(created="2020-01-01T00:00:00Z"))
    new = make(store, "new", config(created="2021-01-01T00:00:00Z"))
    # Each has come at another time; what its document says of its age does not count here.
    for number, id in enumerate((used, old, new)):
        os.utime(store.path_of(id) / "config.json", (0, 1.6e9 + number))
    store.mark_used(used)
    each = store.entries()[0].size
    assert applied(store, retention__size=2.5 * each / GIB) == [("size", old, False)]
    assert applied(store, retention__size=1.5 * each / GIB) == [("size", new, False)]
    assert store.ids() == [used]


def test_one_that_has_come_by_a_pull_is_as_young_as_that(store: Store) -> None:
    id = make(store, "one", config(created="2020-01-01T00:00:00Z"))
    assert applied(store, retention__age=1) == []
    os.utime(store.path_of(id) / "config.json", (0, 1.6e9))
    assert applied(store, retention__age=1) == [("age", id, False)]


def test_one_that_is_restored_from_stays(store: Store) -> None:
    id = make(store, None)
    with held(store.path_of(id)):
        assert applied(store) == []
    assert applied(store) == [("unreachable", id, False)]


def test_a_restore_that_begins_meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    id = make(store, None)
    monkeypatch.setattr(retention, "_busy", lambda _: False)
    with held(store.path_of(id)):
        assert applied(store) == [("unreachable", id, True)]
    assert store.ids() == [id]


def test_one_that_somebody_else_removes_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = make(store, None)
    going = retention.find(store, configured(store))
    store.remove(id)
    monkeypatch.setattr(retention, "find", lambda *_: going)
    assert applied(store) == []


def aged(path: Path) -> Path:
    """A folder with a file, of two days ago."""
    path.mkdir(parents=True)
    (path / "blob").write_bytes(b"x")
    for place in (path / "blob", path):
        os.utime(place, (0, time.time() - 2 * DAY))
    return path


def test_a_pull_that_nobody_resumes(store: Store) -> None:
    make(store, "one")
    forgotten = aged(store.folder / ".pull-1")
    fresh, growing, busy = (aged(store.folder / f".pull-{n}") for n in (2, 3, 4))
    os.utime(fresh)
    os.utime(growing / "blob")
    with held(busy):
        assert applied(store) == [("leftover", ".pull-1", False)]
    assert not forgotten.exists()
    assert all(path.is_dir() for path in (fresh, growing, busy))


def test_files_that_were_about_to_become_something(store: Store) -> None:
    make(store, "one")
    (store.folder / "leases").mkdir()
    paths = [store.folder / name for name in (".key-1", ".key-2", "leases/.1", "leases/auto-1")]
    for path in (*paths, store.folder / "key", store.folder / "leases" / "auto-2"):
        path.touch()
        if path.name not in (".key-2", "auto-2"):
            os.utime(path, (0, time.time() - 2 * DAY))
    gone = [".key-1", ".1", "auto-1"]
    assert applied(store) == [("leftover", name, False) for name in gone]
    assert [path.name for path in paths if path.exists()] == [".key-2"]
    assert (store.folder / "key").exists()
    assert os.listdir(store.folder / "leases") == ["auto-2"]


def test_what_a_stripe_has_of_nothing(store: Store, tmp_path: Path) -> None:
    one = make(store, "one")
    other = Store(tmp_path / "other", store.stripes)
    two = make(other, "two")
    stripe = store.stripes[0]
    for id in (one, two):
        for path in (stripe / "snapshots" / id, stripe / "snapshots" / id / "pages"):
            os.utime(path, (0, 1.6e9))
    orphan, draft = aged(stripe / "snapshots" / ("0" * 16)), aged(stripe / (".draft-" + "1" * 16))
    fresh, mine = aged(stripe / "snapshots" / ("2" * 16)), aged(stripe / ".draft-mine")
    os.utime(fresh)
    stores = {"snapshots": f"{store.folder}:{other.folder}", "audit.log": ""}
    other.folder.rename(tmp_path / "not mounted")
    assert retention.apply(store, configured(store).overridden(stores)) == []
    (tmp_path / "not mounted").rename(other.folder)
    done = retention.apply(store, configured(store).overridden(stores))
    assert [(r.why, r.path) for r in done] == [("orphan", draft), ("orphan", orphan)]
    assert not orphan.exists()
    assert not draft.exists()
    assert all(path.is_dir() for path in (fresh, mine, stripe / "snapshots" / two))


def test_a_store_that_cannot_be_read_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make(store, "one")

    def fail(_: Store) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Store, "sweep", fail)
    assert applied(store) == [("", store.folder.name, True)]


def test_a_store_that_is_not_there(store: Store) -> None:
    assert applied(store) == []
    assert not store.folder.exists()
