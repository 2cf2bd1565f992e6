"""A worker is in its registry from when it may be asked until it is told to end, and no longer.

Registries are real: an HTTP server and an etcd on the other side of the bridge, a command in the
container. The worker itself tells the HTTP server when its signal comes, so that what came before
and after can be seen in one place.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from threading import Event
from typing import Any, NamedTuple

import pytest
from bed.cri import api_pb2 as api
from bed.etcd import Server
from bed.images import BUSYBOX_IMAGE
from bed.lane import Lane
from bed.pod import Container, Pod
from serving import Recorder, Request, annotated, gateway, identity_of, ips, refused
from stored import forget
from workers import awaited_lines, checkpoint, outcome, shim_lines, shim_pid, wait_until

pytestmark = [pytest.mark.one_lane]

WORKER = """\
trap 'wget -q -O /dev/null {url}/signalled; echo ended; exit 7' TERM
sleep 100000 &
echo booted
while :; do wait; done
"""
KEY = "workers/default/"
_SLOW = 0.3  # seconds that the registry takes for a DELETE: a signal sent meanwhile is seen


class Site(NamedTuple):
    """Where the workers' registries are: `host` as pods reach it."""

    host: str
    recorder: Recorder

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.recorder.port}"


@pytest.fixture(scope="module")
def made(lane: Lane) -> Iterator[Site]:
    """The registry, and a snapshot named member of a worker that has a control directory."""
    with Recorder() as recorder:
        with lane.pod("member-maker") as pod:
            site = Site(gateway(pod), recorder)
            worker = member(pod, site, annotated(ready="contract")).start()
            worker.wait_for_log("booted")
            checkpoint(lane, worker, "member")
        yield site
    forget(lane, "member")


def answer(request: Request) -> int:
    if request.method == "DELETE":
        time.sleep(_SLOW)
    return 200


@pytest.fixture
def site(made: Site) -> Site:
    made.recorder.requests.clear()
    made.recorder.answer = answer
    return made


@pytest.fixture(scope="module")
def etcd(made: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Where pods reach it; the bridge is there since the first of them."""
    with Server(tmp_path_factory.mktemp("etcd"), made.host) as server:
        yield server


def member(pod: Pod, site: Site, notes: Mapping[str, str]) -> Container:
    args = ["sh", "-c", WORKER.format(url=site.url)]
    return pod.container("app", BUSYBOX_IMAGE, args, annotations=notes)


def registered(register: str, **more: str) -> dict[str, str]:
    """Annotations of a container that is restored and registered."""
    return annotated(snapshot="member", on_failure="fail", register=register, **more)


def messages(lane: Lane, container: Container) -> list[str]:
    return [line.message for line in shim_lines(lane, container.id)]


def because(lane: Lane, container: Container, message: str) -> str:
    """What the log says of why, once it says that."""
    line = awaited_lines(lane, container.id, message)[0]
    return line.fields.get("because", "") or line.fields.get("error", "")


def without_entropy(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in identity.items() if key != "entropy"}


def test_http(lane: Lane, site: Site) -> None:
    notes = registered(f"{site.url}/workers/{{namespace}}/{{pod}}")
    with lane.pod("called", annotations=notes) as pod:
        worker = member(pod, site, {}).start()
        assert outcome(lane, worker).message == "restored"
        because(lane, worker, "registered")  # before that it would be taken back, and not told
        identity = identity_of(lane, worker)
        worker.stop()
        assert worker.wait() == 7
        [post, delete, signalled] = site.recorder.requests
        assert (post.method, post.path) == ("POST", "/workers/default/called")
        assert (delete.method, delete.path) == ("DELETE", "/workers/default/called")
        assert signalled.path == "/signalled"
        assert json.loads(post.body) == without_entropy(identity)
        assert (identity["restored"], identity["ips"]) == (True, ips(pod))
        assert len(identity["entropy"]) == 128
        because(lane, worker, "deregistered")  # the log goes by way of containerd
        assert messages(lane, worker)[-1] == "deregistered"


def test_a_stop_while_it_is_being_registered(lane: Lane, site: Site) -> None:
    """What comes of the attempt is taken back first: nobody is sent to a worker that ends."""
    asked = Event()

    def slowly(request: Request) -> int:
        asked.set()
        time.sleep(_SLOW if request.method != "GET" else 0)
        return 200

    site.recorder.answer = slowly
    with lane.pod("brief", annotations=registered(f"{site.url}/w")) as pod:
        worker = member(pod, site, {}).start()
        assert asked.wait(60)
        worker.stop()
        assert worker.wait() == 7
    assert site.recorder.methods() == ["POST", "DELETE", "GET"]


def test_a_command(lane: Lane, site: Site) -> None:
    """In the container, whose log has it all; of one that boots cold, which is a member, too."""
    notes = annotated(register='exec:echo "$1" >/proc/1/fd/1')
    with lane.pod("told", annotations=notes) as pod:
        worker = member(pod, site, {}).start()
        because(lane, worker, "registered")
        worker.wait_for_log("booted")  # or it would not know SIGTERM yet
        worker.stop()
        assert worker.wait() == 7
        lines = worker.wait_for_log("ended").splitlines()
        assert sorted(lines[:2]) == ["booted", "register"]
        assert lines[2:] == ["deregister", "ended"]


def test_one_that_boots_cold_is_waited_for(lane: Lane, site: Site) -> None:
    """Until its own probe says yes. It ends by itself: what comes after is the deregistration."""

    def unready_at_first(request: Request) -> int:
        asked = site.recorder.methods().count("GET")
        return 503 if request.path == "/ready" and asked < 2 else 200

    site.recorder.answer = unready_at_first
    ready = f"exec:wget -q -O /dev/null {site.url}/ready"
    with lane.pod("cold", annotations=annotated(register=f"{site.url}/w", ready=ready)) as pod:
        worker = member(pod, site, {}).start()
        wait_until(lambda: "POST" in site.recorder.methods(), "a registration")
        assert not json.loads(site.recorder.requests[-1].body)["restored"]
        worker.wait_for_log("booted")  # or it would not know SIGTERM yet
        worker.exec(["kill", "-TERM", "1"])
        assert worker.wait() == 7
        wait_until(lambda: "DELETE" in site.recorder.methods(), "the end of it")
        assert site.recorder.methods() == [*["GET"] * 3, "POST", "GET", "DELETE"]


def test_none_that_has_not_passed(lane: Lane, site: Site) -> None:
    """The registry never hears of the restored one whose canary was wrong."""
    notes = annotated(snapshot="member", canary="exec:false", register=f"{site.url}/w")
    with lane.pod("wrong", annotations=notes) as pod:
        worker = member(pod, site, {}).start()
        assert outcome(lane, worker).message == "booting cold"
        wait_until(lambda: site.recorder.requests, "a registration")
        worker.wait_for_log("booted")  # or it would not know SIGTERM yet
        worker.stop()
    [post, *_] = site.recorder.requests
    assert not json.loads(post.body)["restored"]
    assert site.recorder.methods() == ["POST", "DELETE", "GET"]


def test_a_killed_shim(lane: Lane, site: Site) -> None:
    """Who keeps the entry sees to its end, even so."""
    with lane.pod("headless", annotations=registered(f"{site.url}/w")) as pod:
        worker = member(pod, site, {}).start()
        wait_until(lambda: site.recorder.requests, "a registration")
        os.kill(shim_pid(lane, worker.id), signal.SIGKILL)
        wait_until(lambda: "DELETE" in site.recorder.methods(), "the end of it")
        assert worker.wait() in (137, 255)  # containerd's own word, or what `delete` answered
    assert site.recorder.methods() == ["POST", "DELETE"]


def etcd_key(etcd: Server, site: Site) -> str:
    return f"etcd:{site.host}:{etcd.port}/{KEY}{{pod}}"


def test_etcd(lane: Lane, site: Site, etcd: Server) -> None:
    seen: list[str | None] = []

    def witness(request: Request) -> int:
        seen.append(etcd.read(f"{KEY}kept"))
        return 200

    site.recorder.answer = witness
    with lane.pod("kept", annotations=registered(etcd_key(etcd, site))) as pod:
        worker = member(pod, site, {}).start()
        wait_until(lambda: etcd.read(f"{KEY}kept"), "a key")
        identity = identity_of(lane, worker)
        assert json.loads(etcd.read(f"{KEY}kept") or "") == without_entropy(identity)
        assert len(etcd.leases()) == 1
        worker.stop()
        assert worker.wait() == 7
    assert seen == [None], "gone before the worker was told to end"
    assert etcd.leases() == []


def test_etcd_slow_and_forgetful(lane: Lane, site: Site, etcd: Server) -> None:
    """The worker runs without; what was lost is made anew."""
    etcd.freeze()
    notes = registered(etcd_key(etcd, site), register_timeout="0.5")
    with lane.pod("patient", annotations=notes) as pod:
        worker = member(pod, site, {}).start()
        assert worker.running
        assert f"etcd at {site.host}" in because(lane, worker, "registration: not registered yet")
        etcd.thaw()
        wait_until(lambda: etcd.read(f"{KEY}patient"), "a key")
        because(lane, worker, "registration: registered")
        etcd.kill()
        etcd.forget()
        etcd.start()
        wait_until(lambda: etcd.read(f"{KEY}patient"), "the key again")
        assert "forgotten the lease" in because(lane, worker, "registration: lost")
        assert worker.running
        worker.stop()
    assert etcd.leases() == []


def test_etcd_down_and_indispensable(lane: Lane, site: Site, etcd: Server) -> None:
    etcd.kill()
    notes = registered(etcd_key(etcd, site), register_timeout="20", register_failure="fail")
    with lane.pod("strict", annotations=notes) as pod:
        worker = member(pod, site, {})
        told = refused(worker)
        assert f"etcd at {site.host}" in told
        assert worker.status().state == api.CONTAINER_EXITED
        assert f"etcd at {site.host}" in because(lane, worker, "not registered")
        etcd.start()
        worker.remove()
        again = pod.container(
            "app", BUSYBOX_IMAGE, ["sh", "-c", WORKER.format(url=site.url)], attempt=1
        ).start()
        assert etcd.read(f"{KEY}strict"), "before Start has answered"
        again.stop()
        assert etcd.read(f"{KEY}strict") is None
