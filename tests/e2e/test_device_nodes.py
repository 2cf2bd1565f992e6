"""A worker that was dumped with one device finds another after its restore: its new pod's."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from bed.cri import api_pb2 as api
from bed.images import BUSYBOX_IMAGE
from bed.lane import Lane
from bed.pod import Container, Pod
from workers import COMMAND, FAIL, SNAPSHOT, ask, booted_cold, kept_snapshot

pytestmark = [pytest.mark.one_lane]

ZERO, FULL = (1, 5), (1, 7)  # what every container may use


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a node's device plugin would hand out."""
    folder = tmp_path_factory.mktemp("nodes")
    for name, numbers in (("gpu0", FULL), ("gpu1", ZERO), ("tool", ZERO)):
        os.mknod(folder / name, stat.S_IFCHR | 0o600, os.makedev(*numbers))
    (folder / "gpu0").chmod(0o640)
    return folder


def boot(pod: Pod, devices: list[tuple[Path, str]]) -> Container:
    given = [
        api.Device(host_path=str(host), container_path=path, permissions="rwm")
        for host, path in devices
    ]
    return pod.container("app", BUSYBOX_IMAGE, COMMAND, devices=given).start()


def told(container: Container, *command: str) -> str:
    done = container.exec(["sh", "-c", *command])
    assert done.exit_code == 0, done
    return done.stdout


@pytest.fixture(scope="module")
def snapshot(lane: Lane, nodes: Path) -> Iterator[str]:
    """Of a worker on the second GPU, with a tool, that has made a node of its own."""

    def make(pod: Pod) -> Container:
        container = boot(pod, [(nodes / "gpu1", "/dev/gpu1"), (nodes / "tool", "/dev/dir/tool")])
        container.wait_for_log("booted")
        told(container, "mknod /dev/own c 1 5 && head -c 1 /dev/gpu1 >/dev/dir/tool")
        return container

    with kept_snapshot(lane, "on-gpu1", make) as name:
        yield name


def test_the_new_pods_device_and_not_the_old_ones(lane: Lane, nodes: Path, snapshot: str) -> None:
    with lane.pod("gpu0", annotations={SNAPSHOT: snapshot, **FAIL}) as pod:
        container = boot(pod, [(nodes / "gpu0", "/dev/gpu0")])
        assert not booted_cold(container)
        assert ask(container).asked == 1
        listed = told(container, "cd /dev; ls -d gpu* dir/* own; stat -c '%A %t:%T' gpu0 null")
        assert listed.split() == ["gpu0", "own", "crw-r-----", "1:7", "crw-rw-rw-", "1:3"]
        assert "No space left" in container.exec(["sh", "-c", "echo x >/dev/gpu0"]).stderr
