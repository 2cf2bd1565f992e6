"""A restored worker proves itself before anyone sees it, or it is none: resume, canary, release.

The failing containers share one pod and one snapshot, of a server that does what its path says.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from bed.cri import api_pb2 as api
from bed.images import HOST_IMAGE
from bed.lane import Lane
from bed.pod import Container, Mount, Pod
from serving import (
    PORT,
    SERVER,
    annotated,
    became,
    example,
    get,
    identity_of,
    post,
    refused,
)
from workers import USR, checkpoint, kept_snapshot, outcome, script, shim_lines, wait_until

pytestmark = [pytest.mark.one_lane]

ANSWER = "it is 42"
DIGEST = hashlib.sha256(ANSWER.encode()).hexdigest()
_attempts = itertools.count()  # each container has a log of its own
Create = Callable[[Mapping[str, str]], Container]


class Case(NamedTuple):
    """Annotations that a restored worker does not live up to, and what is said of it."""

    notes: Mapping[str, str]
    words: str  # in the error
    reason: str = "CanaryFailed"


def canary(action: str, expect: str = "", timeout: str = "30") -> dict[str, str]:
    notes = annotated(canary=action, canary_timeout=timeout)
    return notes | (annotated(canary_expect=expect) if expect else {})


def resume(action: str, timeout: str = "30") -> dict[str, str]:
    return annotated(resume=action, resume_timeout=timeout)


RIGHT = {
    "all of it": canary("http:8000/answer", f"status=200 sha256={DIGEST} match=is [0-9]+$"),
    "an error": canary("http:8000/nonsense", "status=500"),
    "a command": canary("exec:echo right; exit 3", "status=3 match=right")
    | resume("http:8000/answer"),
}
WRONG = {
    "status": Case(canary("http:8000/nonsense"), "status 500 instead of 200"),
    "body": Case(canary("http:8000/answer", "match=^43"), "does not match ^43: it is 42"),
    "digest": Case(canary("http:8000/answer", "sha256=" + "0" * 64), f"sha256 {DIGEST} instead"),
    "late": Case(canary("http:8000/hang", timeout="0.4"), "no answer within 0.4 s"),
    "crash": Case(canary("http:8000/crash"), "has ended"),
    "nobody": Case(canary("http:8009", timeout="0.3"), "nobody listens, for 0.3 s"),
    "command": Case(canary("exec:echo hm; exit 3"), "status 3 instead of 0: hm"),
    "slow command": Case(canary("exec:sleep 1000", timeout="0.4"), "not done after 0.4 s, killed"),
    "no pattern": Case(canary("http:8000/answer", "match=("), "match=(", "BadAnnotation"),
    "resume": Case(resume("http:8000/nonsense"), "answered 500", "WorkerFailed"),
    "resume crash": Case(resume("http:8000/crash"), "has ended", "WorkerFailed"),
    "slow resume": Case(resume("exec:sleep 1000", "0.4"), "not done after 0.4 s", "WorkerFailed"),
}
REFUSED = ("body", "crash", "resume crash", "slow resume")
WROTE = "what the failed restore has written"
LAST_WORDS = "crashing\n"  # SERVER's, where it crashes


def serving(pod: Pod, notes: Mapping[str, str]) -> Container:
    args, number = script(SERVER), next(_attempts)
    return pod.container("app", HOST_IMAGE, args, mounts=[USR], annotations=notes, attempt=number)


@pytest.fixture(scope="module")
def pod(lane: Lane) -> Iterator[Pod]:
    with lane.pod("canary") as pod:
        yield pod


@pytest.fixture(scope="module")
def snapshot(lane: Lane, pod: Pod) -> Iterator[str]:
    """After the pod, whose first process has become what it is by then."""

    def make(maker: Pod) -> Container:
        container = serving(maker, {}).start()
        container.wait_for_log("booted")
        return container

    with kept_snapshot(lane, "server", make) as name:
        yield name


@pytest.fixture
def create(pod: Pod) -> Iterator[Create]:
    """Creates the server's container in the pod."""
    made: list[Container] = []

    def create(notes: Mapping[str, str]) -> Container:
        made.append(serving(pod, notes))
        return made[-1]

    yield create
    for container in made:
        container.remove()


def on_failure(word: str, case: Mapping[str, str]) -> dict[str, str]:
    return {**annotated(snapshot="server", on_failure=word), **case}


@pytest.mark.usefixtures("snapshot")
@pytest.mark.parametrize("name", RIGHT)
def test_it_passes(lane: Lane, pod: Pod, create: Create, name: str) -> None:
    container = create(on_failure("fail", RIGHT[name])).start()
    assert outcome(lane, container).message == "restored"
    assert get(pod, "/answer") == (200, ANSWER)
    assert container.log() == ""


@pytest.mark.usefixtures("snapshot")
def test_one_that_says_much_meanwhile(lane: Lane, create: Create) -> None:
    """Nobody reads it before it is restored, and it does not wait for that."""
    container = create(on_failure("fail", resume("http:8000/talk", "10"))).start()
    assert outcome(lane, container).message == "restored"
    wait_until(lambda: container.log().count("word ") == 50_000, "all that it has said")


@pytest.mark.usefixtures("snapshot")
@pytest.mark.parametrize("name", WRONG)
def test_it_boots_cold(lane: Lane, pod: Pod, create: Create, name: str) -> None:
    case = WRONG[name]
    container = create(on_failure("cold-start", case.notes)).start()
    assert became(lane, container, "booting cold", case.reason, case.words).fields["hint"]
    assert container.wait_for_log("booted") == "booted\n", "and nothing of the failed one's"
    if "crash" in name:
        wait_until(lambda: wrote(lane, container), "a line about its last words")
    assert wrote(lane, container) == ([LAST_WORDS] if "crash" in name else [])
    assert get(pod, "/answer") == (200, ANSWER), "the hold is over, too"
    assert not identity_of(lane, container)["restored"]


def wrote(lane: Lane, container: Container) -> list[str]:
    """What a failed restore has written, as the shim's log has it until now."""
    lines = shim_lines(lane, container.id)
    return [line.fields["output"] for line in lines if line.message == WROTE]


@pytest.mark.usefixtures("snapshot")
@pytest.mark.parametrize("name", REFUSED)
def test_it_fails_if_it_shall(lane: Lane, pod: Pod, create: Create, name: str) -> None:
    case = WRONG[name]
    container = create(on_failure("fail", case.notes))
    assert case.words in refused(container)
    became(lane, container, "not restored", case.reason, case.words)
    words = LAST_WORDS if "crash" in name else ""
    assert container.wait_for_log(words) == words  # containerd writes it down when it comes to it
    assert container.status().state == api.CONTAINER_EXITED
    with pytest.raises(ConnectionRefusedError):  # by the pod: it is not held any longer
        socket.create_connection((pod.ip, PORT), 5)


# What goes out meanwhile, as a worker would find it; then it waits for the test's word.
HELD = """\
exec:/usr/bin/python3 -ISc 'import socket
try:
    socket.create_connection(("{host}", {port}), 0.3)
except OSError as error:
    print(type(error).__name__)' >/data/outgoing; cat /data/gate"""


def test_nobody_sees_it_before(lane: Lane, tmp_path: Path) -> None:
    """Neither from outside nor by what it sends, until the canary has passed."""
    os.mkfifo(tmp_path / "gate")
    mounts = [USR, Mount(tmp_path, "/data", readonly=False)]
    with socket.create_server(("0.0.0.0", 0)) as outside, lane.pod("seen") as pod:
        cold = pod.container("app", HOST_IMAGE, script(SERVER), mounts=mounts).start()
        cold.wait_for_log("booted")
        checkpoint(lane, cold, "held")
        cold.remove()
        host = f"{pod.ip.rpartition('.')[0]}.1"
        asking = HELD.format(host=host, port=outside.getsockname()[1])
        notes = annotated(snapshot="held", on_failure="fail", canary=asking, canary_timeout="60")
        held = pod.container(
            "app", HOST_IMAGE, script(SERVER), mounts=mounts, annotations=notes, attempt=1
        )
        start = held.starting()
        gate = opened_for_writing(tmp_path / "gate")
        try:
            with pytest.raises(TimeoutError):
                socket.create_connection((pod.ip, PORT), 0.3)
            assert (tmp_path / "outgoing").read_text() == "TimeoutError\n"
            assert not start.done()
        finally:
            os.close(gate)
            start.result(60)
        assert outcome(lane, held).message == "restored"
        assert get(pod, "/answer") == (200, ANSWER)


def opened_for_writing(fifo: Path) -> int:
    """Open a FIFO once somebody reads it."""
    found: list[int] = []

    def there() -> bool:
        try:
            found.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # nobody reads it yet
            return False
        return True

    wait_until(there, f"a reader of {fifo}")
    return found[0]


def test_a_server_that_knows_nothing(lane: Lane) -> None:
    """It is put to sleep for its snapshot, as vLLM is, woken and asked, all by annotations."""
    question = json.dumps({"prompt": "Once upon a time"})
    asleep = annotated(quiesce="http:8000/sleep?level=1", resume="http:8000/wake_up")
    with lane.pod("old", annotations=asleep) as pod:
        worker = example(pod, "sleeping.py", "--mib", "8", notes={}).start()
        worker.wait_for_log("ready")
        status, completion = post(pod, "/v1/completions", question)
        assert status == 200
        checkpoint(lane, worker, "sleeping")
        assert post(pod, "/v1/completions", question) == (200, completion), "it is awake again"
    asked = annotated(
        canary="http:8000/v1/completions",
        canary_body=question,
        canary_expect=f"sha256={hashlib.sha256(completion.encode()).hexdigest()}",
    )
    snapshot = annotated(snapshot="sleeping", on_failure="fail")
    with lane.pod("new", annotations={**asleep, **asked, **snapshot}) as pod:
        worker = example(pod, "sleeping.py", "--mib", "8", notes={}).start()
        assert outcome(lane, worker).message == "restored"
        assert get(pod, "/is_sleeping") == (200, '{"is_sleeping": false}')
        assert post(pod, "/v1/completions", question) == (200, completion)
    with lane.pod("left-asleep", annotations=snapshot) as pod:
        worker = example(pod, "sleeping.py", "--mib", "8", notes={}).start()
        assert get(pod, "/is_sleeping") == (200, '{"is_sleeping": true}'), "as it was dumped"
