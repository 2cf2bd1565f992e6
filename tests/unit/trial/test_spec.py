"""The spec of a trial's container: what it has for itself, and what stays as it was."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from shim.bundle import CRIU_CONFIG
from shim.snapshot.config import MountPoint
from shim.trial.spec import Bind, as_tried, cgroups_path, derived, flags_of, reasons, writable

KINDS = ("pid", "mount", "cgroup")
LIVE: dict[str, Any] = {
    "ociVersion": "1.1.0",
    "annotations": {"thaw.dev/snapshot": "auto", "io.kubernetes.cri.sandbox-id": "s"},
    "hooks": {"prestart": [{"path": "/bin/true"}]},
    "root": {"path": "/somewhere/rootfs", "readonly": True},
    "process": {"args": ["serve"], "oomScoreAdj": -997, "rlimits": [{"type": "RLIMIT_CORE"}]},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
        {"destination": "/etc/hosts", "type": "bind", "source": "/h", "options": ["rbind", "rw"]},
        {"destination": "/models/", "type": "bind", "source": "/m", "options": ["rbind", "ro"]},
        {"destination": "/data/", "source": "/d", "options": ["bind", "rw", "rprivate"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["rw"]},
    ],
    "linux": {
        "cgroupsPath": "/kubepods/pod/c",
        "resources": {"memory": {"limit": 1 << 30}},
        "intelRdt": {"closID": "x"},
        "namespaces": [
            *({"type": kind} for kind in KINDS),
            *({"type": kind, "path": f"/proc/7/ns/{kind}"} for kind in ("ipc", "uts")),
            {"type": "network", "path": "/var/run/netns/pod"},
        ],
    },
}


def made(live: dict[str, Any] = LIVE) -> dict[str, Any]:
    sources = {"/data": "/v/3", "/etc/hosts": "/v/1"}
    return derived(live, sources, network="/proc/9/fd/5", cgroup="/t", criu_config="/f/criu.conf")


def changed(**linux: Any) -> dict[str, Any]:
    return {**LIVE, "linux": {**LIVE["linux"], **linux}}


def test_it_has_for_itself_what_its_original_shares() -> None:
    spec = made()
    assert {entry["type"]: entry.get("path") for entry in spec["linux"]["namespaces"]} == {
        **dict.fromkeys((*KINDS, "ipc", "uts")),
        "network": "/proc/9/fd/5",
    }
    sources = {mount["destination"]: mount["source"] for mount in spec["mounts"]}
    assert sources == {
        "/proc": "proc",
        "/etc/hosts": "/v/1",
        "/models/": "/m",
        "/data/": "/v/3",
        "/tmp": "tmpfs",
    }
    assert spec["linux"]["cgroupsPath"] == "/t"
    assert spec["root"] == {"path": "rootfs", "readonly": True}


def test_nothing_is_done_to_it_or_for_it() -> None:
    spec = made()
    assert spec["annotations"] == {CRIU_CONFIG: "/f/criu.conf"}
    assert "hooks" not in spec
    explaining = {"createContainer": [{"path": "/usr/bin/nvidia-cdi-hook"}]}
    live = {**LIVE, "hooks": {**LIVE["hooks"], **explaining}}
    assert made(live)["hooks"] == explaining, "no restore runs them"
    assert "intelRdt" not in spec["linux"]
    assert spec["process"] == {**LIVE["process"], "oomScoreAdj": 1000}


def test_all_else_is_as_it_was_and_so_is_the_original() -> None:
    before = deepcopy(LIVE)
    spec = made()
    assert before == LIVE
    assert spec["linux"]["resources"] == LIVE["linux"]["resources"]
    options = [mount.get("options") for mount in spec["mounts"]]
    assert options == [mount.get("options") for mount in LIVE["mounts"]]


def test_no_share_of_a_pods() -> None:
    """In a cgroup beside all pods, 2 would be nothing on a node that has work."""
    cpu = {"shares": 2, "quota": 200000, "period": 100000, "cpus": "0-3"}
    weights = {"cpu.weight": "1", "cpu.idle": "1", "memory.high": "max"}
    live = changed(resources={"cpu": {**cpu, "idle": 1}, "unified": weights})
    resources = made(live)["linux"]["resources"]
    assert resources["cpu"] == {"quota": 200000, "period": 100000, "cpus": "0-3"}
    assert resources["unified"] == {"memory.high": "max"}
    assert live["linux"]["resources"]["cpu"]["shares"] == 2
    assert made(changed(resources=None))["linux"]["resources"] is None


def test_a_network_of_its_own_stays_one() -> None:
    spec = made(changed(namespaces=[{"type": "network"}]))
    assert spec["linux"]["namespaces"] == [{"type": "network"}]


def test_what_can_be_written_to() -> None:
    assert writable(LIVE) == [Bind("/h", "/etc/hosts", True), Bind("/d", "/data", False)]


def test_a_container_of_a_pod_can_be_tried_out() -> None:
    assert list(reasons(LIVE)) == []


@pytest.mark.parametrize("kind", ["pid", "mount", "ipc", "uts", "network"])
def test_one_that_is_with_the_host_cannot(kind: str) -> None:
    left = [entry for entry in LIVE["linux"]["namespaces"] if entry["type"] != kind]
    assert list(reasons(changed(namespaces=left))) == [f"it shares the host's {kind} namespace"]


def test_nor_can_some_others() -> None:
    user = [*LIVE["linux"]["namespaces"], {"type": "user"}]
    assert list(reasons(changed(namespaces=user))) == ["it has a user namespace"]
    assert list(reasons({**LIVE, "process": {"terminal": True}})) == ["it has a terminal"]
    seen = {"destination": "/csi", "source": "/csi", "options": ["rbind", "rshared"]}
    told = list(reasons({**LIVE, "mounts": [seen]}))
    assert told == ["mounts in /csi are also seen elsewhere"]


def test_its_cgroup_is_in_no_pods() -> None:
    assert cgroups_path("c-verify", systemd=False) == "/thaw-c-verify"
    assert cgroups_path("c-verify", systemd=True) == "system.slice:thaw:c-verify"


def test_its_mounts_differ_in_their_file_systems_alone() -> None:
    points = [
        MountPoint("/", "overlay", ["rw"], "private"),
        MountPoint("/run/data", "ext4", ["nosuid", "relatime", "rw"], "private"),
    ]
    tried = as_tried(points, {"/var/run/data": "tmpfs"}, lambda path: path.removeprefix("/var"))
    assert tried == [points[0], MountPoint("/run/data", "tmpfs", points[1].options, "private")]
    assert flags_of(points, "/run/data") == ["nosuid", "relatime"]
    assert flags_of(points, "/elsewhere") == []
