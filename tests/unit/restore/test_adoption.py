"""The steps that make a restored process the new pod's, one by one, on processes that are none."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.clock import Clock
from fakes.namespaces import Namespace, Network
from fakes.talkers import answer, talker
from fakes.work import make_work

from oci_hooks.hold import is_held
from shim.annotations import CANARY, RESUME, RESUME_TIMEOUT
from shim.conduct import actions, canary
from shim.errors import CanaryFailed, FailedPrecondition, InvalidArgument, WorkerFailed
from shim.restore import adoption as adopting
from shim.restore import plan as planning
from shim.restore.adoption import Adoption
from shim.restore.plan import Plan
from shim.work import Work
from shim.worker import actions as acting

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


@pytest.fixture(scope="module")
def pod(network: Network) -> Namespace:
    return network.pod(40)


@pytest.fixture
def control(tmp_path: Path) -> Path:
    made = tmp_path / "control"
    made.mkdir()
    return made


@pytest.fixture
def work(tmp_path: Path, pod: Namespace, control: Path) -> Iterator[Work]:
    """A container with a control directory; a process in the pod's network is its init."""
    spec: dict[str, Any] = {
        "hostname": "new",
        "annotations": {"io.kubernetes.cri.sandbox-name": "pod-1"},
        "process": {"user": {"uid": 0, "gid": 0}},
        "mounts": [
            {"destination": "/snapshot-control", "source": str(control), "options": ["rbind"]}
        ],
        "linux": {"namespaces": [{"type": "network", "path": pod.path}]},
    }
    made = make_work(tmp_path, spec, name="warm", config={"network.hook": ""})
    argv = ["ip", "netns", "exec", pod.name, "sh", "-c", "echo; exec cat"]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe) as init:
        assert init.stdout is not None
        init.stdout.readline()  # it is in the namespace
        Path(made.bundle.pid_file).write_text(str(init.pid))
        yield made
        adopting.release(made, plan_of(made))


def plan_of(work: Work, **notes: str) -> Plan:
    asked = actions(notes)
    made = planning.bare(work, Path("/nowhere"))
    return replace(
        made,
        uncontrolled=False,
        resume=asked.resume,
        resume_timeout=asked.resume_timeout,
        canary=canary(notes),
    )


def test_held_until_it_is_proven(work: Work, pod: Namespace, control: Path) -> None:
    with talker(answer(200), pod.within(listener)) as server:
        plan = plan_of(work, **{CANARY: f"http:{server.port}/"})
        assert plan.network == pod.path
        made = Adoption()
        for step in (made.hold, made.adopt, made.introduce, made.complete, made.resume, made.prove):
            step(work, plan)
            assert is_held(pod.path, work.id), step.__name__
        made.let_pass(work, plan)
        made.finish()
    assert not is_held(pod.path, work.id)
    assert {path.name for path in control.iterdir()} == {"identity.json", "restore-complete"}
    adopting.forget(work)
    assert [path.name for path in control.iterdir()] == ["wake"]


def listener() -> Any:
    import socket

    return socket.create_server(("127.0.0.1", 0))


def test_who_is_asked_nothing_is_free_before_it_hears(work: Work, pod: Namespace) -> None:
    plan, made = plan_of(work), Adoption()
    made.hold(work, plan)
    made.introduce(work, plan)
    assert is_held(pod.path, work.id)
    made.complete(work, plan)
    made.let_pass(work, plan)
    made.finish()
    assert not is_held(pod.path, work.id)


def test_each_container_holds_for_itself(work: Work, pod: Namespace) -> None:
    """Two of a pod that are restored at the same time."""
    plan, other = plan_of(work), replace(work, id="other")
    for one in (work, other):
        Adoption().hold(one, plan)
    adopting.release(work, plan)
    assert not is_held(pod.path, work.id)
    assert is_held(pod.path, "other")
    adopting.release(other, plan)
    assert not is_held(pod.path, "other")


def test_the_hosts_network_is_nobodys_to_hold(work: Work) -> None:
    """CRI gives a pod on the host's network a path, too: its sandbox's."""
    spec = work.bundle.spec()
    spec["linux"]["namespaces"] = [{"type": "network", "path": f"/proc/{os.getpid()}/ns/net"}]
    work.bundle.save(spec)
    plan = plan_of(work)
    assert plan.network == ""
    made = Adoption()
    made.hold(work, plan)
    made.adopt(work, plan)
    made.let_pass(work, plan)
    adopting.release(work, plan)
    with pytest.raises(InvalidArgument, match="is the host's network"):
        made.hold(work, replace(plan, network=f"/proc/{os.getpid()}/ns/net"))


def test_the_pod_is_gone(work: Work) -> None:
    adopting.release(work, replace(plan_of(work), network="/run/netns/gone"))


def test_who_it_is(work: Work, pod: Namespace, control: Path) -> None:
    plan, made = plan_of(work), Adoption()
    made.introduce(work, plan)
    told = json.loads((control / "identity.json").read_text())
    assert told == made.identity
    expected = {"pod": "pod-1", "hostname": "new", "snapshot": "warm", "restored": True}
    assert told | expected == told
    assert told["ips"] == [pod.address4, pod.address6]
    again = Adoption()
    again.introduce(work, plan)
    for key in ("generation", "entropy"):
        assert again.identity[key] != made.identity[key]


def test_it_cannot_be_told(work: Work, control: Path) -> None:
    control.rmdir()
    control.write_text("no directory")
    with pytest.raises(FailedPrecondition, match="no directory"):
        Adoption().introduce(work, plan_of(work))


def test_a_wrong_answer_or_none(
    work: Work, pod: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with talker(answer(500, b"broken"), pod.within(listener)) as server:
        plan = plan_of(work, **{RESUME: f"http:{server.port}/", CANARY: f"http:{server.port}/"})
        with pytest.raises(WorkerFailed, match="answered 500: broken"):
            Adoption().resume(work, plan)
        with pytest.raises(CanaryFailed, match="status 500 instead of 200: broken"):
            Adoption().prove(work, plan)
    plan = plan_of(work, **{RESUME: "http:1/", RESUME_TIMEOUT: "5"})
    # Only its pauses count, however late its answers are.
    monkeypatch.setattr(acting, "time", Clock())
    with pytest.raises(WorkerFailed, match=r"nobody listens, for 5 s"):
        Adoption().resume(work, plan)
