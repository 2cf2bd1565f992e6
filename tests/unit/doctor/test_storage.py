"""Folders, file systems and files with secrets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes.nodes import FakeNode, states

from shim.doctor import storage
from shim.doctor.verdict import Verdict

TABLE = "24 1 {major}:{minor} / / rw - ext4 /dev/vda rw\nbad line\n"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir(mode=0o700)
    return folder


def node_of(tmp_path: Path, **settings: str) -> FakeNode:
    node = FakeNode(tmp_path, settings=settings)
    device = os.stat(tmp_path).st_dev
    node.put(
        "/proc/self/mountinfo",
        TABLE.format(major=os.major(device), minor=os.minor(device)),
    )
    return node


def test_the_configuration(tmp_path: Path) -> None:
    assert states(storage.configuration(FakeNode(tmp_path))) == ["ok"]
    (found,) = storage.configuration(FakeNode(tmp_path, error="x.toml: unknown key 'y'"))
    assert (found.state, found.said) == ("bad", "x.toml: unknown key 'y'")


def test_stores(tmp_path: Path, store: Path) -> None:
    (found,) = storage.folders(node_of(tmp_path))
    assert (found.state, found.said) == ("ok", f"{store} on ext4")
    store.chmod(0o777)
    assert states(storage.folders(node_of(tmp_path))) == ["bad"]
    store.rmdir()
    (found,) = storage.folders(node_of(tmp_path))
    assert (found.state, found.fix) == ("bad", f"mkdir -p -m 700 {store}")
    store.write_text("")
    assert states(storage.folders(node_of(tmp_path))) == ["bad"]


def test_all_stores_and_stripes(tmp_path: Path, store: Path) -> None:
    node = node_of(tmp_path, snapshots=f"{store}:{tmp_path}/other", stripes=f"{tmp_path}/disk")
    found = list(storage.folders(node))
    assert states(found) == ["ok", "bad", "bad"]
    assert [v.subject for v in found] == [str(store), f"{tmp_path}/other", f"{tmp_path}/disk"]
    assert [v.subject for v in storage.space(node)] == [str(store)], "what is not there has no room"


def test_space(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_LITTLE", 0)
    assert states(storage.space(node_of(tmp_path))) == ["ok"]
    monkeypatch.setattr(storage, "_LITTLE", 1 << 62)
    (found,) = storage.space(node_of(tmp_path))
    assert states([found]) == ["bad"]
    assert str(store) in found.said


@pytest.mark.parametrize(
    ("check", "call"), [(storage.direct, "readv"), (storage.links, "link")], ids=["direct", "links"]
)
def test_what_the_file_system_can(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch, check: object, call: str
) -> None:
    assert callable(check)
    found: list[Verdict] = list(check(node_of(tmp_path)))
    assert states(found) == ["ok"]

    def refuse(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, call, refuse)
    found = list(check(node_of(tmp_path)))
    assert states(found) == ["bad"]
    assert "Invalid argument" in found[0].said
    assert os.listdir(store) == [], "nothing is left of an attempt"


def test_state(tmp_path: Path) -> None:
    assert states(storage.state(FakeNode(tmp_path, settings={"state": "/dev/shm/thaw/none"}))) == [
        "ok"
    ]
    assert states(storage.state(FakeNode(tmp_path, settings={"state": "/proc/thaw"}))) == ["bad"]


def test_the_audit_log(tmp_path: Path) -> None:
    log = tmp_path / "log" / "audit"
    assert states(storage.audit(FakeNode(tmp_path, settings={"audit.log": ""}))) == ["absent"]
    assert states(storage.audit(FakeNode(tmp_path, settings={"audit.log": str(log)}))) == ["ok"]
    assert not log.parent.exists(), "looking makes nothing"
    log.mkdir(parents=True)
    assert states(storage.audit(FakeNode(tmp_path, settings={"audit.log": str(log)}))) == ["bad"]
    assert states(storage.audit(FakeNode(tmp_path, settings={"audit.log": "/proc/version/x"}))) == [
        "bad"
    ]


def test_credentials(tmp_path: Path) -> None:
    path = tmp_path / "auth.json"
    node = FakeNode(tmp_path, settings={"registry.auth": str(path)})
    assert states(storage.credentials(node)) == ["absent"]
    path.touch(0o600)
    assert states(storage.credentials(node)) == ["ok"]
    path.chmod(0o640)
    (found,) = storage.credentials(node)
    assert states([found]) == ["bad"]
    assert "mode 0640" in found.said
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert states(storage.credentials(node)) == ["bad"]
