"""GPUDirect Storage on a node: nothing is said against those that have none of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes.nodes import FakeNode, states

from shim.doctor.gpu import VERSION
from shim.doctor.gpu_storage import storage
from shim.gpu.memory.cufile import CALLS, MODULES, NVIDIA_FS


def good(_: str) -> object:
    return SimpleNamespace(**dict.fromkeys(CALLS, 1))


def lacking(call: str) -> object:
    return SimpleNamespace(**{name: 1 for name in CALLS if name != call})


def missing(_: str) -> object:
    raise OSError("cannot open shared object file")


def node_of(folder: Path, how: str, *files: str) -> FakeNode:
    made = FakeNode(folder, settings={"gpu.storage": how})
    for file in files:
        made.put(file, "version: 2.26 in /proc")
    return made


@pytest.mark.parametrize(
    ("how", "files", "state", "words"),
    [
        ("auto", [], "absent", "no GPU here"),
        ("ring", [VERSION, NVIDIA_FS, MODULES], "absent", "gpu.storage says ring"),
        ("auto", [VERSION, MODULES], "absent", "nvidia-fs is not loaded"),
        ("cufile", [VERSION, NVIDIA_FS], "bad", "there is no /proc/modules"),
        ("auto", [VERSION, NVIDIA_FS, MODULES], "ok", "version: 2.26"),
        ("cufile", [VERSION, MODULES], "ok", "compatibility mode"),
    ],
)
def test_what_there_is(tmp_path: Path, how: str, files: list[str], state: str, words: str) -> None:
    (found,) = storage(node_of(tmp_path, how, *files), good)
    assert states([found]) == [state]
    assert words in found.said


def test_no_cufile(tmp_path: Path) -> None:
    node = node_of(tmp_path, "auto", VERSION, NVIDIA_FS, MODULES)
    (found,) = storage(node, missing)
    assert states([found]) == ["bad"]
    assert "no libcufile.so.0: cannot open" in found.said


@pytest.mark.parametrize("call", CALLS)
def test_an_old_cufile(tmp_path: Path, call: str) -> None:
    node = node_of(tmp_path, "auto", VERSION, NVIDIA_FS, MODULES)
    (found,) = storage(node, lambda _: lacking(call))
    assert states([found]) == ["bad"]
    assert call in found.said
