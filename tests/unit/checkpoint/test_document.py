"""What is listed in a config document, and what has no place in one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from fakes.snapshots import file_of
from fakes.work import make_work

from shim.checkpoint.document import Moment, made_by
from shim.errors import CheckpointFailed
from shim.restore import namespace
from shim.snapshot.config import SnapshotConfig
from shim.timeline import Timeline
from shim.work import Work


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    """What a dump leaves, packed."""
    files = {
        "criu/core-1.img": b"core",
        "criu/descriptors.json": b"[]",
        "index/extents": b"e",
        "pages1/pages-1.img.0000": b"x" * 4096,
        "pages2/pages-10.img.0000": b"x" * 8192,
        "rootfs.tar.0000": b"r" * 5000,
        "rootfs.tar.0001": b"r",
        "volumes/0.tar.0000": b"v",
        "log/dump.log": b"log",
    }
    for name, data in files.items():
        (tmp_path / "draft" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "draft" / name).write_bytes(data)
    return tmp_path / "draft"


def work_of(folder: Path, **details: Any) -> Work:
    process = {"args": ["a"], "env": ["TOKEN=s3cret"], "user": {"uid": 0, "gid": 0}}
    asked = {"name": "one", "pid": os.getpid(), "cgroup_pids": [], **details}
    return make_work(folder, {"process": process}, **asked)


def written(draft: Path, work: Work, pages: tuple[Path, ...] | None) -> SnapshotConfig:
    images = draft / "criu"
    Moment(work, images, draft, pages).write_config(Timeline())
    text = (draft / "config.json").read_text()
    assert "s3cret" not in text
    assert json.loads(text)["origin"]["env"] == ["TOKEN"]
    assert json.loads(text)["origin"]["addresses"] == namespace.addresses("/proc/self/ns/net")
    return SnapshotConfig.from_json(text, "x")


def test_all_is_listed(tmp_path: Path, draft: Path) -> None:
    config = written(draft, work_of(tmp_path), (draft / "pages1", draft / "pages2"))
    assert config.files == {
        "criu/core-1.img": file_of(b"core"),
        "criu/descriptors.json": file_of(b"[]"),
        "index/extents": file_of(b"e"),
        "rootfs.tar.0000": file_of(b"r" * 5000),
        "rootfs.tar.0001": file_of(b"r"),
        "volumes/0.tar.0000": file_of(b"v"),
    }
    assert config.pages == {"pages-1.img.0000": 4096, "pages-10.img.0000": 8192}
    assert config.sizes["pages"] == 12288
    assert config.sizes["rootfs"] >= 8192
    assert config.maker.node == os.uname().nodename


def test_a_folder_of_containerds(tmp_path: Path, draft: Path) -> None:
    """Pages files are whole there, and what is not CRIU's is nobody's."""
    (draft / "criu" / "pages-1.img").write_bytes(b"x" * 10)
    (draft / "criu" / "dump.log").write_bytes(b"log")
    (draft / "criu" / "thaw").mkdir()
    work = work_of(tmp_path, name="", path=str(draft / "criu"))
    config = written(draft, work, None)
    assert config.pages == {"pages-1.img": 10}
    assert {"criu/core-1.img", "criu/descriptors.json"} == {
        name for name in config.files if name.startswith("criu/")
    }


@pytest.mark.parametrize("name", ["a b.img", ".hidden.img", "x" * 94 + ".img", "\u00f6.img"])
def test_an_image_with_a_strange_name(tmp_path: Path, draft: Path, name: str) -> None:
    (draft / "criu" / name).touch()
    with pytest.raises(CheckpointFailed, match="strange name"):
        written(draft, work_of(tmp_path), ())


@pytest.mark.parametrize(
    ("details", "by"),
    [({}, "thaw checkpoint"), ({"name": ""}, "containerd"), ({"by": "auto"}, "auto")],
)
def test_who_has_asked(tmp_path: Path, details: dict[str, str], by: str) -> None:
    assert made_by(work_of(tmp_path, **details)) == by
