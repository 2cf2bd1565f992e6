"""What tests/gpu makes of a machine and of its figures; the rest of it needs a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gpu import machine
from gpu.machine import bindable, described, mount_points, outermost
from gpu.run import Wrong, compare, table


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
    [device] = told["devices"]
    assert {"cdi.k8s.io/thaw-test": f"{told['kind']}={device['name']}"} == machine.ANNOTATIONS
    nodes = [Path(node["path"]).name for node in device["containerEdits"]["deviceNodes"]]
    assert nodes == ["nvidia-uvm", "nvidia0", "nvidia1", "nvidiactl"]


ANSWER: dict[str, Any] = {"memory": [1, 2], "graph": [3], "answers": 1, "pid": 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"memory": [1, 3]}, "another memory than"),
        ({"memory": [], "graph": [4]}, "another memory and another graph"),
        ({"answers": 1}, "started anew"),
    ],
)
def test_a_worker_that_is_not_what_it_was(change: dict[str, Any], words: str) -> None:
    compare("it", ANSWER, {**ANSWER, "answers": 2})
    with pytest.raises(Wrong, match=words):
        compare("it", ANSWER, {**ANSWER, "answers": 2, **change})


def test_the_table() -> None:
    ours = {
        "cold": {"started": 1.0, "answered": 20.0},
        "snapshot": {"seconds": 9.0, "steps": {"lock": 0.001, "device": 4.0}, "bytes": 9 << 30},
        "restores": [
            {"started": 2.0, "answered": 2.5, "steps": "timeline=x"},
            {"started": 1.5, "answered": 2.0, "steps": "timeline=y"},
        ],
    }
    theirs = {
        "checkpoint": {"cold start": 19.0, "lock": 0.001, "checkpoint": 4.1, "dump": 5.0},
        "restores": [{"criu": 6.0, "restore": 2.0, "unlock": 0.0, "total": 8.0, "same": True}],
        "bytes": 9 << 30,
    }
    lines = table({"gib": 8.0, "thaw": ours, "stock": theirs})
    assert lines[1].split() == [
        "8",
        "GiB",
        "on",
        "the",
        "GPU,",
        "seconds",
        *["Thaw", "stock", "CRIU", "+", "driver"],
    ]
    assert any(line.split()[-2:] == ["4.0", "x"] for line in lines)
    assert lines[-2:] == ["steps: timeline=x", "steps: timeline=y"]
