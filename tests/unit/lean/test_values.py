"""Values behave as frozen dataclasses do."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, replace
from typing import Any

import pytest

from shim.lean.values import Value


class Point(Value):
    """A place."""

    x: int
    y: int = 2
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reference:
    """The same, by the library."""

    x: int
    y: int = 2
    names: list[str] = field(default_factory=list)


class Pair(Value):
    """Something that can be a key."""

    first: str
    second: Point | None = None


class Blob(Value):
    """Something that is too long for a line."""

    name: str
    data: bytes = field(default=b"", repr=False)


GIVEN: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((1,), {}),
    ((1, 3), {}),
    ((1, 3, ["a"]), {}),
    ((), {"x": 1}),
    ((), {"names": ["b"], "x": 7}),
    ((1,), {"names": ["b"]}),
]


@pytest.mark.parametrize(("args", "given"), GIVEN)
def test_it_has_what_it_is_given(args: tuple[Any, ...], given: dict[str, Any]) -> None:
    made, meant = Point(*args, **given), Reference(*args, **given)
    assert asdict(made) == asdict(meant)
    assert list(vars(made)) == list(vars(meant))
    assert repr(made) == repr(meant).replace("Reference", "Point")
    assert [f.name for f in fields(made)] == [f.name for f in fields(meant)]


@pytest.mark.parametrize(
    ("args", "given"),
    [((), {}), ((), {"y": 1}), ((1, 2, [], 4), {}), ((1,), {"x": 1}), ((1,), {"z": 1})],
)
def test_what_a_dataclass_refuses(args: tuple[Any, ...], given: dict[str, Any]) -> None:
    for kind in (Reference, Point):
        with pytest.raises(TypeError):
            kind(*args, **given)


def test_what_is_missing_or_too_much_is_named() -> None:
    with pytest.raises(TypeError, match="Point: x is missing"):
        Point(y=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="Point: z, and not x, y, names"):
        Point(1, z=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="Point: 4 values, and not x, y, names"):
        Point(1, 2, [], 4)  # type: ignore[call-arg]


def test_what_shall_not_be_shown_is_not() -> None:
    assert repr(Blob("a", b"xyz")) == "Blob(name='a')"
    assert Blob("a", b"xyz") != Blob("a")


def test_each_has_a_default_of_its_own() -> None:
    one, other = Point(1), Point(1)
    assert one == other
    one.names.append("a")
    assert one != other


def test_equal_ones_are_the_same_key() -> None:
    assert {Pair("a"): 1}[Pair("a")] == 1
    assert Pair("a") != Pair("b")
    assert Point(1) != Reference(1)
    assert Reference(1) != Point(1)
    with pytest.raises(TypeError, match="unhashable"):
        hash(Point(1))


def test_it_does_not_change() -> None:
    made = Point(1)
    with pytest.raises(FrozenInstanceError, match="'x'"):
        made.x = 2  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError, match="'x'"):
        del made.x
    assert replace(made, x=5) == Point(5)
    assert made == Point(1)


def test_values_in_values() -> None:
    assert asdict(Pair("a", Point(1))) == {
        "first": "a",
        "second": {"x": 1, "y": 2, "names": []},
    }
    match Pair("a", Point(3)):
        case Pair(first, Point(x)):
            assert (first, x) == ("a", 3)
