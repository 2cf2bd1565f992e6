"""Whether the cache that there shall be is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes.nodes import FakeNode

from shim.cache import client
from shim.doctor.cache import cache
from shim.doctor.verdict import ABSENT, BAD, OK

GIB = 1 << 30


def node(tmp_path: Path, size: float) -> FakeNode:
    return FakeNode(tmp_path, settings={"cache.size": size, "state": str(tmp_path)})


def test_there_shall_be_none(tmp_path: Path) -> None:
    [verdict] = cache(node(tmp_path, 0.0))
    assert (verdict.state, verdict.said) == (ABSENT, "cache.size is 0")


def test_nobody_holds_it(tmp_path: Path) -> None:
    [verdict] = cache(node(tmp_path, 1.0))
    assert verdict.state == BAD
    assert verdict.said.startswith(f"no cache answers at {tmp_path}/cache.sock: ")


def test_it_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ask", lambda *_: iter([]))
    [verdict] = cache(node(tmp_path, 1.0))
    assert verdict.state == BAD
    assert verdict.said == f"the cache at {tmp_path}/cache.sock has hung up"


@pytest.mark.parametrize(
    ("pinned", "state", "said"),
    [
        (2 * GIB, OK, "1.0 of 4.0 GiB are used"),
        (GIB, BAD, "1.0 of 2.0 GiB are not pinned: copies from there are slow"),
    ],
)
def test_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pinned: int, state: str, said: str
) -> None:
    found: dict[str, Any] = {"limit": 4 * GIB, "held": 2 * GIB, "used": GIB, "pinned": pinned}
    monkeypatch.setattr(client, "ask", lambda *_: iter([found]))
    [verdict] = cache(node(tmp_path, 4.0))
    assert (verdict.state, verdict.said) == (state, said)
