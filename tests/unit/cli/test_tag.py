"""`thaw tag`: names and sharing."""

from __future__ import annotations

import pytest
from fakes.command import Thaw
from fakes.snapshots import make

from shim.cli import exits

DIGEST = "sha256:" + "0" * 64


def test_another_name(thaw: Thaw) -> None:
    id = make(thaw.store, "one")
    said = thaw("tag", "one", "registry.local/team/worker:1")
    assert (said.status, said.lines) == (0, [f"registry.local/team/worker:1  {id}  private"])
    assert sorted(thaw.store.names().values()) == [id, id]
    assert thaw("ls", "-q").lines == ["one", "registry.local/team/worker:1"]
    assert thaw.audited == [
        {"event": "tag", "name": "registry.local/team/worker:1", "id": id, "outcome": "tagged"}
    ]


def test_a_name_that_is_taken(thaw: Thaw) -> None:
    one, two = make(thaw.store, "one"), make(thaw.store, "two")
    said = thaw("tag", "one", "two")
    assert (said.status, said.out) == (exits.TAKEN, "")
    assert "a snapshot named two exists" in said.err
    assert thaw.store.names() == {"one": one, "two": two}
    assert thaw("tag", "one", "two", "--replace").status == 0
    assert thaw.store.names() == {"one": one, "two": one}
    assert thaw.audited[-1]["reason"] == f"was {two}"


def test_sharing(thaw: Thaw) -> None:
    id = make(thaw.store, "one")
    assert thaw("tag", "one", "--shared", "-o", "json").json == {
        "name": "one",
        "id": id,
        "digest": "",
        "shared": True,
    }
    assert thaw.store.snapshot(id).shared
    assert thaw("tag", "one", "two").lines == [f"two  {id}  shared"]
    assert thaw("tag", "one", "--private").lines == [f"one  {id}  private"]
    assert not thaw.store.snapshot(id).shared
    events = [(line["event"], line["outcome"]) for line in thaw.audited]
    assert events == [("share", "shared"), ("tag", "tagged"), ("share", "private")]


def test_in_the_store_of_the_snapshot(thaw: Thaw) -> None:
    id = make(thaw.second, "one")
    assert thaw("tag", "one", "two").status == 0
    assert thaw.second.names() == {"one": id, "two": id}
    make(thaw.store, "three")
    said = thaw("tag", "one", "three", "--replace")
    assert said.status == exits.TAKEN
    assert "which is searched first" in said.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["one"], "nothing to do"),
        (["one", "auto"], "cannot be called auto"),
        (["one", f"two@{DIGEST}"], "no digest in it"),
        (["one", "../two"], "bad snapshot reference"),
        (["one", "Two"], "bad snapshot name"),
    ],
)
def test_what_is_no_name(thaw: Thaw, words: list[str], said: str) -> None:
    make(thaw.store, "one")
    found = thaw("tag", *words)
    assert found.status == exits.USAGE
    assert said in found.err
    assert list(thaw.store.names()) == ["one"]


def test_what_is_not_there_or_damaged(thaw: Thaw) -> None:
    assert thaw("tag", "none", "two").status == exits.MISSING
    bad = make(thaw.store, "bad")
    (thaw.store.path_of(bad) / "config.json").write_text("{")
    assert thaw("tag", "bad", "two", "--shared").status == exits.UNFIT
    assert list(thaw.store.names()) == ["bad"]
    assert thaw.audited == []
