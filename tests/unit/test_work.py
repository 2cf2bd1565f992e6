from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from shim.config import Config
from shim.work import Work

OVERLAY = {
    "type": "overlay",
    "source": "overlay",
    "target": "",
    "options": ["index=off", "upperdir=/s/7/fs", "workdir=/s/7/work", "lowerdir=/s/1:/s/2"],
}


def request(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "verb": "restore",
        "id": "c1",
        "namespace": "k8s.io",
        "bundle": "/b",
        "folder": str(folder),
        "rootfs": [OVERLAY],
        "terminal": False,
        "config": Config({"Root": "/r"}).as_dict(),
        "containerd": "/run/containerd.sock",
        "snapshot": "/snapshots/warm",
        **changes,
    }


def test_a_request(tmp_path: Path) -> None:
    work = Work.parse(request(tmp_path, fds=[1, 2]), (11, 12))
    assert (work.verb, work.id, work.namespace) == ("restore", "c1", "k8s.io")
    assert work.bundle.path == "/b"
    assert work.folder == tmp_path
    assert work.rootfs[0].type == "overlay"
    assert work.config.text("Root") == "/r"
    assert work.details["snapshot"] == "/snapshots/warm"
    assert work.fds == {1: 11, 2: 12}
    assert work.runc.id == "c1"
    assert list(work.runc.command)[:3] == ["runc", "--root", "/r/k8s.io"]


def test_descriptors_that_did_not_arrive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        Work.parse(request(tmp_path, fds=[1, 2]), (11,))


def test_an_overlays_folders(tmp_path: Path) -> None:
    work = Work.parse(request(tmp_path))
    assert work.upper == Path("/s/7/fs")
    assert work.scratch == Path("/s/7/work")


@pytest.mark.parametrize(
    "rootfs",
    [
        [],
        [{**OVERLAY, "options": ["lowerdir=/s/1:/s/2", "ro"]}],
        [{**OVERLAY, "type": "bind", "options": ["rbind", "upperdir=/x"]}],
        [OVERLAY, OVERLAY],
    ],
)
def test_no_writable_overlay(tmp_path: Path, rootfs: list[Any]) -> None:
    work = Work.parse(request(tmp_path, rootfs=rootfs))
    assert work.upper is None
    assert work.scratch is None


def test_what_is_remembered_can_be_undone(tmp_path: Path) -> None:
    work = Work.parse(request(tmp_path, fds=[1]), (11,))
    assert not work.marker.exists()
    work.remember()
    assert work.marker.stat().st_mode & 0o777 == 0o600
    again = Work.parse(json.loads(work.marker.read_text()))
    assert again.verb == "undo"
    assert again.fds == {}
    assert again.upper == work.upper
    assert again.details["snapshot"] == "/snapshots/warm"
    assert os.listdir(tmp_path) == [work.marker.name]


def test_a_memory_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine may be killed at any moment, and half a request could not be undone."""
    seen: list[bool] = []
    work = Work.parse(request(tmp_path))
    real = os.rename

    def rename(source: str, target: str) -> None:
        seen.append(work.marker.exists())
        json.loads(Path(source).read_text())
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    work.remember()
    assert seen == [False]
