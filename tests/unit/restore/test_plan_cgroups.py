"""What CRIU is told about cgroups when it restores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shim import cgroup
from shim.restore import plan
from shim.work import Work

OWN = [{"type": "pid"}, {"type": "cgroup"}]


def options(folder: Path, linux: dict[str, Any], **config: object) -> tuple[str, ...]:
    (folder / "config.json").write_text(json.dumps({"linux": linux}))
    request: dict[str, Any] = {
        "verb": "restore",
        "id": "c",
        "namespace": "k8s.io",
        "bundle": str(folder),
        "folder": str(folder),
        "rootfs": [],
        "terminal": False,
        "config": config,
        "containerd": "",
    }
    made = plan.bare(Work.parse(request), folder / "images").criu_options
    return tuple(option for option in made if "cgroup" in option)


@pytest.fixture
def v2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "is_unified", lambda root: True)
    monkeypatch.setattr(cgroup, "_memberships", lambda file: {"": "/system.slice/containerd"})


def test_without_a_namespace_cgroups_are_runcs(tmp_path: Path) -> None:
    assert options(tmp_path, {"cgroupsPath": "/pod/c"}) == ("manage-cgroups=ignore",)


@pytest.mark.usefixtures("v2")
def test_with_a_namespace_the_new_cgroup_is_its_root(tmp_path: Path) -> None:
    linux = {"cgroupsPath": "/pod/c", "namespaces": OWN}
    assert options(tmp_path, linux) == ("cgroup-root :/pod/c",)
    assert options(tmp_path, {"namespaces": OWN}) == ("cgroup-root :/system.slice/c",)


@pytest.mark.usefixtures("v2")
def test_systemds_cgroup(tmp_path: Path) -> None:
    linux = {"cgroupsPath": "kube-pod.slice:cri:c", "namespaces": OWN}
    found = options(tmp_path, linux, SystemdCgroup=True)
    assert found == ("cgroup-root :/kube.slice/kube-pod.slice/cri-c.scope",)


def test_version_1_is_told_by_runc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "is_unified", lambda root: False)
    assert options(tmp_path, {"cgroupsPath": "/pod/c", "namespaces": OWN}) == ()
