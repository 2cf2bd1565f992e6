"""Maps of sparse files as lists of numbers; how tars write them is in test_tar.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.snapshot import sparse
from shim.snapshot.sparse import Regions, listed


def test_a_map() -> None:
    found = Regions([(0, 2), (2, 3), (9, 0)])
    found.check(9, 5)
    assert (list(found), len(found), found.numbers) == ([(0, 2), (2, 3), (9, 0)], 3, 6)
    assert found == Regions([(0, 2), (2, 3), (9, 0)]) != Regions([(0, 2)])
    assert hash(found) == hash(Regions(found))


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([(0, 2), (1, 2)], "out of order"),
        ([(5, 2), (1, 2)], "out of order"),
        ([(5, 0), (5, 0)], "empty region"),
        ([(5, 0), (6, 1)], "empty region"),
        ([(n, 1) for n in range(4)], "too many"),
        ([((1 << 63) - 1, (1 << 63) - 1), (1, 1)], "out of order"),
    ],
)
def test_what_is_no_map(pairs: list[tuple[int, int]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Regions(pairs, most=3)


def test_a_map_that_does_not_fit() -> None:
    found = Regions([(0, 2), (4, 4)])
    for size, stored in ((7, 6), (8, 5), (8, 7)):
        with pytest.raises(ValueError, match="not its data"):
            found.check(size, stored)
    found.check(8, 6)
    Regions().check(0, 0)
    found.add([9])
    with pytest.raises(ValueError, match="bad map"):
        found.check(99, 6)


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1), st.integers(1, 30))
def test_lists_in_slices(numbers: list[int], size: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sparse, "_SLICE", size)
        assert list(listed(b",".join(b"%d" % number for number in numbers), b",")) == numbers


@pytest.mark.parametrize("text", [b"", b",", b"1,", b",1", b"1,,2", b"1,x", b"-1", b"1 "])
@pytest.mark.parametrize("size", [1, 2, 100])
def test_what_is_no_list(text: bytes, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "_SLICE", size)
    with pytest.raises(ValueError, match="is no number"):
        list(listed(text, b","))
