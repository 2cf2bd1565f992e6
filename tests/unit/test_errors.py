"""The tree that is drawn at the module's top is the tree that there is."""

from __future__ import annotations

import re

import pytest

from shim import errors
from shim.errors import ThawError

LEAVES = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, ThawError)
}
LINE = re.compile(r"^    ([│ ]*)[├└]── (\w+) +(\d+) +(\w+)")


def drawn() -> dict[str, tuple[str, int, str]]:
    """Name → parent, code and reason, from the drawing."""
    found: dict[str, tuple[str, int, str]] = {}
    above = ["ThawError"]
    for line in (errors.__doc__ or "").splitlines():
        match = LINE.match(line)
        if match:
            depth = len(match[1]) // 4 + 1
            above[depth:] = [match[2]]
            found[match[2]] = (above[depth - 1], int(match[3]), match[4])
    return found


def test_the_drawing() -> None:
    real = {
        name: (leaf.__bases__[0].__name__, leaf.code, leaf.reason)
        for name, leaf in LEAVES.items()
        if leaf is not ThawError
    }
    assert drawn() == real


@pytest.mark.parametrize("name", LEAVES)
def test_every_leaf(name: str) -> None:
    error = LEAVES[name]("it broke", hint="mend it")
    assert str(error) == "it broke (mend it)"
    assert (error.message, error.hint) == ("it broke", "mend it")
    assert str(LEAVES[name]("it broke")) == "it broke"
    assert re.fullmatch(r"([A-Z][a-z]+)+", error.reason)
    assert LEAVES[name].__doc__


def test_codes_are_grpcs() -> None:
    """containerd branches on NotFound, FailedPrecondition and Unimplemented."""
    assert {errors.NotFound.code, errors.NoSuchSnapshot.code} == {5}
    assert {errors.FailedPrecondition.code, errors.Unfit.code} == {9}
    assert errors.Unimplemented.code == 12
    assert errors.AlreadyExists.code == 6
    assert errors.DeadlineExceeded.code == 4
    assert errors.RuntimeFailed.code == 2
