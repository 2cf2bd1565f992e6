"""The config document is untrusted input: whatever is in it, Unfit is all that may come of it."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from fakes.snapshots import CONFIG
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import Unfit
from shim.snapshot.config import FORMAT, Origin, SnapshotConfig

DOCUMENT: dict[str, Any] = json.loads(CONFIG.to_json())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in the document."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [path, *(found for key, item in inner for found in paths(item, (*path, key)))]


PLACES = paths(DOCUMENT)


def with_value(place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    document = json.loads(CONFIG.to_json())
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return document


def read(document: Any) -> SnapshotConfig:
    return SnapshotConfig.from_json(json.dumps(document), "/s/config.json")


def test_what_is_written_is_read() -> None:
    assert SnapshotConfig.from_json(CONFIG.to_json(), "x") == CONFIG
    assert SnapshotConfig.from_json(CONFIG.to_json().encode(), "x") == CONFIG


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_noise(noise: bytes | str) -> None:
    with pytest.raises(Unfit, match=r"/s/config\.json"):
        SnapshotConfig.from_json(noise, "/s/config.json")


@given(JSON)
def test_any_json(value: Any) -> None:
    with pytest.raises(Unfit):
        read(value)


@given(st.sampled_from(PLACES), JSON)
def test_another_value_anywhere(place: tuple[Any, ...], value: Any) -> None:
    """Either it is refused, or everything in it has the type that is declared."""
    try:
        config = read(with_value(place, value))
    except Unfit:
        return
    again = json.loads(config.to_json())
    assert same_shape(again, DOCUMENT), (place, value)


def same_shape(one: Any, other: Any) -> bool:
    if isinstance(other, dict) and all(isinstance(k, str) for k in other):
        return isinstance(one, dict)
    return type(one) is type(other)


@pytest.mark.parametrize("name", sorted(DOCUMENT))
def test_a_missing_field_is_named(name: str) -> None:
    document = {key: value for key, value in DOCUMENT.items() if key != name}
    with pytest.raises(Unfit, match=name) as refused:
        read(document)
    assert refused.value.hint


@pytest.mark.parametrize("name", [field.name for field in fields(Origin)])
def test_a_missing_field_further_in(name: str) -> None:
    origin = {key: value for key, value in DOCUMENT["origin"].items() if key != name}
    with pytest.raises(Unfit, match=rf"origin: expected a field '{name}'"):
        read({**DOCUMENT, "origin": origin})


def test_fields_of_a_later_version_are_passed_over() -> None:
    assert read({**DOCUMENT, "gpu": {"a": 1}}) == CONFIG


@pytest.mark.parametrize("format_", [FORMAT + 1, 0, str(FORMAT), None, True, float(FORMAT)])
def test_another_format(format_: Any) -> None:
    with pytest.raises(Unfit, match="format"):
        read({**DOCUMENT, "format": format_})


@pytest.mark.parametrize(
    ("place", "value", "wanted"),
    [
        (("origin", "user", 0), True, "expected int, found True"),
        (("origin", "user", 0), 1.0, "expected int"),
        (("origin", "args"), "python3 serve.py", "expected a list"),
        (("origin", "capabilities"), [], "expected an object"),
        (("mounts", 0, "options", 0), None, "expected str"),
        (("difference",), 1, "expected bool"),
        (("images", "core-1.img"), "4", "expected int"),
        (("timeline", "dump"), "0.25", "expected float"),
        pytest.param(("timeline", "dump"), 10**400, "timeline", id="huge"),
    ],
)
def test_a_wrong_type_is_named(place: tuple[Any, ...], value: Any, wanted: str) -> None:
    with pytest.raises(Unfit, match=wanted):
        read(with_value(place, value))


def test_whole_seconds_are_seconds() -> None:
    assert read(with_value(("timeline", "dump"), 2)).timeline == {"dump": 2.0}


def test_nesting_without_end() -> None:
    with pytest.raises(Unfit):
        SnapshotConfig.from_json("[" * 100_000, "x")


@pytest.mark.parametrize("place", [("format",), ("created",), ("origin", "mounts", 0, "options")])
def test_nesting_that_can_be_read_but_not_be_shown(place: tuple[Any, ...]) -> None:
    before, after = json.dumps(with_value(place, ["@"])).split('"@"')
    for depth in range(800, 1000):
        with pytest.raises(Unfit):
            SnapshotConfig.from_json(f"{before}{'[' * depth}{']' * depth}{after}", "x")


def test_a_long_value_does_not_flood_the_log() -> None:
    with pytest.raises(Unfit) as refused:
        read(with_value(("origin", "user"), "x" * 10_000))
    assert len(refused.value.message) < 300
