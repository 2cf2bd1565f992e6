"""A container's membership: a real process for it, and a registry that answers or does not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.pod import Pod
from fakes.talkers import answer, talker

from shim.annotations import REGISTER, REGISTER_FAILURE
from shim.errors import RegistrationFailed
from shim.task import membership
from shim.task.membership import Membership, membership_of
from shim.worker import identity

FOREVER = ("sleep", "1000")
MADE = identity.make({}, container="c", hostname="", ips=["10.0.0.1"])


# As installed, the program finds everything beside itself; a checkout's libraries are elsewhere.
PROGRAM = """
import site, sys
site.main()
from shim.registration.serving import main
main()
"""


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "serving.py"
    path.write_text(PROGRAM)
    monkeypatch.setattr(membership, "PROGRAM", str(path))


def eventually(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def member(pod: Pod, port: int, **notes: str) -> Membership:
    annotations = {REGISTER: f"http:{port}/workers", **notes}
    container = pod.create("c", *FOREVER, spec={"annotations": annotations})
    pod.start("c")
    made = membership_of(container, annotations)
    assert made is not None
    return made


def methods(server: Any) -> list[str]:
    return [heard.split(b" ")[0].decode() for heard in server.heard]


def test_no_membership(pod: Pod) -> None:
    container = pod.create("c", *FOREVER)
    assert membership_of(container, {REGISTER: "none"}) is None


def test_from_the_first_to_the_last(pod: Pod, logged: Callable[[], str]) -> None:
    with talker(answer(200)) as server:
        made = member(pod, server.port)
        made.end()
        made.begin(MADE)
        assert methods(server) == ["POST"]
        made.end()
        assert methods(server) == ["POST", "DELETE"]
        made.end()
        assert methods(server) == ["POST", "DELETE"]
    assert "msg=registered" in logged()
    assert "msg=deregistered" in logged()
    assert "registration:" not in logged(), "nothing to worry about"


def test_a_process_that_dies(pod: Pod, logged: Callable[[], str]) -> None:
    with talker(answer(200)) as server:
        made = member(pod, server.port)
        made.begin(MADE)
        assert made._engine is not None
        os.kill(made._engine.pid, 9)
        eventually(lambda: "its process has died" in logged())
        made.end()


def test_a_registry_that_comes_late(pod: Pod, logged: Callable[[], str]) -> None:
    with talker(answer(500)) as server:
        made = member(pod, server.port)
        made.begin(MADE)
        assert "not registered yet" in logged()
        server.talk = answer(200)
        eventually(lambda: "registration: registered" in logged())
        made.end()
        assert methods(server)[-1] == "DELETE"


def test_or_there_is_no_container(pod: Pod, logged: Callable[[], str]) -> None:
    with talker(answer(403, b"not you")) as server:
        made = member(pod, server.port, **{REGISTER_FAILURE: "fail"})
        with pytest.raises(RegistrationFailed, match="answered 403: not you"):
            made.begin(MADE)
        made.end()
    assert methods(server) == ["POST"]


def test_a_registry_that_does_not_let_go(pod: Pod, logged: Callable[[], str]) -> None:
    with talker(answer(200)) as server:
        made = member(pod, server.port)
        made.begin(MADE)
        server.talk = answer(500)
        made.end()
        eventually(lambda: "not deregistered" in logged())


def test_a_registry_that_hangs_keeps_no_kill_waiting(pod: Pod, logged: Callable[[], str]) -> None:
    with talker(answer(200)) as server:
        made = member(pod, server.port)
        made.begin(MADE)
        server.talk = lambda *_: time.sleep(1)
        began = time.monotonic()
        made.end(0.2)
        assert time.monotonic() - began < 1.5
        eventually(lambda: "not deregistered" in logged())
