"""Who asks a holder that is not there, or does not answer."""

from __future__ import annotations

import os
from contextlib import closing

import pytest
from fakes.gpu_snapshots import saved
from fakes.regions import pattern

from shim.cache import client, wire
from shim.cache.holder import listening
from shim.config import Config
from shim.errors import Unavailable
from shim.gpu.memory.index import stored
from shim.snapshot import store as snapshots


def test_a_holder_that_hangs(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the driver, say."""
    monkeypatch.setattr(client, "_WAITING", 0.05)
    with (
        closing(listening(wire.socket_path(config))),
        pytest.raises(Unavailable, match=r"no cache answers at .*: timed out"),
    ):
        list(client.ask(config, {"verb": "list"}))


def test_who_holds_it(config: Config) -> None:
    with closing(listening(wire.socket_path(config))):
        assert client.holder(config) == os.getpid()
        assert client.holder(Config({"state": config.text("state")})) == 0, "there shall be none"
    assert client.holder(config) == 0


def test_without_a_holder(config: Config, stores: snapshots.Store) -> None:
    snapshot = saved(stores, "one", [pattern("x", 1)])
    found = stored(snapshot)
    assert found is not None
    cached = client.of(config, snapshot, found)
    assert cached is not None
    assert not cached.has()
    assert cached.fill([], lambda: None) is None
    cached.offer()
    with pytest.raises(Unavailable, match="no cache answers"):
        list(client.ask(config, {"verb": "list"}))
    assert client.of(Config(), snapshot, found) is None
