"""The header in which a registry says what it wants to see."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.registry.challenge import Challenge, parse

BEARER = 'Bearer realm="https://auth.example/token",service="registry",scope="repository:a/b:pull"'
PARAMETERS = {
    "realm": "https://auth.example/token",
    "service": "registry",
    "scope": "repository:a/b:pull",
}


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (BEARER, [Challenge("bearer", PARAMETERS)]),
        (
            f'BASIC realm = "x, \\"y\\" Bearer", charset=UTF-8 , {BEARER}',
            [
                Challenge("basic", {"realm": 'x, "y" Bearer', "charset": "UTF-8"}),
                Challenge("bearer", PARAMETERS),
            ],
        ),
        (
            "Negotiate, Basic realm=x",
            [Challenge("negotiate", {}), Challenge("basic", {"realm": "x"})],
        ),
        ('Basic realm="a", realm="b"', [Challenge("basic", {"realm": "a"})]),
        ('Basic realm="', [Challenge("basic", {})]),
        ('realm="nobody\'s"', []),
        ("", []),
        ("é", []),
    ],
)
def test_what_is_read(header: str, found: list[Challenge]) -> None:
    assert parse(header) == found


@given(st.text())
def test_anything_else(header: str) -> None:
    parse(header)
    parse(f"Bearer {header}")


@pytest.mark.parametrize(
    "header", ["a" * 10**6, 'a="' + '\\"' * 10**6, ", " * 10**6, "a =" * 10**6]
)
def test_long_ones_take_no_time(header: str) -> None:
    began = time.thread_time()  # whatever else the machine does
    parse(f"Bearer {header}")
    assert time.thread_time() - began < 1
