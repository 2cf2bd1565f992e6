"""The order in which members have to come; what is laid is in test_archive.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import Unfit
from shim.snapshot.laying import judged
from shim.snapshot.tar import Kind, Member


def member(path: str, kind: Kind = Kind.FILE, target: str = "") -> Member:
    return Member(kind, path.encode(), target.encode(), 0, 0, 0, 0, 0, 0, None, (0, 0), ())


def folder(path: str) -> Member:
    return member(path, Kind.FOLDER)


def test_a_walk() -> None:
    found = [
        folder(""), member("a"), folder("b"), member("b/a"), folder("b/c"), member("b/c/a"),
        member("b/d", Kind.LINK, "b/c/a"), member("c", Kind.LINK, "a"),
    ]  # fmt: skip
    assert list(judged(found, "x", False)) == found


@given(st.lists(st.sampled_from(["", "a", "b", "a/b", "a/a", "b/a", "a/b/a"]), max_size=7))
def test_no_walk_passes_that_is_none(paths: list[str]) -> None:
    """Every member lies in a folder that came before it and is not finished; none comes twice."""
    found = [folder(path) for path in paths]
    try:
        assert list(judged(found, "x", False)) == found
    except Unfit:
        return
    assert len(set(paths)) == len(paths)
    for number, path in enumerate(paths):
        parent = path.rpartition("/")[0]
        if parent:
            since = paths[paths.index(parent) : number]
            assert all(f"{other}/".startswith(f"{parent}/") for other in since)


def test_judged_before_the_end() -> None:
    """It is a generator: the first bad one ends it."""
    found = judged([member("a"), member("a")], "x.tar", False)
    assert next(found).path == b"a"
    with pytest.raises(Unfit, match=r"x\.tar: 'a' comes twice"):
        next(found)
