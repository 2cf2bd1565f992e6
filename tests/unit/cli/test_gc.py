"""`thaw gc`: what has to go is said, or goes."""

from __future__ import annotations

import os
import time

import pytest
from fakes.command import Thaw
from fakes.snapshots import make

from shim.cli import exits
from shim.errors import FailedPrecondition
from shim.snapshot.store import Store


@pytest.fixture(autouse=True)
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour has passed since anything was made."""
    now = time.time() + 3600
    monkeypatch.setattr("shim.snapshot.retention.time", lambda: now)


def test_dry(thaw: Thaw) -> None:
    id = make(thaw.store, None)
    make(thaw.store, "named")
    size = next(entry.size for entry in thaw.store.entries() if entry.id == id)
    said = thaw("gc", "--dry-run")
    assert said.status == 0
    assert said.lines == [
        "SNAPSHOT          WHY              SIZE",
        f"{id}  unreachable  {size / 1024:.1f} KiB",
    ]
    assert said.err == f"{size / 1024:.1f} KiB would be freed\n"
    assert len(thaw.store.ids()) == 2
    assert thaw.audited == []


def test_for_good(thaw: Thaw) -> None:
    id = make(thaw.store, None)
    named = make(thaw.store, "named")
    made = make(thaw.second, None)
    said = thaw("gc", "-o", "json", "-q")
    assert (said.status, said.err) == (0, "")
    assert [(r["why"], r["id"], r["error"]) for r in said.json] == [
        ("unreachable", id, ""),
        ("unreachable", made, ""),
    ]
    assert (thaw.store.ids(), thaw.second.ids()) == ([named], [])
    assert thaw.audited[0] == {
        "event": "remove",
        "id": id,
        "outcome": "removed",
        "reason": "retention: unreachable",
    }


def test_what_cannot_be_removed(thaw: Thaw, monkeypatch: pytest.MonkeyPatch) -> None:
    id = make(thaw.store, None)

    def refuse(self: Store, id: str, wait: bool = False) -> None:
        raise FailedPrecondition("it is in use")

    monkeypatch.setattr(Store, "remove", refuse)
    said = thaw("gc")
    assert said.status == exits.FAILED
    assert said.lines[1].split()[0] == id
    assert said.lines[1].endswith("it is in use")
    assert "0 B freed" in said.err


def test_a_store_that_can_only_be_read(thaw: Thaw, monkeypatch: pytest.MonkeyPatch) -> None:
    make(thaw.store, None)
    kept = os.access
    here = thaw.store.folder
    monkeypatch.setattr(os, "access", lambda path, mode: path != here and kept(path, mode))
    said = thaw("gc")
    assert (said.status, said.lines) == (0, [])
    assert f"{here} can only be read" in said.err
    assert len(thaw.store.ids()) == 1
