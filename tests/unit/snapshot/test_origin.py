from __future__ import annotations

import copy
import os
from dataclasses import replace
from typing import Any

import pytest

from shim.gpu import preload
from shim.gpu.spec import deny_io_uring
from shim.snapshot.config import DeviceNode, SpecMount
from shim.snapshot.origin import NAMESPACES, origin_of

SPEC: dict[str, Any] = {
    "process": {
        "args": ["python3", "serve.py"],
        "env": ["TOKEN=s3cret", "PATH=/bin", "EMPTY=", "PATH=/usr/bin", "NONE"],
        "cwd": "/srv",
        "user": {"uid": 1000, "gid": 1001, "additionalGids": [9, 3]},
        "capabilities": {"bounding": ["CAP_KILL", "CAP_CHOWN"], "effective": None},
        "noNewPrivileges": True,
        "apparmorProfile": "cri-containerd",
        "selinuxLabel": "label",
    },
    "root": {"path": "rootfs", "readonly": True},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "nodev"]},
        {"destination": "/data/", "source": "/host", "options": ["ro", "rbind"]},
    ],
    "annotations": {
        "io.kubernetes.cri.container-name": "worker",
        "io.kubernetes.cri.image-name": "registry/worker:1",
        "io.kubernetes.cri.sandbox-namespace": "team-a",
    },
    "linux": {
        "namespaces": [
            {"type": "pid"},
            {"type": "network", "path": "/no/such/netns"},
            {"type": "ipc", "path": "/proc/self/ns/ipc"},
        ],
        "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"]}]},
        "devices": [
            {"path": "/dev/nvidia0", "type": "c", "major": 195, "fileMode": 0o660, "gid": 44}
        ],
    },
}


def test_a_whole_spec() -> None:
    origin = origin_of(SPEC, "", "sha256:aa")
    assert origin.container == "worker"
    assert (origin.image, origin.image_digest) == ("registry/worker:1", "sha256:aa")
    assert (origin.args, origin.cwd) == (["python3", "serve.py"], "/srv")
    assert origin.user == [1000, 1001, 3, 9]
    assert origin.capabilities == {"bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": []}
    assert origin.no_new_privileges
    assert (origin.apparmor, origin.selinux) == ("cri-containerd", "label")
    assert origin.read_only
    assert not origin.terminal
    assert origin.mounts == [
        SpecMount("/data", "bind", ["rbind", "ro"]),
        SpecMount("/proc", "proc", ["nodev", "nosuid"]),
    ]
    assert len(origin.seccomp) == 64
    assert origin.namespace == "team-a"
    assert origin.service_account == ""
    assert origin.devices == [DeviceNode("/dev/nvidia0", "c", 195, 0, 0o660, 0, 44)]


def test_what_thaw_denies_is_no_part_of_the_profile() -> None:
    """A container that was made before, or without an annotation, is the same one."""
    made = copy.deepcopy(SPEC)
    deny_io_uring(made)
    assert made != SPEC
    assert origin_of(made, "", "") == origin_of(SPEC, "", "")
    bare = {**SPEC, "linux": {}}
    made = copy.deepcopy(bare)
    deny_io_uring(made)
    assert origin_of(made, "", "") == origin_of(bare, "", "")
    assert origin_of(made, "", "").seccomp == ""


@pytest.mark.parametrize("env", [[], ["LD_PRELOAD=/lib/jemalloc.so"]])
def test_of_the_library_there_is_only_its_version(env: list[str]) -> None:
    """Its mount and its variable are ours: a container that was made without is the same one."""
    bare = copy.deepcopy(SPEC)
    bare["process"]["env"] += env
    made = copy.deepcopy(bare)
    preload.give(made, preload.path_of("/libraries", "5" * 64))
    assert made != bare
    found = origin_of(made, "", "")
    assert found.library == "5" * 64
    assert replace(found, library="") == origin_of(bare, "", "")
    assert ("LD_PRELOAD" in found.env) == bool(env)


def test_of_the_environment_only_names() -> None:
    origin = origin_of(SPEC, "", "")
    assert origin.env == ["EMPTY", "NONE", "PATH", "TOKEN"]
    assert "s3cret" not in repr(origin)


def test_an_empty_spec() -> None:
    origin = origin_of({}, "", "")
    assert (origin.container, origin.image, origin.args) == ("", "", [])
    assert origin.user == [0, 0]
    assert origin.seccomp == ""
    assert set(origin.namespaces.values()) == {"host"}


def test_what_containerd_says_of_the_image_counts() -> None:
    assert origin_of(SPEC, "docker.io/other:2", "").image == "docker.io/other:2"


def test_namespaces() -> None:
    found = origin_of(SPEC, "", "").namespaces
    assert set(found) == set(NAMESPACES)
    assert found["pid"] == "new"
    assert found["network"] == "joined"
    assert found["uts"] == "host"


@pytest.mark.parametrize("kind", ["network", "ipc", "uts", "mount"])
def test_a_path_to_the_hosts_own_is_the_hosts(kind: str) -> None:
    """A sandbox on the host's network has a path: /proc/PID/ns/net, which is the host's."""
    link = {"network": "net", "mount": "mnt"}.get(kind, kind)
    spec = {"linux": {"namespaces": [{"type": kind, "path": f"/proc/{os.getpid()}/ns/{link}"}]}}
    assert origin_of(spec, "", "").namespaces[kind] == "host"


def test_order_does_not_matter() -> None:
    other = copy.deepcopy(SPEC)
    other["mounts"].reverse()
    other["process"]["user"]["additionalGids"].reverse()
    other["linux"]["seccomp"] = dict(reversed(other["linux"]["seccomp"].items()))
    for mount in other["mounts"]:
        mount["options"].reverse()
    assert origin_of(other, "", "") == origin_of(SPEC, "", "")


def test_another_seccomp_profile_is_another_digest() -> None:
    other = copy.deepcopy(SPEC)
    other["linux"]["seccomp"]["syscalls"][0]["names"].append("ptrace")
    assert origin_of(other, "", "").seccomp != origin_of(SPEC, "", "").seccomp
