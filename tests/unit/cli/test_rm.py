"""`thaw rm`: what is named goes, and nothing else."""

from __future__ import annotations

import pytest
from fakes.command import Thaw
from fakes.snapshots import make

from shim.cli import exits
from shim.snapshot import lost
from shim.snapshot.artifact import seal
from shim.snapshot.store import held


def test_several(thaw: Thaw) -> None:
    one, two, three = (make(thaw.store, name) for name in ("one", "two", "three"))
    said = thaw("rm", "one", "two")
    assert (said.status, said.out, said.err) == (0, "", "")
    assert thaw.store.ids() == [three]
    assert thaw.audited == [
        {"event": "remove", "name": name, "id": id, "outcome": "removed", "reason": "rm"}
        for name, id in (("one", one), ("two", two))
    ]


def test_the_last_name(thaw: Thaw) -> None:
    id = make(thaw.store, "one")
    thaw.store.tag("two", id)
    assert thaw("rm", "one", "-o", "json").json == [
        {"reference": "one", "id": id, "removed": False, "names": ["two"]}
    ]
    assert thaw.store.names() == {"two": id}
    assert thaw.store.ids() == [id]
    assert thaw("rm", "two").status == 0
    assert (thaw.store.names(), thaw.store.ids()) == ({}, [])
    assert [line["outcome"] for line in thaw.audited] == ["untagged", "removed"]


@pytest.mark.parametrize("how", ["id", "digest", "named digest"])
def test_the_snapshot_itself(thaw: Thaw, how: str) -> None:
    id = make(thaw.store, "one")
    thaw.store.tag("two", id)
    digest = seal(thaw.store.snapshot(id))
    word = {"id": id, "digest": digest, "named digest": f"one@{digest}"}[how]
    assert thaw("rm", word).status == 0
    assert (thaw.store.names(), thaw.store.ids()) == ({}, [])
    assert thaw.audited[0]["digest"] == digest


def test_one_that_cannot_be_read_can_be_removed(thaw: Thaw) -> None:
    id = make(thaw.store, "one")
    (thaw.store.path_of(id) / "config.json").write_text("{")
    assert thaw("rm", "one").status == 0
    assert thaw.store.ids() == []


def test_a_name_that_leads_nowhere(thaw: Thaw) -> None:
    make(thaw.store, "one")
    (thaw.store.folder / "names" / "lost").write_text("0123456789abcdef\n")
    assert thaw("rm", "lost").status == 0
    assert list(thaw.store.names()) == ["one"]


def test_a_worker_that_was_lost_over_a_name(thaw: Thaw) -> None:
    """It is forgotten, with the snapshot of that name or without one: the next one is tried."""
    make(thaw.store, "one")
    for name in ("one", "two"):
        lost.note(thaw.store.folder, name, "a worker", "no room")
    assert thaw("rm", "auto").status != 0
    assert thaw("rm", "one", "two").status == 0
    assert list((thaw.store.folder / lost.FOLDER).iterdir()) == []
    assert thaw("rm", "two").status == exits.MISSING


def test_those_that_cannot_be_removed_keep_no_other(thaw: Thaw) -> None:
    one = make(thaw.store, "one")
    make(thaw.store, "two")
    with held(thaw.store.path_of(one)):
        said = thaw("rm", "none", "one", f"sha256:{'0' * 64}", "two")
    assert said.status == exits.MISSING, "the first one's"
    assert [line.partition(" (")[0] for line in said.err.splitlines()] == [
        f"thaw rm: no snapshot named none in {thaw.store.folder}, {thaw.second.folder}",
        f"thaw rm: snapshot {one} is being restored from, or made",
        f"thaw rm: no snapshot with the digest sha256:{'0' * 64}",
    ]
    assert thaw.store.names() == {"one": one}, "it keeps its name, too"
    assert [line["outcome"] for line in thaw.audited] == ["failed", "removed"]


@pytest.mark.parametrize("word", ["../precious", "/precious", "..", ".", "auto", "sha256:.."])
def test_nothing_outside_the_store(thaw: Thaw, word: str) -> None:
    make(thaw.store, "one")
    precious = thaw.store.folder.parent / "precious"
    precious.mkdir()
    assert thaw("rm", word).status in (exits.USAGE, exits.MISSING)
    assert precious.is_dir()
    assert len(thaw.store.ids()) == 1
