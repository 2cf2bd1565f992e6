"""Registered at once, later, again: as the back end allows."""

from __future__ import annotations

import threading

import pytest
from fakes.settled import PATIENCE, eventually

from shim.conduct import Registration
from shim.errors import RegistrationFailed
from shim.registration import registrar
from shim.registration.backend import Backend
from shim.registration.registrar import Registrar


class Fake(Backend):
    """Fails as often as it is told, and loses its entry when it is told."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.calls: list[str] = []
        self.lose = threading.Event()
        self.error: Exception = RegistrationFailed("down")
        self.lost: Exception = RegistrationFailed("forgotten")
        self.seconds = 0.0

    def register(self, seconds: float) -> None:
        self.calls.append("register")
        self.seconds = seconds
        if self.failures:
            self.failures -= 1
            raise self.error

    def keep(self, over: threading.Event) -> None:
        while not over.wait(0.005):
            if self.lose.is_set():
                self.lose.clear()
                raise self.lost

    def deregister(self, seconds: float) -> None:
        self.calls.append("deregister")
        if self.failures:
            raise self.error

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registrar, "FIRST", 0.01)


def make(backend: Backend, *, must: bool = False) -> tuple[Registrar, list[tuple[str, str]]]:
    said: list[tuple[str, str]] = []
    asked = Registration("http", "1/", 1.0, must=must)
    return Registrar(backend, asked, lambda *what: said.append(what)), said


def test_at_once() -> None:
    backend = Fake()
    made, said = make(backend)
    assert made.begin() == ""
    assert made.registered
    made.end(PATIENCE)
    assert backend.calls == ["register", "deregister", "close"]
    assert (made.registered, said) == (False, [])


def test_later() -> None:
    backend = Fake(3)
    made, said = make(backend)
    assert made.begin() == "down"
    assert not made.registered
    eventually(lambda: made.registered)
    made.end(PATIENCE)
    assert said == [("failed", "down"), ("registered", "")]
    assert backend.calls == ["register"] * 4 + ["deregister", "close"]


def test_or_not_at_all() -> None:
    backend = Fake(1)
    made, _ = make(backend, must=True)
    with pytest.raises(RegistrationFailed, match="down"):
        made.begin()
    assert backend.calls == ["register", "close"]


def test_again() -> None:
    backend = Fake()
    made, said = make(backend)
    made.begin()
    backend.failures = 1
    backend.lose.set()
    eventually(lambda: said[-1:] == [("registered", "")])
    made.end(PATIENCE)
    assert said == [("lost", "forgotten"), ("failed", "down"), ("registered", "")]


def test_whatever_happens() -> None:
    """As for want of memory or threads: there is nobody else who would try again."""
    backend = Fake(2)
    backend.error, backend.lost = MemoryError("no more"), RuntimeError("no threads")
    made, said = make(backend)
    assert made.begin() == "MemoryError: no more"
    eventually(lambda: made.registered)
    backend.lose.set()
    eventually(lambda: said[-2:] == [("lost", "RuntimeError: no threads"), ("registered", "")])
    backend.failures = 1
    with pytest.raises(RegistrationFailed, match="no more"):
        made.end(PATIENCE)
    assert backend.calls[-1] == "close"


def test_less_time_for_the_first() -> None:
    backend = Fake(1)
    made, _ = make(backend)
    made.begin(0.5)
    assert backend.seconds == 0.5
    eventually(lambda: made.registered)
    assert backend.seconds == 1.0, "as much as it was given for each"
    made.end(PATIENCE)
    made, _ = make(backend)
    made.begin(60)
    assert backend.seconds == 1.0
    made.end(PATIENCE)


def test_ended_while_it_is_down() -> None:
    backend = Fake(1000)
    made, _ = make(backend)
    made.begin()
    made.end(PATIENCE)
    assert backend.calls[-2:] == ["deregister", "close"], "perhaps an answer was lost"


def test_what_cannot_be_removed() -> None:
    backend = Fake()
    made, _ = make(backend)
    made.begin()
    backend.failures = 1
    with pytest.raises(RegistrationFailed, match="down"):
        made.end(PATIENCE)
    assert backend.calls[-1] == "close"
