"""GPUs: none, ones that can be checkpointed, a driver that cannot, libraries that are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes.nodes import FakeNode, states
from fakes.nvml import A100, H100, FakeNvml, machine

from shim.doctor.gpu import gpu
from shim.errors import Unfit
from shim.gpu.nvml import Gpu

VERBS = ("Lock", "Checkpoint", "Restore", "Unlock", "GetState", "GetRestoreThreadId")
CALLS = {f"cuCheckpointProcess{verb}": 1 for verb in VERBS}


def good(_: str) -> object:
    return SimpleNamespace(**CALLS)


def one() -> Sequence[Gpu]:
    return [H100]


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    made = FakeNode(tmp_path)
    made.put("/sys/module/nvidia/version", H100.driver)
    return made


def test_none(tmp_path: Path) -> None:
    (found,) = gpu(FakeNode(tmp_path), good, one)
    assert (found.state, found.said) == ("absent", "no GPU here")


def test_good_ones(node: FakeNode) -> None:
    driver, first, second = gpu(node, good, lambda: machine(H100, A100))
    assert (driver.state, driver.said, driver.subject) == ("ok", "driver 580.159.04", "")
    assert (first.state, first.subject) == ("ok", "GPU 0")
    assert first.said == f"NVIDIA H100 80GB HBM3, 80 GiB, {H100.uuid}"
    assert (second.state, second.subject) == ("ok", "GPU 1")


@pytest.mark.parametrize("call", CALLS)
def test_a_driver_that_lacks_a_call(node: FakeNode, call: str) -> None:
    """It is not initialised for that: there is no cuInit in this library."""
    calls = {name: 1 for name in CALLS if name != call}
    found, _ = gpu(node, lambda _: SimpleNamespace(**calls), one)
    assert states([found]) == ["bad"]
    assert found.said == f"driver 580.159.04 cannot checkpoint a process: no {call}"
    assert "570" in found.fix


@pytest.mark.parametrize(("version", "state"), [("565.57.01", "bad"), ("570.0", "ok"), ("x", "ok")])
def test_a_library_that_is_newer_than_the_driver(tmp_path: Path, version: str, state: str) -> None:
    node = FakeNode(tmp_path)
    node.put("/sys/module/nvidia/version", version)
    found, _ = gpu(node, good, one)
    assert states([found]) == [state]
    assert ("too old, though libcuda.so.1 has the calls" in found.said) == (state == "bad")


def test_no_library(node: FakeNode) -> None:
    def fail(_: str) -> object:
        raise OSError("libcuda.so.1: cannot open shared object file")

    found, _ = gpu(node, fail, one)
    assert states([found]) == ["bad"]
    assert "libcuda.so.1" in found.said


def test_gpus_that_cannot_be_checkpointed(node: FakeNode) -> None:
    first, second, third = machine(H100, H100, H100)
    here = [first, replace(second, mig=True), replace(third, virtual=True)]
    verdicts = list(gpu(node, good, lambda: here))[1:]
    assert states(verdicts) == ["ok", "bad", "bad"]
    assert "GPU 1 (NVIDIA H100 80GB HBM3) is divided into instances (MIG)" in verdicts[1].said
    assert "(vGPU)" in verdicts[2].said
    assert verdicts[2].subject == "GPU 2"


def test_a_driver_without_gpus(node: FakeNode) -> None:
    _, found = gpu(node, good, list)
    assert states([found]) == ["bad"]
    assert "no GPU" in found.said


def test_nvml_that_fails(node: FakeNode) -> None:
    def fail() -> Sequence[Gpu]:
        raise Unfit("NVML: Driver/library version mismatch", hint="restart the node")

    _, found = gpu(node, good, fail)
    assert (found.state, found.fix) == ("bad", "restart the node")
    assert "mismatch" in found.said


def test_real_libraries(node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor's own way of loading and asking; libc has no such calls."""
    fake = FakeNvml(tmp_path)
    fake.use(monkeypatch)
    fake.has([H100])
    monkeypatch.setattr("shim.doctor.gpu.LIBRARY", "libc.so.6")
    driver, found = gpu(node)
    assert states([driver, found]) == ["bad", "ok"]
    assert "no cuCheckpointProcessLock" in driver.said
