"""Annotations that cannot be meant: nothing of them is done, and it is said what could be."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from bed.cri import api_pb2 as api
from bed.images import BUSYBOX_IMAGE
from bed.lane import Lane
from bed.pod import Container, Pod
from serving import annotated, became, refused
from workers import COMMAND, booted_cold

from shim.annotations import PREFIX, TABLE

pytestmark = [pytest.mark.one_lane]

ACTION = "http:PORT/PATH or exec:COMMAND"
SECONDS = "seconds, from 0.001 to 3600"
# For each key a value that is not one, and what is said to be.
BAD = {
    "snapshot": ("../x", "a name is [a-z0-9]"),
    "snapshot.CONTAINER": ("Capitals", "a name is [a-z0-9]"),
    "on-failure": ("maybe", "cold-start or fail"),
    "pull": ("now", "background, wait or never"),
    "ready": ("udp:53", "contract, file:/PATH, tcp:PORT, http:PORT/PATH or exec:COMMAND"),
    "checkpoint": ("../x", "auto, or a name"),
    "after-checkpoint": ("stop", "continue or exit"),
    "quiesce": ("http:host/path", ACTION),
    "resume": ("exec:", ACTION),
    "quiesce-timeout": ("never", SECONDS),
    "resume-timeout": ("0", SECONDS),
    "canary": ("http:70000", ACTION),
    "canary-body": ("{}", "a request's body, with thaw.dev/canary: http:PORT/PATH"),
    "canary-expect": ("status=fine", "status=N, sha256=HEX (64 digits) and match=REGEX"),
    "canary-timeout": ("1e9", SECONDS),
    "register": ("etcd:host/key", "etcd:HOST:PORT/KEY"),
    "register-timeout": ("-1", SECONDS),
    "register-failure": ("ignore", "retry or fail"),
    "gpu-memory": ("both", "library or driver"),
}
KEYS = [row.key.removeprefix(PREFIX) for row in TABLE]
_attempts = itertools.count()  # each container has a log of its own


@pytest.fixture(scope="module")
def pod(lane: Lane) -> Iterator[Pod]:
    with lane.pod("annotated") as pod:
        yield pod


@pytest.fixture
def container(pod: Pod, request: pytest.FixtureRequest) -> Iterator[Container]:
    """A container with the annotations of the test's parameter."""
    number = next(_attempts)
    made = pod.container("app", BUSYBOX_IMAGE, COMMAND, annotations=request.param, attempt=number)
    yield made
    made.remove()


def wrong(key: str, on_failure: str) -> dict[str, str]:
    """Annotations of which the one is not as it should be."""
    full = f"thaw.dev/{key.replace('CONTAINER', 'app')}"
    with_it = annotated(canary="exec:true") if key == "canary-body" else {}
    return {**annotated(on_failure=on_failure), **with_it, full: BAD[key][0]}


def parameters(on_failure: str, keys: list[str]) -> list[object]:
    return [pytest.param(wrong(key, on_failure), key, id=key) for key in keys]


@pytest.mark.parametrize(
    ("container", "key"),
    parameters("fail", [key for key in KEYS if key != "on-failure"]),
    indirect=["container"],
)
def test_it_is_refused(container: Container, key: str) -> None:
    said = refused(container)
    value, allowed = BAD[key]
    for words in (f"thaw.dev/{key.partition('.')[0]}", repr(value), allowed):
        assert words in said
    assert container.log() == ""
    assert container.status().state == api.CONTAINER_EXITED


@pytest.mark.parametrize(
    ("container", "key"),
    parameters("cold-start", ["snapshot", "canary-expect", "register", "on-failure"]),
    indirect=["container"],
)
def test_it_boots_cold(lane: Lane, container: Container, key: str) -> None:
    container.start()
    container.wait_for_log("booted")
    value, allowed = BAD[key]
    reason = "BadSnapshotName" if key == "snapshot" else "BadAnnotation"
    line = became(lane, container, "booting cold", reason, repr(value))
    assert allowed in line.fields["hint"]
    assert booted_cold(container)
