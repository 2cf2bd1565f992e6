"""A real etcd: there, gone, slow, started again, and with its memory lost."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bed.etcd import Server
from fakes.settled import PATIENCE, eventually

from shim.conduct import Registration
from shim.errors import RegistrationFailed
from shim.registration.etcd import Etcd
from shim.registration.registrar import Registrar

KEY = "workers/p"
KNOWN = {"pod": "p", "ips": ["10.0.0.1"], "generation": "g"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as made:
        yield made


def asked(server: Server, *, seconds: float = 3.0, must: bool = False) -> Registration:
    target = f"127.0.0.1:{server.port}/workers/{{pod}}"
    return Registration("etcd", target, seconds, must=must)


def test_there_and_gone(server: Server) -> None:
    entry = Etcd(asked(server), KNOWN)
    entry.register(3)
    assert json.loads(server.read(KEY) or "") == KNOWN
    assert len(server.leases()) == 1
    entry.deregister(3)
    entry.deregister(3)
    entry.close()
    assert server.read(KEY) is None
    assert server.leases() == []


def test_a_lease_is_kept_and_then_not(server: Server) -> None:
    entry = Etcd(asked(server), KNOWN, ttl=2)
    entry.register(3)
    over = threading.Event()
    keeping = threading.Thread(target=entry.keep, args=(over,))
    keeping.start()
    time.sleep(2.6)
    assert server.read(KEY)
    over.set()
    keeping.join()
    entry.close()
    eventually(lambda: server.read(KEY) is None)


def test_killed_and_started_again(server: Server) -> None:
    """With its data the lease goes on, without them the key is made anew."""
    said: list[tuple[str, str]] = []
    made = Registrar(Etcd(asked(server), KNOWN, ttl=2), asked(server), lambda *w: said.append(w))
    assert made.begin() == ""
    server.kill()
    time.sleep(1.0)
    server.start()
    eventually(lambda: server.read(KEY) is not None)
    assert said == []
    server.kill()
    server.forget()
    server.start()
    eventually(lambda: server.read(KEY) is not None)
    eventually(lambda: [event for event, _ in said] == ["lost", "registered"])
    made.end(3)
    assert server.read(KEY) is None


def test_down_at_first(server: Server) -> None:
    server.kill()
    said: list[tuple[str, str]] = []
    wanted = asked(server, seconds=60)
    made = Registrar(Etcd(wanted, KNOWN), wanted, lambda *w: said.append(w))
    began = time.monotonic()
    assert "etcd at 127.0.0.1" in made.begin()
    assert time.monotonic() - began < PATIENCE
    server.start()
    eventually(lambda: made.registered)
    assert server.read(KEY)
    made.end(3)
    assert said[-1] == ("registered", "")


def test_slow(server: Server) -> None:
    server.freeze()
    wanted = asked(server, seconds=0.3, must=True)
    began = time.monotonic()
    with pytest.raises(RegistrationFailed, match="Deadline"):
        Registrar(Etcd(wanted, KNOWN), wanted, lambda *_: None).begin()
    assert time.monotonic() - began < PATIENCE
    server.thaw()
