"""The json package is the oracle."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.lean import jsons

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)  # JSON has neither
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
@settings(max_examples=300, deadline=None)
def test_there_and_back(value: object) -> None:
    assert json.loads(jsons.dumps(value)) == value
    assert jsons.loads(json.dumps(value)) == value
    assert jsons.loads(json.dumps(value, indent=2, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    "text", [b"", b" ", b"{", b"[1,]", b"1 2", b"nul", b'"\n"', b'{"a":}', b"\xff", b"[" * 9]
)
def test_errors_are_value_errors(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's own errors are ValueErrors
        jsons.loads(text)


@given(st.binary(max_size=60) | st.text('[]{}",:0123456789.eE+-nulltrefasNI \\').map(str.encode))
@settings(max_examples=500, deadline=None)
def test_says_what_json_says(data: bytes) -> None:
    try:
        wanted = json.loads(
            data.decode(), parse_constant=lambda name: (_ for _ in ()).throw(ValueError)
        )
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011 - see above
            jsons.loads(data)
        return
    assert jsons.loads(data) == wanted


def test_what_is_not_json() -> None:
    with pytest.raises(TypeError):
        jsons.dumps({"a": object()})
