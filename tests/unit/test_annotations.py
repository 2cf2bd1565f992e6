"""What pods may ask for: names, never paths."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.annotations import (
    CONTAINER_NAME,
    CONTAINER_TYPE,
    ON_FAILURE,
    PREFIX,
    SNAPSHOT,
    TABLE,
    check_name,
    fail_instead_of_cold_start,
    named_snapshots,
    wish,
)
from shim.errors import BadAnnotation, BadName

PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@given(st.text() | st.text("abz019._-/@:A \n", max_size=70) | st.from_regex(PATTERN))
def test_names(name: str) -> None:
    if PATTERN.fullmatch(name) and name != "auto":
        assert check_name(name) == name
        return
    with pytest.raises(BadName) as refused:
        check_name(name)
    assert refused.value.hint
    assert len(refused.value.message) < 600 + 2 * len(name)


@pytest.mark.parametrize("name", ["a", "0", "x" * 63, "qwen3-8b", "a.b_c-d", "auto1", "autos"])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "bad snapshot name"),
        ("x" * 64, "bad snapshot name"),
        (".", "bad snapshot name"),
        ("..", "bad snapshot name"),
        ("-x", "bad snapshot name"),
        ("X", "bad snapshot name"),
        ("a b", "bad snapshot name"),
        ("a\n", "bad snapshot name"),
        ("ü", "bad snapshot name"),
        ("²", "bad snapshot name"),
        ("auto", "is reserved"),
        ("a/b", "is a reference, not a name"),
        ("../a", "is a reference, not a name"),
        ("a:1", "is a reference, not a name"),
        ("a@sha256", "is a reference, not a name"),
    ],
)
def test_bad_names(name: str, words: str) -> None:
    with pytest.raises(BadName, match=words):
        check_name(name)


@pytest.mark.parametrize(
    ("annotations", "wanted"),
    [
        ({}, None),
        ({SNAPSHOT: "warm"}, ("warm", True)),
        ({SNAPSHOT: "warm", CONTAINER_NAME: "a"}, ("warm", False)),
        ({SNAPSHOT: "warm", CONTAINER_TYPE: "sandbox"}, None),
        ({SNAPSHOT: "warm", CONTAINER_TYPE: "container", CONTAINER_NAME: "a"}, ("warm", False)),
        ({f"{SNAPSHOT}.a": "hot", CONTAINER_NAME: "a"}, ("hot", True)),
        ({f"{SNAPSHOT}.a": "hot", SNAPSHOT: "warm", CONTAINER_NAME: "a"}, ("hot", True)),
        ({f"{SNAPSHOT}.a": "hot", SNAPSHOT: "warm", CONTAINER_NAME: "b"}, ("warm", False)),
        ({f"{SNAPSHOT}.a": "hot", CONTAINER_NAME: "b"}, None),
        ({f"{SNAPSHOT}.a": "hot", CONTAINER_TYPE: "sandbox", CONTAINER_NAME: "a"}, None),
        ({SNAPSHOT: "not/checked/yet"}, ("not/checked/yet", True)),
    ],
)
def test_wishes(annotations: dict[str, str], wanted: tuple[str, bool] | None) -> None:
    found = wish(annotations)
    assert (found and (found.name, found.outright)) == wanted


@pytest.mark.parametrize(
    ("annotations", "names"),
    [
        ({CONTAINER_TYPE: "sandbox", SNAPSHOT: "warm"}, ["warm"]),
        ({CONTAINER_TYPE: "sandbox", f"{SNAPSHOT}.a": "warm"}, ["warm"]),
        ({CONTAINER_TYPE: "sandbox", SNAPSHOT: "warm", f"{SNAPSHOT}.a": "warm"}, ["warm"]),
        ({CONTAINER_TYPE: "sandbox", SNAPSHOT: "b", f"{SNAPSHOT}.a": "a"}, ["b", "a"]),
        ({CONTAINER_TYPE: "sandbox", SNAPSHOT: "../b", f"{SNAPSHOT}.a": "a"}, ["a"]),
        ({CONTAINER_TYPE: "sandbox"}, []),
        ({CONTAINER_TYPE: "sandbox", ON_FAILURE: "fail"}, []),
        ({CONTAINER_TYPE: "container", SNAPSHOT: "warm"}, []),
        ({SNAPSHOT: "warm"}, []),
    ],
)
def test_the_sandbox_knows_beforehand(annotations: dict[str, str], names: list[str]) -> None:
    assert named_snapshots(annotations) == names


def test_a_pod_has_only_so_many_snapshots_read_ahead() -> None:
    many = {f"{SNAPSHOT}.{n}": f"s{n}" for n in range(100)}
    assert len(named_snapshots({CONTAINER_TYPE: "sandbox", **many})) == 4


def test_on_failure() -> None:
    assert not fail_instead_of_cold_start({})
    assert not fail_instead_of_cold_start({ON_FAILURE: "cold-start"})
    assert fail_instead_of_cold_start({ON_FAILURE: "fail"})
    for value in ("", "Fail", "panic", "x" * 1000):
        with pytest.raises(BadAnnotation, match=ON_FAILURE) as refused:
            fail_instead_of_cold_start({ON_FAILURE: value})
        assert len(refused.value.message) < 200


def test_the_table() -> None:
    """The README is made from it."""
    assert [row.key for row in TABLE] == [SNAPSHOT, f"{SNAPSHOT}.CONTAINER", ON_FAILURE]
    for row in TABLE:
        assert row.key.startswith(PREFIX)
        assert row.sentence.endswith(".")
    defaults = {row.key: row.default for row in TABLE}
    assert not fail_instead_of_cold_start({ON_FAILURE: defaults[ON_FAILURE]})
