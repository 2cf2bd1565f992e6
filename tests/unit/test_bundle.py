from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from shim.annotations import SANDBOX_ID
from shim.bundle import (
    CRIU_CONFIG,
    Bundle,
    annotations_of,
    hostname_of,
    namespace_path,
    read_pid,
    steer_criu,
    write_atomically,
)
from shim.errors import InvalidArgument


def with_config(folder: Path, content: str) -> Bundle:
    (folder / "config.json").write_text(content)
    return Bundle(str(folder))


def test_names() -> None:
    bundle = Bundle("/b")
    assert bundle.pid_file == "/b/init.pid", "containerd reads it"
    assert bundle.log == "/b/log.json"
    assert bundle.rootfs == "/b/rootfs"
    assert bundle.exec_pid_file("e1") == "/b/e1.pid"


def test_the_spec(tmp_path: Path) -> None:
    assert with_config(tmp_path, '{"a": ["\\u00fc", 1.5]}').spec() == {"a": ["ü", 1.5]}


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"x"', "\x00"])
def test_a_spec_that_is_none(tmp_path: Path, content: str) -> None:
    with pytest.raises(InvalidArgument, match=r"config\.json"):
        with_config(tmp_path, content).spec()


def test_no_spec(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=f"cannot read {tmp_path}"):
        Bundle(str(tmp_path)).spec()


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"annotations": None},
        {"annotations": {"a": "b"}},
        {"annotations": {CRIU_CONFIG: "/pod/evil.conf"}},
    ],
)
def test_criu_is_steered_by_us_alone(tmp_path: Path, spec: dict[str, Any]) -> None:
    bundle = with_config(tmp_path, json.dumps(spec))
    found = bundle.spec()
    steer_criu(found, "/run/thaw/x/criu.conf")
    assert found["annotations"][CRIU_CONFIG] == "/run/thaw/x/criu.conf"
    others = {k: v for k, v in (spec.get("annotations") or {}).items() if k != CRIU_CONFIG}
    assert {k: v for k, v in found["annotations"].items() if k != CRIU_CONFIG} == others


def test_nothing_else_of_the_spec_changes(tmp_path: Path) -> None:
    spec = {"z": 1, "a": {"deep": [1, 2.5, None, True, "\u2028"]}, "annotations": {}}
    bundle = with_config(tmp_path, json.dumps(spec))
    changed = bundle.spec()
    steer_criu(changed, "/c")
    bundle.save(changed)
    found = bundle.spec()
    assert found.pop("annotations") == {CRIU_CONFIG: "/c"}
    assert found == {"z": 1, "a": spec["a"]}


def test_the_marker(tmp_path: Path) -> None:
    bundle = Bundle(str(tmp_path))
    Path(bundle.marker).touch()
    bundle.forget()
    bundle.forget()
    assert os.listdir(tmp_path) == []


def test_writing_is_one_rename(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    reader = open(path)
    write_atomically(str(path), b"new")
    assert reader.read() == "old"
    reader.close()
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_writing_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomically(str(tmp_path / "folder"), b"x")
    assert os.listdir(tmp_path) == ["folder"]


def test_writing_beside_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_atomically("address", b"unix:///x")
    assert (tmp_path / "address").read_bytes() == b"unix:///x"


@pytest.mark.parametrize(("content", "pid"), [("42", 42), ("42\n", 42), ("", 0), ("x", 0)])
def test_pid_files(tmp_path: Path, content: str, pid: int) -> None:
    (tmp_path / "pid").write_text(content)
    assert read_pid(str(tmp_path / "pid")) == pid
    assert read_pid(str(tmp_path / "none")) == 0


def test_annotations() -> None:
    assert annotations_of({}) == {}
    assert annotations_of({"annotations": None}) == {}
    assert annotations_of({"annotations": {"a": "b"}}) == {"a": "b"}


@pytest.mark.parametrize(
    ("linux", "path"),
    [
        (None, None),
        ({}, None),
        ({"namespaces": None}, None),
        ({"namespaces": [{"type": "mount"}]}, None),
        ({"namespaces": [{"type": "pid"}]}, ""),
        ({"namespaces": [{"type": "pid", "path": "/proc/7/ns/pid"}]}, "/proc/7/ns/pid"),
    ],
)
def test_namespaces(linux: Any, path: str | None) -> None:
    assert namespace_path({"linux": linux}, "pid") == path


@pytest.fixture
def bundle_of_a_pod(tmp_path: Path) -> Bundle:
    (tmp_path / "sandbox").mkdir()
    (tmp_path / "sandbox" / "config.json").write_text(json.dumps({"hostname": "sandboxes"}))
    return Bundle(str(tmp_path / "c"))


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ({}, ""),
        ({"hostname": "own"}, "own"),
        ({"annotations": None}, ""),
        ({"annotations": {SANDBOX_ID: "sandbox"}}, "sandboxes"),
        ({"annotations": {SANDBOX_ID: "sandbox"}, "hostname": "own"}, "own"),
    ],
)
def test_whose_name(bundle_of_a_pod: Bundle, spec: dict[str, Any], name: str) -> None:
    assert hostname_of(spec, bundle_of_a_pod) == name


def test_a_sandbox_without_a_name(bundle_of_a_pod: Bundle, tmp_path: Path) -> None:
    (tmp_path / "sandbox" / "config.json").write_text("{}")
    assert hostname_of({"annotations": {SANDBOX_ID: "sandbox"}}, bundle_of_a_pod) == ""


def test_a_sandbox_that_is_gone(bundle_of_a_pod: Bundle) -> None:
    with pytest.raises(InvalidArgument, match=r"gone/config\.json"):
        hostname_of({"annotations": {SANDBOX_ID: "gone"}}, bundle_of_a_pod)
