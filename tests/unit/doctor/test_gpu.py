"""GPUs: none, one that can be checkpointed, one whose driver is too old, one without libraries."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from fakes.nodes import FakeNode, states

from shim.doctor.gpu import gpu


def test_none(tmp_path: Path) -> None:
    (found,) = gpu(FakeNode(tmp_path))
    assert (found.state, found.said) == ("absent", "no GPU here")


def test_drivers(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    node.put("/sys/module/nvidia/version", "580.1")
    calls = {"cuCheckpointProcessLock": 1, "cuCheckpointProcessRestore": 1}
    (found,) = gpu(node, lambda _: SimpleNamespace(**calls))
    assert (found.state, found.said) == ("ok", "driver 580.1")
    (found,) = gpu(node, lambda _: SimpleNamespace(cuInit=1))
    assert states([found]) == ["bad"]
    assert "570" in found.fix


def test_no_library(tmp_path: Path) -> None:
    def fail(_: str) -> object:
        raise OSError("libcuda.so.1: cannot open shared object file")

    node = FakeNode(tmp_path)
    node.put("/sys/module/nvidia/version", "580.1")
    (found,) = gpu(node, fail)
    assert states([found]) == ["bad"]
    assert "libcuda.so.1" in found.said
