"""Whether GPU memory can be moved past the driver: the library, its folder, the driver's calls."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes.nodes import FakeNode, states

from shim.doctor.gpu_memory import CALLS, memory
from shim.gpu import preload


def good(_: str) -> object:
    return SimpleNamespace(**dict.fromkeys(CALLS, 1))


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "libthaw-gpu.so"
    path.write_bytes(b"one")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "libraries"
    path.mkdir(mode=0o755)
    return path


@pytest.fixture
def node(tmp_path: Path, library: Path, folder: Path) -> FakeNode:
    made = FakeNode(tmp_path, {tried(library): (0, "")}, settings={"gpu.preloaded": str(folder)})
    made.put("/sys/module/nvidia/version", "580.159.04")
    return made


def tried(library: Path) -> str:
    return f"env LD_PRELOAD={library} true"


def test_no_gpu(tmp_path: Path) -> None:
    assert states(memory(FakeNode(tmp_path), good)) == ["absent"]


def test_switched_off(tmp_path: Path) -> None:
    node = FakeNode(tmp_path, settings={"gpu.memory": "driver"})
    node.put("/sys/module/nvidia/version", "580.159.04")
    (found,) = memory(node, good)
    assert (found.state, found.said) == ("absent", "gpu.memory says driver")


def test_all_is_well(node: FakeNode, library: Path, folder: Path) -> None:
    found = list(memory(node, good, str(library)))
    assert states(found) == ["ok", "ok", "ok"]
    assert found[1].said == f"0 versions in {folder}"
    preload.keep(str(folder), str(library))
    (folder / "other").touch()
    assert [v.said for v in memory(node, good, str(library))][1] == f"one version in {folder}"
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert states(memory(node, good, str(library))) == ["ok", "ok", "ok"]


def test_it_is_not_there(node: FakeNode, tmp_path: Path) -> None:
    first, *_ = memory(node, good, str(tmp_path / "nowhere.so"))
    assert states([first]) == ["bad"]
    assert "nowhere.so" in first.said


@pytest.mark.parametrize("answer", [(0, "ERROR: ld.so: object cannot be preloaded"), (139, "")])
def test_it_cannot_be_loaded(node: FakeNode, library: Path, answer: tuple[int, str]) -> None:
    """ld.so complains and goes on."""
    node.answers[tried(library)] = answer
    first, *others = memory(node, good, str(library))
    assert states([first]) == ["bad"]
    assert (answer[1] or "139") in first.said
    assert states(others) == ["ok", "ok"]


def test_a_folder_of_everybodys(node: FakeNode, library: Path, folder: Path) -> None:
    folder.chmod(0o777)
    _, second, _ = memory(node, good, str(library))
    assert states([second]) == ["bad"]


@pytest.mark.parametrize("call", CALLS)
def test_a_driver_that_lacks_a_call(node: FakeNode, library: Path, call: str) -> None:
    calls = {name: 1 for name in CALLS if name != call}
    *_, last = memory(node, lambda _: SimpleNamespace(**calls), str(library))
    assert states([last]) == ["bad"]
    assert call in last.said


def test_no_driver(node: FakeNode, library: Path) -> None:
    def fail(_: str) -> object:
        raise OSError("cannot open shared object file")

    *_, last = memory(node, fail, str(library))
    assert states([last]) == ["bad"]
