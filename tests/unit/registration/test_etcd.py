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
from shim.registration import etcd
from shim.registration.etcd import Etcd
from shim.registration.registrar import Registrar

KEY = "workers/p"
KNOWN = {"pod": "p", "ips": ["10.0.0.1"], "generation": "g"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as made:
        yield made


class Counted(Etcd):
    """How often its lease was renewed, and how often nobody answered."""

    def __init__(self, asked: Registration, ttl: int) -> None:
        super().__init__(asked, KNOWN, ttl)
        self.renewed = self.unanswered = 0

    def _renewed(self) -> bool:
        renewed = super()._renewed()
        self.renewed += renewed
        self.unanswered += not renewed
        return renewed


def asked(server: Server, *, seconds: float = PATIENCE, must: bool = False) -> Registration:
    target = f"127.0.0.1:{server.port}/workers/{{pod}}"
    return Registration("etcd", target, seconds, must=must)


def test_there_and_gone(server: Server) -> None:
    entry = Etcd(asked(server), KNOWN)
    entry.register(PATIENCE)
    assert json.loads(server.read(KEY) or "") == KNOWN
    assert len(server.leases()) == 1
    entry.deregister(PATIENCE)
    entry.deregister(PATIENCE)
    entry.close()
    assert server.read(KEY) is None
    assert server.leases() == []


def test_a_lease_is_kept_and_then_not(server: Server) -> None:
    entry = Counted(asked(server), ttl=6)  # as long as nobody may be held up
    began = time.monotonic()
    entry.register(PATIENCE)
    over = threading.Event()
    keeping = threading.Thread(target=entry.keep, args=(over,))
    keeping.start()
    eventually(lambda: entry.renewed >= 2 and time.monotonic() > began + 6.5)
    assert server.read(KEY)
    over.set()
    keeping.join()
    entry.close()
    eventually(lambda: server.read(KEY) is None)


def test_killed_and_started_again(server: Server) -> None:
    """With its data the lease goes on, without them the key is made anew."""
    said: list[tuple[str, str]] = []
    entry = Counted(asked(server), ttl=8)  # as long as nobody may be held up
    made = Registrar(entry, asked(server), lambda *w: said.append(w))
    assert made.begin() == ""
    server.kill()
    eventually(lambda: entry.unanswered > 0)
    before = entry.renewed
    server.start()
    eventually(lambda: entry.renewed > before)
    assert server.read(KEY) is not None
    assert said == []
    server.kill()
    server.forget()
    server.start()
    eventually(lambda: server.read(KEY) is not None)
    eventually(lambda: [event for event, _ in said] == ["lost", "registered"])
    made.end(PATIENCE)
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
    made.end(PATIENCE)
    assert said[-1] == ("registered", "")


def test_slow(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd, "resolve", lambda *_: ["127.0.0.1"])  # that is not to be slow
    server.freeze()
    wanted = asked(server, seconds=0.3, must=True)
    began = time.monotonic()
    with pytest.raises(RegistrationFailed, match="Deadline"):
        Registrar(Etcd(wanted, KNOWN), wanted, lambda *_: None).begin()
    assert time.monotonic() - began < PATIENCE
    server.thaw()
