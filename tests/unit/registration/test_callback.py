"""HTTP callbacks: what is sent, and what is taken for success."""

from __future__ import annotations

import json
import time

import pytest
from fakes.settled import PATIENCE
from fakes.talkers import answer, silent, talker

from shim.conduct import Registration
from shim.errors import RegistrationFailed
from shim.registration.callback import Callback

KNOWN = {"pod": "a/b", "ips": ["10.0.0.1"], "generation": "g"}


def callback(target: str) -> Callback:
    return Callback(Registration("http", target, must=False), KNOWN)


@pytest.mark.parametrize("place", ["", "//127.0.0.1:", "//localhost:"])
def test_both_ways(place: str) -> None:
    with talker(answer(204)) as server:
        made = callback(f"{place}{server.port}/workers/{{pod}}?v=1")
        made.register(PATIENCE)
        made.deregister(PATIENCE)
    assert [heard.partition(b" HTTP")[0] for heard in server.heard] == [
        b"POST /workers/a%2Fb?v=1",
        b"DELETE /workers/a%2Fb?v=1",
    ]
    for heard in server.heard:
        assert json.loads(heard.partition(b"\r\n\r\n")[2]) == KNOWN


def test_what_is_gone_is_deregistered() -> None:
    with talker(answer(404)) as server:
        made = callback(f"{server.port}/")
        made.deregister(PATIENCE)
        with pytest.raises(RegistrationFailed, match="answered 404"):
            made.register(PATIENCE)


@pytest.mark.parametrize("status", [302, 409, 500, 503])
def test_refused(status: int) -> None:
    with talker(answer(status, b"not you")) as server:
        made = callback(f"{server.port}/")
        for call in (made.register, made.deregister):
            with pytest.raises(RegistrationFailed, match=f"answered {status}: not you"):
                call(PATIENCE)


def test_down() -> None:
    with talker(answer(200)) as server:
        pass
    with pytest.raises(RegistrationFailed, match="nobody listens"):
        callback(f"{server.port}/").register(PATIENCE)
    with pytest.raises(RegistrationFailed, match=r"cannot find no\.such\.host\.invalid"):
        callback("//no.such.host.invalid/").register(PATIENCE)


def test_slow() -> None:
    began = time.monotonic()
    with talker(silent) as server:
        with pytest.raises(RegistrationFailed, match=r"no answer within 0.2 s"):
            callback(f"//127.0.0.1:{server.port}/").register(0.2)
        assert time.monotonic() - began < PATIENCE


def test_broken_off() -> None:
    with talker(lambda *_: None) as server, pytest.raises(RegistrationFailed, match="broke off"):
        callback(f"{server.port}/").register(PATIENCE)
