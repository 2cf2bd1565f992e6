"""A container's membership: a real process for it, and a registry that answers or does not."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.pod import READ_GATE, Behind, Pod, open_gate
from fakes.settled import PATIENCE, eventually
from fakes.talkers import answer, talker

from shim.annotations import READY, REGISTER, REGISTER_FAILURE, REGISTER_TIMEOUT
from shim.errors import DeadlineExceeded, RegistrationFailed
from shim.task import membership
from shim.task.container import Container
from shim.task.engine import Engine
from shim.task.membership import Membership, membership_of
from shim.task.state import RUNNING, STOPPED

FOREVER = ("sleep", "1000")

# As installed, the program finds everything beside itself; a checkout's libraries are elsewhere.
PROGRAM = f"""
import site, sys
site.main()
from shim.registration import serving
serving.LAST_SECONDS = {PATIENCE}
serving.main()
"""

HANGS = "import time; time.sleep(1000)"
# Says what happens before it answers, as threads may have it on a busy node.
FORESTALLS = """
import json, socket
daemon = socket.socket(fileno=3)
requests = daemon.makefile("rb")
requests.readline()
for line in ({"event": "lost", "because": "so"}, {"registered": True, "because": ""}):
    daemon.sendall(json.dumps(line).encode() + b"\\n")
assert json.loads(requests.readline())["verb"] == "deregister"
daemon.sendall(b'{"event": "deregistered", "because": ""}\\n')
"""


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """It has all its time to deregister, as what it has done then is looked at."""
    monkeypatch.setattr(membership, "PATIENCE", PATIENCE)
    monkeypatch.setattr(membership, "SHORT", PATIENCE)
    path = tmp_path / "serving.py"
    path.write_text(PROGRAM)
    monkeypatch.setattr(membership, "PROGRAM", str(path))
    return path


def create(pod: Pod, port: int, *args: str, **notes: str) -> Container:
    annotations = {REGISTER: f"http:{port}/workers", **notes}
    return pod.create("c", *(args or FOREVER), spec={"annotations": annotations})


def start(pod: Pod, port: int, **notes: str) -> Container:
    container = create(pod, port, **notes)
    pod.start("c")
    return container


def running(pod: Pod, port: int, **notes: str) -> tuple[Container, Membership]:
    """A container that runs, and its membership, which the caller begins."""
    container = create(pod, port, **notes)
    made, container.membership = container.membership, None
    pod.start("c")
    container.membership = made
    assert made is not None
    return container, made


def kill_came(pod: Pod) -> bool:
    made = pod.service.containers["c"].membership
    return made is not None and made._over.is_set()


def wait(event: threading.Event) -> None:
    event.wait(PATIENCE)


def engine_of(container: Container) -> Engine:
    made = container.membership
    assert made is not None
    eventually(lambda: made._engine is not None)
    engine = made._engine
    assert engine is not None
    return engine


def methods(server: Any) -> list[str]:
    return [heard.split(b" ")[0].decode() for heard in server.heard]


def test_no_membership(pod: Pod) -> None:
    container = pod.create("c", *FOREVER)
    assert container.membership is None
    assert membership_of(container, {REGISTER: "none"}) is None
    sandbox = {REGISTER: "http:1/", "io.kubernetes.cri.container-type": "sandbox"}
    assert membership_of(container, sandbox) is None, "it has the annotations of the pod, too"


@pytest.mark.parametrize("more", [{}, {REGISTER_FAILURE: "fail"}])
def test_from_the_first_to_the_last(
    pod: Pod, logged: Callable[[], str], more: dict[str, str]
) -> None:
    with talker(answer(200)) as server:
        create(pod, server.port, **more)
        assert methods(server) == []
        pod.start("c")
        eventually(lambda: methods(server) == ["POST"])
        eventually(lambda: "msg=registered" in logged())
        body = json.loads(server.heard[0].partition(b"\r\n\r\n")[2])
        assert (body["container"], body["restored"]) == ("c", False)
        assert "entropy" not in body
        pod.kill("c", 17)
        assert methods(server) == ["POST"], "a signal that ends nobody"
        pod.kill("c", 9)
        assert methods(server) == ["POST", "DELETE"]
        pod.wait("c").get()
        pod.delete("c")
        assert methods(server) == ["POST", "DELETE"]
    assert "msg=deregistered" in logged()
    assert "registration:" not in logged(), "nothing to worry about"


def test_before_the_signal_comes(pod: Pod) -> None:
    """Whoever sends it work must know better before it cannot do any."""
    gone: list[bool] = []

    def look(connection: socket.socket, request: bytes) -> None:
        if request.startswith(b"DELETE"):
            gone.append(pod.state("c").status == RUNNING)
        answer(200)(connection, request)

    with talker(look) as server:
        start(pod, server.port)
        eventually(lambda: methods(server) == ["POST"])
        pod.kill("c", 15)
        assert gone == [True]


def test_it_ends_by_itself(pod: Pod) -> None:
    with talker(answer(200)) as server:
        create(pod, server.port, "sh", "-c", READ_GATE, str(pod.gate("own")))
        pod.start("c")
        eventually(lambda: methods(server) == ["POST"])
        open_gate(pod.folder / "runc/gate/own")
        pod.wait("c").get()
        eventually(lambda: methods(server) == ["POST", "DELETE"])


@pytest.mark.parametrize("more", [{}, {REGISTER_FAILURE: "fail"}])
def test_a_process_that_dies(pod: Pod, logged: Callable[[], str], more: dict[str, str]) -> None:
    """Whatever becomes of it, the worker is to be registered: another does its work."""
    with talker(answer(200)) as server:
        container = start(pod, server.port, **more)
        eventually(lambda: "msg=registered" in logged())
        os.kill(engine_of(container).pid, 9)
        eventually(lambda: "its process has died" in logged())
        eventually(lambda: logged().count("msg=registered") == 2)
        pod.kill("c", 9)
        assert methods(server) == ["POST", "POST", "DELETE"]


def test_a_process_that_does_not_answer(
    pod: Pod, logged: Callable[[], str], program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.write_text(HANGS)
    monkeypatch.setattr(membership, "_START", 0.125 - PATIENCE)  # with its timeout, that is

    class First(Engine):
        def ask(self, *args: Any) -> dict[str, Any]:
            try:
                return super().ask(*args)
            except DeadlineExceeded:  # the next one is another program, and has another time
                monkeypatch.setattr(membership, "_START", 10.0)
                program.write_text(PROGRAM)
                raise

    monkeypatch.setattr(membership, "Engine", First)
    with talker(answer(200)) as server:
        start(pod, server.port, **{REGISTER_TIMEOUT: str(PATIENCE)})
        eventually(lambda: "not done within 0.1 s" in logged())
        eventually(lambda: methods(server) == ["POST"])
        pod.kill("c", 9)
        assert methods(server) == ["POST", "DELETE"]


def test_a_process_that_cannot_be_started(
    pod: Pod, logged: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with talker(answer(200)) as server:
        container = create(pod, server.port)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", "/nowhere/python3")
            pod.start("c")
            eventually(lambda: "cannot start its process" in logged())
        eventually(lambda: methods(server) == ["POST"])
        assert container.state.status == RUNNING
        pod.kill("c", 9)


def test_nor_can_a_container_that_needs_it(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    create(pod, 1, **{REGISTER_FAILURE: "fail"})
    monkeypatch.setattr(sys, "executable", "/nowhere/python3")
    with pytest.raises(RegistrationFailed, match="cannot start its process"):
        pod.start("c")
    assert pod.state("c").status == STOPPED


def test_what_happens_before_the_answer(pod: Pod, logged: Callable[[], str], program: Path) -> None:
    program.write_text(FORESTALLS)
    start(pod, 1)
    eventually(lambda: "msg=registered" in logged())
    assert "registration: lost" in logged()
    pod.kill("c", 9)
    assert "msg=deregistered" in logged()
    assert "in time" not in logged()


def test_no_secrets_for_its_process(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Witness(Engine):
        def ask(self, request: Any, *args: Any) -> dict[str, Any]:
            asked.append(request)
            return super().ask(request, *args)

    monkeypatch.setattr(membership, "Engine", Witness)
    with talker(answer(200)) as server:
        container = start(pod, server.port, **{REGISTER_FAILURE: "fail"})
        pod.kill("c", 9)
    assert "entropy" not in container.identity
    assert asked[0]["identity"]["generation"] == container.identity["generation"]
    assert "entropy" not in asked[0]["identity"]


def test_a_registry_that_comes_late(pod: Pod, logged: Callable[[], str]) -> None:
    with talker(answer(500)) as server:
        start(pod, server.port)
        eventually(lambda: "not registered yet" in logged())
        server.talk = answer(200)
        eventually(lambda: "registration: registered" in logged())
        pod.kill("c", 9)
        assert methods(server)[-1] == "DELETE"


def test_or_there_is_no_container(pod: Pod, logged: Callable[[], str]) -> None:
    with talker(answer(403, b"not you")) as server:
        create(pod, server.port, **{REGISTER_FAILURE: "fail"})
        with pytest.raises(RegistrationFailed, match="answered 403: not you"):
            pod.start("c")
        assert pod.state("c").status == STOPPED
        pod.delete("c")
    assert methods(server) == ["POST"]
    assert pod.calls()[-1][:2] in (["delete", "--force"], ["delete", "c"])


def test_registered_once_it_is_ready(pod: Pod, logged: Callable[[], str], tmp_path: Path) -> None:
    with talker(answer(404)) as worker, talker(answer(200)) as server:
        ready = {READY: f"http:{worker.port}/health", REGISTER_FAILURE: "fail"}
        start(pod, server.port, **ready)
        eventually(lambda: len(worker.heard) > 1)
        assert methods(server) == []
        worker.talk = answer(200)
        eventually(lambda: methods(server) == ["POST"])
        pod.kill("c", 9)
        assert methods(server) == ["POST", "DELETE"]


def test_one_that_never_gets_ready_is_never_registered(pod: Pod) -> None:
    with talker(answer(404)) as worker, talker(answer(200)) as server:
        container = start(pod, server.port, **{READY: f"http:{worker.port}/health"})
        eventually(lambda: len(worker.heard) > 1)
        engine = engine_of(container)
        pod.kill("c", 15)
        worker.talk = answer(200)
        eventually(engine._ended.is_set)
        assert methods(server) == []


def test_refused_once_it_is_ready(pod: Pod, logged: Callable[[], str]) -> None:
    """It runs by then: it is ended."""
    with talker(answer(200)) as worker, talker(answer(403)) as server:
        start(pod, server.port, **{READY: f"http:{worker.port}/", REGISTER_FAILURE: "fail"})
        assert pod.wait("c").get().exit_status == 137
    assert "as it must be registered" in logged()


@pytest.mark.parametrize("more", [{}, {REGISTER_FAILURE: "fail"}])
def test_killed_while_it_is_being_registered(pod: Pod, more: dict[str, str]) -> None:
    """An attempt is under way, which may succeed: then it is taken back."""
    asked, go_on = threading.Event(), threading.Event()

    def slow(connection: socket.socket, request: bytes) -> None:
        asked.set()
        assert go_on.wait(PATIENCE)
        answer(200)(connection, request)

    with talker(slow) as server:
        create(pod, server.port, **more)
        started = pod.start_behind("c")
        assert asked.wait(PATIENCE)
        kill = Behind(lambda: pod.kill("c", 9))
        eventually(lambda: kill_came(pod))
        go_on.set()
        kill.get()
        assert started.get(), "it did start, and is ended by its signal"
        assert methods(server) == ["POST", "DELETE"], "before the signal"


def test_a_registry_that_does_not_let_go(pod: Pod, logged: Callable[[], str]) -> None:
    with talker(answer(200)) as server:
        start(pod, server.port)
        eventually(lambda: "msg=registered" in logged())
        server.talk = answer(500)
        pod.kill("c", 9)
        eventually(lambda: "not deregistered" in logged())


def test_a_registry_that_hangs_keeps_no_kill_waiting(pod: Pod, logged: Callable[[], str]) -> None:
    over = threading.Event()
    with talker(answer(200)) as server:
        container = start(pod, server.port)
        made, engine = container.membership, engine_of(container)
        eventually(lambda: "msg=registered" in logged())
        server.talk = lambda *_: wait(over)
        assert made is not None
        os.kill(engine.pid, signal.SIGSTOP)  # it could say that nobody answers before we give up
        made.end_before(15, time.monotonic() + membership._OWN + 0.2)
        assert "not deregistered in time" in logged()
        os.kill(engine.pid, signal.SIGCONT)
        over.set()


def test_told_to_stop_before_it_began(pod: Pod) -> None:
    """Between the start of its program and the attempt, which is none then."""
    with talker(answer(200)) as server:
        container = create(pod, server.port, **{REGISTER_FAILURE: "fail"})
        assert container.membership is not None
        container.membership.end_before(15, None)
        pod.start("c")
        pod.kill("c", 9)
    assert server.heard == []


def test_everyone_waits_for_its_end(pod: Pod) -> None:
    """Not only the first who wants it: a second signal must not overtake the deregistration."""
    asked, go_on = threading.Event(), threading.Event()

    def slow(connection: socket.socket, request: bytes) -> None:
        asked.set()
        assert go_on.wait(PATIENCE)
        answer(200)(connection, request)

    with talker(slow) as server:
        made = start(pod, server.port).membership
        assert made is not None
        assert asked.wait(PATIENCE)
        first = Behind(lambda: made.end(PATIENCE))
        eventually(lambda: made._engine is None or not made._engine.alive)

        def another() -> list[str]:
            made.end(PATIENCE)
            return methods(server)

        second = Behind(another)
        go_on.set()
        first.get()
        assert second.get() == ["POST", "DELETE"]
        pod.kill("c", 9)


def test_no_longer_than_the_caller_has(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "_OWN", PATIENCE)  # the process says it before we do
    over = threading.Event()
    with talker(lambda *_: wait(over)) as server:
        notes = {REGISTER_FAILURE: "fail", REGISTER_TIMEOUT: "3600"}
        container, made = running(pod, server.port, **notes)
        deadline = time.monotonic() + 2 * PATIENCE + 2
        with pytest.raises(RegistrationFailed, match="no answer within"):
            made.begin(container.identity, restored=True, deadline=deadline)
        assert container.state.status == RUNNING, "its end is the caller's business"
        over.set()
        pod.kill("c", 9)


def test_late(pod: Pod) -> None:
    """Its snapshot was made first: what it was waited for then is not asked again."""
    with talker(answer(404)) as worker, talker(answer(200)) as server:
        container, made = running(pod, server.port, **{READY: f"http:{worker.port}/"})
        made.begin(container.identity, restored=False, late=True)
        eventually(lambda: methods(server) == ["POST"])
        pod.kill("c", 9)
        assert (methods(server), worker.heard) == (["POST", "DELETE"], [])


def test_refused_late(pod: Pod) -> None:
    """Its Start has long been answered: the container is ended."""
    with talker(answer(403)) as server:
        container, made = running(pod, server.port, **{REGISTER_FAILURE: "fail"})
        made.begin(container.identity, restored=False, late=True)
        assert pod.wait("c").get().exit_status == 137
