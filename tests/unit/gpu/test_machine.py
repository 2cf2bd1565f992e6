"""What tests/gpu makes of a machine; the rest of it needs a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gpu import machine
from gpu.machine import annotations_of, bindable, described, mount_points, outermost


def test_a_folder_in_which_something_is_mounted(tmp_path: Path) -> None:
    for name in ("usr/bin", "usr/lib", "usr/local/nvidia/lib64", "usr/local/share"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "usr/local/file").touch()
    (tmp_path / "usr/link").symlink_to("lib")
    usr = tmp_path / "usr"
    assert bindable(usr, {tmp_path, usr}) == [usr]
    parts = bindable(usr, {usr / "local/nvidia"})
    local = usr / "local"
    assert parts == [usr / "bin", usr / "lib", local / "file", local / "nvidia", local / "share"]


def test_folders_in_folders() -> None:
    paths = [Path(p) for p in ("/usr/lib", "/opt/torch", "/usr", "/usr", "/opt/torch-2")]
    assert outermost(paths) == [Path("/opt/torch"), Path("/opt/torch-2"), Path("/usr")]


def test_mount_points() -> None:
    lines = "22 1 0:20 / / rw - ext4 /dev/x rw\n23 22 0:21 / /a\\040b rw shared:1 - tmpfs t rw\n"
    assert mount_points(lines) == {Path("/"), Path("/a b")}
    assert Path("/proc") in mount_points(Path("/proc/self/mountinfo").read_text())


def test_what_containerd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-caps", "null"):
        (tmp_path / name).touch()
    place = tmp_path / "cdi" / "thaw-test.json"
    monkeypatch.setattr(machine, "_SPECIFICATION", place)
    with described(tmp_path):
        told = json.loads(place.read_text())
    assert not place.exists()
    nodes = {
        device["name"]: [
            Path(node["path"]).name for node in device["containerEdits"]["deviceNodes"]
        ]
        for device in told["devices"]
    }
    assert nodes == {
        "all": ["nvidia-uvm", "nvidia0", "nvidia1", "nvidiactl"],
        "0": ["nvidia-uvm", "nvidia0", "nvidiactl"],
        "1": ["nvidia-uvm", "nvidia1", "nvidiactl"],
    }
    assert annotations_of("1") == {"cdi.k8s.io/thaw-test": f"{told['kind']}=1"}
