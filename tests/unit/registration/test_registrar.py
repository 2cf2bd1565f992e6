"""Registered at once, later, again: as the back end allows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

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

    def register(self, seconds: float) -> None:
        self.calls.append("register")
        if self.failures:
            self.failures -= 1
            raise RegistrationFailed("down")

    def keep(self, over: threading.Event) -> None:
        while not over.wait(0.005):
            if self.lose.is_set():
                self.lose.clear()
                raise RegistrationFailed("forgotten")

    def deregister(self, seconds: float) -> None:
        self.calls.append("deregister")
        if self.failures:
            raise RegistrationFailed("down")

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registrar, "FIRST", 0.01)


def make(backend: Backend, *, must: bool = False) -> tuple[Registrar, list[tuple[str, str]]]:
    said: list[tuple[str, str]] = []
    asked = Registration("http", "1/", 1.0, must=must)
    return Registrar(backend, asked, lambda *what: said.append(what)), said


def eventually(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.002)


def test_at_once() -> None:
    backend = Fake()
    made, said = make(backend)
    assert made.begin() == ""
    assert made.registered
    made.end(1)
    assert backend.calls == ["register", "deregister", "close"]
    assert (made.registered, said) == (False, [])


def test_later() -> None:
    backend = Fake(3)
    made, said = make(backend)
    assert made.begin() == "down"
    assert not made.registered
    eventually(lambda: made.registered)
    made.end(1)
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
    made.end(1)
    assert said == [("lost", "forgotten"), ("failed", "down"), ("registered", "")]


def test_ended_while_it_is_down() -> None:
    backend = Fake(1000)
    made, _ = make(backend)
    made.begin()
    made.end(1)
    assert backend.calls[-2:] == ["deregister", "close"], "perhaps an answer was lost"


def test_what_cannot_be_removed() -> None:
    backend = Fake()
    made, _ = make(backend)
    made.begin()
    backend.failures = 1
    with pytest.raises(RegistrationFailed, match="down"):
        made.end(1)
    assert backend.calls[-1] == "close"
