"""The state of a container is read as the OCI runtime specification has it, and nothing else is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from oci_hooks.state import State, parse
from shim.errors import InvalidArgument

# The example of the specification, runtime.md.
GIVEN = {
    "ociVersion": "0.2.0",
    "id": "oci-container1",
    "status": "running",
    "pid": 4422,
    "bundle": "/containers/redis",
    "annotations": {"myKey": "myValue"},
}


def test_the_example() -> None:
    wanted = State("oci-container1", "running", 4422, "/containers/redis", {"myKey": "myValue"})
    assert parse(json.dumps(GIVEN).encode()) == wanted


def test_annotations_may_be_missing() -> None:
    for absent in ({**GIVEN, "annotations": None}, {**GIVEN, "further": 1}):
        absent.pop("annotations")
        assert parse(json.dumps(absent).encode()).annotations == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ociVersion": None}, "has no ociVersion"),
        ({"id": 5}, "has no id"),
        ({"bundle": ""}, "has no bundle"),
        ({"pid": 0}, "'oci-container1' has no process"),
        ({"pid": True}, "has no process"),
        ({"pid": "4422"}, "has no process"),
        ({"annotations": []}, ""),
        ({"annotations": ["a"]}, "are no JSON object"),
    ],
)
def test_what_is_missing(change: dict[str, Any], said: str) -> None:
    text = json.dumps({**GIVEN, **change}).encode()
    if not said:
        assert parse(text).annotations == {}
        return
    with pytest.raises(InvalidArgument, match=said) as caught:
        parse(text)
    assert caught.value.hint == "a hook wants the OCI state of a container on stdin"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "nothing came"),
        (b"{", "cannot be read"),
        (b"[]", "is no JSON object"),
        (b"\xff", "cannot be read"),
        (b"[" * 100000, "cannot be read"),
    ],
)
def test_what_is_no_state(text: bytes, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        parse(text)
