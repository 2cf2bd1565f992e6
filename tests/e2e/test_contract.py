"""The contract: a worker in a new pod learns that it was restored, and who it is now."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from bed.cri import api_pb2 as api
from bed.images import BUSYBOX_IMAGE
from bed.lane import Lane
from bed.pod import Container, Mount, Pod, linux_config
from serving import (
    annotated,
    control,
    example,
    get,
    identity_of,
    ips,
    said,
    speaking,
)
from workers import COMMAND, ask, boot, checkpoint, outcome, wait_until

pytestmark = [pytest.mark.one_lane]

SPEAKS = annotated(ready="contract")


def from_snapshot(name: str) -> dict[str, str]:
    return annotated(snapshot=name, on_failure="fail")


def restored(lane: Lane, container: Container) -> Container:
    container.start()
    line = outcome(lane, container)
    assert line.message == "restored", line
    return container


def is_ready(folder: Path) -> None:
    wait_until((folder / "ready-for-snapshot").exists, "a worker that is ready")


def is_new(identity: Mapping[str, Any], pod: Pod, snapshot: str) -> None:
    """All that identity.json says."""
    assert uuid.UUID(identity["generation"]).version == 4
    assert len(bytes.fromhex(identity["entropy"])) == 64
    assert identity == {
        "generation": identity["generation"],
        "entropy": identity["entropy"],
        "pod": pod.config.metadata.name,
        "namespace": "default",
        "uid": pod.config.metadata.uid,
        "ips": ips(pod),
        "hostname": pod.config.hostname,
        "node": os.uname().nodename,
        "container": "app",
        "snapshot": snapshot,
        "restored": snapshot != "",
        "time": identity["time"],
    }


def test_dynamos_worker_as_it_is(lane: Lane) -> None:
    """One that polls; it opens its port only when it was told to go on, in either pod."""
    with lane.pod("old") as pod:
        worker = example(pod, "polling.py", notes=SPEAKS).start()
        is_ready(control(lane, worker))
        assert worker.wait_for_log("warm") == "warm\n"  # its ready file may come sooner
        checkpoint(lane, worker, "polling")
        worker.wait_for_log("registered")
        assert get(pod, "/health")[0] == 200
    with lane.pod("new", annotations=from_snapshot("polling")) as pod:
        worker = restored(lane, example(pod, "polling.py", notes={}))
        assert worker.wait_for_log("registered") == "registered\n"
        status, body = get(pod, "/health")
        assert status == 200
        assert json.loads(body)["polls"] >= 0


def test_who_a_worker_is(lane: Lane) -> None:
    """At its boot, after its snapshot, restored, and restored from what was restored."""
    with lane.pod("first") as pod:
        worker = speaking(pod, SPEAKS).start()
        token, cold = said(worker, "booted")[1:]
        is_new(cold, pod, "")
        is_ready(control(lane, worker))
        checkpoint(lane, worker, "one")
        assert said(worker, "restore-complete").token == token
    seen = [cold]
    for number, name in ((2, "one"), (3, "two")):
        with lane.pod(f"pod-{number}", annotations=from_snapshot(name)) as pod:
            worker = restored(lane, speaking(pod, {}))
            event = said(worker, "restore-complete")
            assert event.token == token
            is_new(event.identity, pod, name)
            assert event.identity == identity_of(lane, worker)
            written_in_order(control(lane, worker))
            assert worker.exec(["hostname"]).stdout.strip() == event.identity["hostname"]
            seen.append(event.identity)
            is_ready(control(lane, worker))
            checkpoint(lane, worker, "two", "--replace")
    for key in ("generation", "entropy", "uid"):
        assert len({identity[key] for identity in seen}) == len(seen), key


def written_in_order(folder: Path) -> None:
    """A worker that polls for one finds the other: each has its name since its change time."""
    identity, told = (folder / name for name in ("identity.json", "restore-complete"))
    assert identity.stat().st_ctime_ns <= told.stat().st_ctime_ns


def volume(folder: Path) -> list[Mount]:
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)  # as an emptyDir is
    return [Mount(folder, "/snapshot-control", readonly=False)]


def test_a_volume_of_its_own(lane: Lane, tmp_path: Path) -> None:
    """Dynamo's pods have an emptyDir there: nothing is mounted over it."""
    with lane.pod("old") as pod:
        worker = speaking(pod, SPEAKS, mounts=volume(tmp_path / "old")).start()
        token = said(worker, "booted").token
        is_ready(tmp_path / "old")
        assert not control(lane, worker).exists()
        checkpoint(lane, worker, "volume")
    with lane.pod("new", annotations=from_snapshot("volume")) as pod:
        mounts = volume(tmp_path / "new")
        (tmp_path / "new/restore-complete").write_text("of another container")
        worker = restored(lane, speaking(pod, {}, mounts=mounts))
        event = said(worker, "restore-complete")
        assert event.token == token
        is_new(event.identity, pod, "volume")
        assert (tmp_path / "new/restore-complete").read_text() == ""
        assert json.loads((tmp_path / "new/identity.json").read_text()) == event.identity


def elsewhere() -> dict[str, Any]:
    return {"env": {"DYN_SNAPSHOT_CONTROL_DIR": "/tmp/control"}}


def test_another_place(lane: Lane) -> None:
    with lane.pod("old") as pod:
        worker = speaking(pod, SPEAKS, **elsewhere()).start()
        token = said(worker, "booted").token
        is_ready(control(lane, worker))
        place = "/tmp/control"
        env = worker.exec(["cat", "/proc/1/environ"]).stdout.split("\0")
        assert {f"SNAPSHOT_CONTROL_DIR={place}", f"DYN_SNAPSHOT_CONTROL_DIR={place}"} <= set(env)
        checkpoint(lane, worker, "elsewhere")
    with lane.pod("new", annotations=from_snapshot("elsewhere")) as pod:
        worker = restored(lane, speaking(pod, {}, **elsewhere()))
        event = said(worker, "restore-complete")
        assert event.token == token
        is_new(event.identity, pod, "elsewhere")


def as_nobody() -> dict[str, Any]:
    linux = linux_config()
    linux.security_context.run_as_user.CopyFrom(api.Int64Value(value=65534))
    return {"linux": linux}


def test_a_user_that_is_not_root(lane: Lane) -> None:
    """It can use its directory; the snapshot is where CRIU may ask for another user's limits."""
    with lane.pod("old") as pod:
        worker = speaking(pod, SPEAKS, **as_nobody()).start()
        token = said(worker, "booted").token
        is_ready(control(lane, worker))
        assert worker.exec(["id", "-u"]).stdout == "65534\n"
        if not may(24):  # CAP_SYS_RESOURCE: prlimit(2)
            return
        checkpoint(lane, worker, "nobody")
    with lane.pod("new", annotations=from_snapshot("nobody")) as pod:
        worker = restored(lane, speaking(pod, {}, **as_nobody()))
        assert said(worker, "restore-complete").token == token


def may(capability: int) -> bool:
    """Whether this process, and so containerd and CRIU, have a capability of that number."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) >> capability & 1)


def test_a_snapshot_of_a_worker_that_had_no_such_directory(lane: Lane) -> None:
    """It comes back without: mounts cannot be added to it. A cold boot has one."""
    with lane.pod("old") as pod:
        worker = boot(pod)
        assert worker.exec(["ls", "/snapshot-control"]).exit_code == 1
        token = ask(worker).token
        checkpoint(lane, worker, "plain")
    with lane.pod("new", annotations=from_snapshot("plain")) as pod:
        worker = restored(lane, pod.container("app", BUSYBOX_IMAGE, COMMAND))
        assert ask(worker).token == token
        assert worker.exec(["ls", "/snapshot-control"]).exit_code == 1
