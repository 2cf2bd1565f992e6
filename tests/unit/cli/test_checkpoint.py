"""`thaw checkpoint`: which container is meant, and what its shim is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.host import Node

from shim.cli import exits, main
from shim.cli.checkpoint import SERVICE, find
from shim.config import Config
from shim.errors import AlreadyExists, InvalidArgument, NotFound
from shim.lean.sockets import stream
from shim.proto.control_pb import CheckpointRequest, CheckpointResponse
from shim.task.control import ControlService
from shim.ttrpc.server import Call, Method, Server


@pytest.fixture
def state(tmp_path: Path) -> Path:
    for place in ("k8s.io/abc123", "k8s.io/abd456", "default/abc123", "default/web", "other/web-2"):
        (tmp_path / "state" / place).mkdir(parents=True)
    (tmp_path / "state" / "default" / "file").touch()
    (tmp_path / "config.toml").write_text(f'state = "{tmp_path}/state"\n')
    return tmp_path / "state"


def found(state: Path, beginning: str, namespace: str = "") -> str:
    path = find(Config({"state": str(state)}), namespace, beginning)
    return str(path.relative_to(state))


def test_by_id_or_its_beginning(state: Path) -> None:
    assert found(state, "abd456") == "k8s.io/abd456"
    assert found(state, "abd") == "k8s.io/abd456"
    assert found(state, "web-") == "other/web-2"


def test_a_whole_id_goes_before_a_longer_one(state: Path) -> None:
    assert found(state, "web") == "default/web"
    with pytest.raises(InvalidArgument, match="we could be"):
        found(state, "we")


def test_in_one_namespace(state: Path) -> None:
    assert found(state, "abc123", "default") == "default/abc123"
    assert found(state, "abc", "k8s.io") == "k8s.io/abc123"
    assert found(state, "we", "other") == "other/web-2"
    with pytest.raises(NotFound):
        found(state, "web", "k8s.io")


def test_several_could_be_meant(state: Path) -> None:
    with pytest.raises(InvalidArgument, match="could be") as caught:
        found(state, "abc123")
    assert "default/abc123" in caught.value.message
    assert "k8s.io/abc123" in caught.value.message
    assert "-n" in caught.value.hint
    with pytest.raises(InvalidArgument, match=r"k8s\.io/abd456"):
        found(state, "ab", "k8s.io")


@pytest.mark.parametrize("beginning", ["zzz", "file"])
def test_there_is_none(state: Path, beginning: str) -> None:
    with pytest.raises(NotFound, match=f"no container {beginning} under {state}"):
        found(state, beginning)


@pytest.mark.parametrize("beginning", ["", "*", "?", "[a]bc", "../k8s.io", "a/b", "..", ".", "-"])
def test_what_no_id_looks_like(state: Path, beginning: str) -> None:
    with pytest.raises(InvalidArgument, match="bad container id"):
        found(state, beginning)


class Shim:
    """The pod's shim, reached over a link as the daemon makes it."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.asked: list[CheckpointRequest] = []
        self.answer: Callable[[], CheckpointResponse] = CheckpointResponse
        path = node.folder / "real.sock"
        listener = stream()
        listener.bind(str(path))
        listener.listen(4)
        (folder / "shim.sock").symlink_to(path)
        services = {SERVICE: {"Checkpoint": Method(CheckpointRequest, self._checkpoint, False)}}
        self._server = node.do(lambda: Server(node.loop, listener, services, node.errors.append))
        self._node = node

    def _checkpoint(self, request: CheckpointRequest, _call: Call) -> CheckpointResponse:
        self.asked.append(request)
        return self.answer()

    def close(self) -> None:
        self._node.do(self._server.close)


def run(state: Path, *arguments: str) -> int:
    return main(["checkpoint", *arguments, "--config", str(state.parent / "config.toml")])


def test_the_shim_is_asked(node: Node, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shim = Shim(node, state / "k8s.io" / "abd456")
    shim.answer = lambda: CheckpointResponse(
        path="/snapshots/one", bytes=3 << 20, seconds=1.5, frozen=0.25
    )
    assert run(state, "abd", "one") == 0
    assert run(state, "abd", "two", "--exit", "-n", "k8s.io") == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert run(state, "abd", "two", "--replace", "--shared", "-o", "json") == 0
    shim.close()
    assert [(r.id, r.name, r.exit, r.replace, r.shared) for r in shim.asked] == [
        ("abd456", "one", False, False, False),
        ("abd456", "two", True, False, False),
        ("abd456", "two", False, True, True),
    ]
    assert json.loads(capsys.readouterr().out) == {
        "name": "two",
        "path": "/snapshots/one",
        "bytes": 3 << 20,
        "seconds": 1.5,
        "frozen": 0.25,
    }
    assert first == "/snapshots/one: 3.0 MiB in 1.50 s, container stopped for 0.25 s"


def test_what_the_shim_refuses(node: Node, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shim = Shim(node, state / "default" / "web")

    def refuse() -> CheckpointResponse:
        raise AlreadyExists("a snapshot named one exists", hint="`thaw rm one` removes it")

    shim.answer = refuse
    assert run(state, "web", "one") == exits.TAKEN
    shim.close()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("thaw checkpoint: a snapshot named one exists")


@pytest.mark.parametrize("socket", [False, True])
def test_a_shim_that_is_gone(state: Path, capsys: pytest.CaptureFixture[str], socket: bool) -> None:
    if socket:
        (state / "default" / "web" / "shim.sock").symlink_to(state / "no.sock")
    assert run(state, "web", "one") == exits.UNREACHABLE
    said = capsys.readouterr().err
    assert said.startswith("thaw checkpoint: ")
    assert said.count("\n") == 1


def test_both_sides_mean_the_same_service() -> None:
    assert ControlService.NAME == SERVICE
