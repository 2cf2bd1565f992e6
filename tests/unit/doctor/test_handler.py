"""containerd and its handler, as a running one tells of it and as its files have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes.nodes import RUNTIMES, FakeDaemon, FakeNode, states

from shim.doctor import handler

DUMP = "containerd config dump"
SYSTEMD = "version 1, made by systemd"
TOML = """
version = 3
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{name}]
runtime_type = "io.containerd.thaw.v1"
pod_annotations = {annotations}
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = {systemd}
"""


def dump(name: str = "thaw", annotations: str = '["thaw.dev/*"]', systemd: str = "false") -> str:
    return TOML.format(name=name, annotations=annotations, systemd=systemd)


def test_containerd(tmp_path: Path) -> None:
    (found,) = handler.daemon(FakeNode(tmp_path, daemon=FakeDaemon(RUNTIMES)))
    assert states([found]) == ["ok"]
    assert found.said.startswith("containerd 2.1.9 at ")
    (found,) = handler.daemon(FakeNode(tmp_path))
    assert states([found]) == ["bad"]
    assert "No such file" in found.said


@pytest.mark.parametrize(
    ("table", "state", "words"),
    [
        ({"runtimeType": "io.containerd.thaw.v1", "PodAnnotations": ["*"]}, "ok", "handler thaw"),
        ({"type": "io.containerd.thaw.v1", "pod_annotations": ["thaw.dev/*"]}, "ok", "thaw.dev/*"),
        ({"runtimeType": "io.containerd.thaw.v1"}, "bad", "pod_annotations"),
        ({"runtimeType": "io.containerd.thaw.v1", "PodAnnotations": ["x/*"]}, "bad", "lack"),
        ({"runtimeType": "io.containerd.thaw.v1", "PodAnnotations": [1]}, "bad", "lack"),
        ({"runtimeType": "io.containerd.runc.v2"}, "bad", "no handler has the runtime type"),
    ],
)
def test_the_handler(tmp_path: Path, table: dict[str, Any], state: str, words: str) -> None:
    daemon = FakeDaemon({"runc": RUNTIMES["runc"], "thaw": table})
    (found,) = handler.handler(FakeNode(tmp_path, daemon=daemon))
    assert states([found]) == [state]
    assert words in found.said


def test_what_its_files_say(tmp_path: Path) -> None:
    for text, state in ((dump(), "ok"), (dump(annotations="[]"), "bad"), ("version = 3", "bad")):
        assert states(handler.handler(FakeNode(tmp_path, {DUMP: (0, text)}))) == [state]


def test_a_containerd_without_cri(tmp_path: Path) -> None:
    """What its files say does not matter: its CRI may have refused just that."""
    node = FakeNode(tmp_path, {DUMP: (0, dump())}, daemon=FakeDaemon(None))
    (found,) = handler.handler(node)
    assert states([found]) == ["bad"]
    assert "no CRI here" in found.said
    assert states(handler.cgroups(node)) == ["ok"]


@pytest.mark.parametrize("answer", [None, (1, "failed"), (0, "= no toml"), (1, "")])
def test_nobody_tells(tmp_path: Path, answer: tuple[int, str] | None) -> None:
    node = FakeNode(tmp_path, {DUMP: answer} if answer else {})
    (found,) = handler.handler(node)
    assert states([found]) == ["bad"]
    assert "does not tell" in found.said


def test_the_shim(tmp_path: Path) -> None:
    node = FakeNode(tmp_path, daemon=FakeDaemon(RUNTIMES, [tmp_path / "bin"]))
    (found,) = handler.shim(node)
    assert states([found]) == ["bad"]
    assert f"containerd's PATH ({tmp_path}/bin)" in found.said
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / handler.SHIM).touch(0o755)
    (found,) = handler.shim(node)
    assert (found.state, found.said) == ("ok", f"{tmp_path}/bin/{handler.SHIM}")


def test_the_shim_without_containerd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert states(handler.shim(FakeNode(tmp_path))) == ["bad"]
    (tmp_path / handler.SHIM).touch(0o755)
    assert states(handler.shim(FakeNode(tmp_path))) == ["ok"]


@pytest.mark.parametrize("options", [{"SystemdCgroup": True}, '{"SystemdCgroup": true}'])
def test_cgroups_of_both(tmp_path: Path, options: object) -> None:
    runtimes = {"runc": {"options": options}}
    node = FakeNode(tmp_path, daemon=FakeDaemon(runtimes))
    (found,) = handler.cgroups(node)
    assert states([found]) == ["bad"]
    assert "SystemdCgroup = true" in found.fix
    node = FakeNode(tmp_path, daemon=FakeDaemon(runtimes), settings={"SystemdCgroup": True})
    (found,) = handler.cgroups(node)
    assert states([found]) == ["bad"], "there is no systemd"
    node.path("/run/systemd/system").mkdir(parents=True)
    (found,) = handler.cgroups(node)
    assert (found.state, found.said) == (
        "ok",
        "version 1, made by systemd, as runc's handler has it",
    )


def test_cgroups_alone(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    node.put("/sys/fs/cgroup/cgroup.controllers", "cpu")
    (found,) = handler.cgroups(node)
    assert (found.state, found.said) == ("ok", "version 2, made by runc itself")
