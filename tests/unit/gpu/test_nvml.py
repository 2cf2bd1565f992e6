"""The real pynvml over a library of ours: what it tells, and what it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pynvml
import pytest
from fakes.nvml import A100, GIB, H100, FakeNvml, build, machine, numbered

from shim.errors import Unfit
from shim.gpu import nvml


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    made = FakeNvml(tmp_path, library)
    made.use(monkeypatch)
    return made


def test_the_numbers_are_those_of_nvml() -> None:
    assert nvml._NOT_SUPPORTED == pynvml.NVML_ERROR_NOT_SUPPORTED
    assert nvml._NOT_FOUND == pynvml.NVML_ERROR_NOT_FOUND
    assert nvml._NO_DRIVER == pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    assert nvml._NO_LIBRARY == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    assert nvml._NO_FUNCTION == pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
    assert nvml._NO_GPU == pynvml.NVML_ERROR_GPU_NOT_FOUND
    assert nvml._MISMATCH == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    modes = (
        pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU,
        pynvml.NVML_GPU_VIRTUALIZATION_MODE_HOST_VGPU,
    )
    assert modes == nvml._VIRTUAL


def test_what_it_tells(fake: FakeNvml) -> None:
    first, second = machine(H100, A100)
    first = replace(first, minor=7, free=3 * GIB + 5, processes=(41, 4194303))
    second = replace(second, mig=True)
    fake.has([first, second])
    assert nvml.gpus() == [first, second]
    assert str(first) == "GPU 0 (NVIDIA H100 80GB HBM3)"
    fake.has([first])
    assert nvml.gpus() == [first]


def test_no_gpus(fake: FakeNvml) -> None:
    assert nvml.gpus() == []


@pytest.mark.parametrize(("mode", "virtual"), [(0, False), (1, False), (2, True), (3, True)])
def test_virtual_ones(fake: FakeNvml, mode: int, virtual: bool) -> None:
    fake.has([H100], virtual=mode)
    assert nvml.gpus() == [replace(H100, virtual=virtual)]


def test_a_uuid_in_large_letters(fake: FakeNvml) -> None:
    uuid = "GPU-ABCDEF01-1111-2222-3333-444444444444"
    fake.has([replace(H100, uuid=uuid)])
    (found,) = nvml.gpus()
    assert found.uuid == "GPU-abcdef01-1111-2222-3333-444444444444"
    assert nvml.uuid_bytes(found.uuid) == bytes.fromhex("abcdef01111122223333444444444444")


@pytest.mark.parametrize(
    "uuid",
    ["", "GPU-", H100.uuid[:-1], H100.uuid + "0", H100.uuid[4:], "MIG" + H100.uuid[3:]],
)
def test_what_is_no_uuid(uuid: str) -> None:
    with pytest.raises(Unfit, match="no UUID of a GPU"):
        nvml.uuid_bytes(uuid)


@pytest.mark.parametrize("code", [9, 6, 28])
def test_no_driver(fake: FakeNvml, code: int) -> None:
    fake.has([H100])
    fake.fail("nvmlInitWithFlags", code)
    assert nvml.gpus() == []


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(pynvml, "CDLL", missing)
    assert nvml.gpus() == []


@pytest.mark.parametrize(
    ("call", "code", "hint"),
    [
        ("nvmlInitWithFlags", 18, "restart the node"),
        ("nvmlInitWithFlags", 999, "nvidia-smi"),
        ("nvmlInitWithFlags", 4, "nvidia-smi"),
        ("nvmlSystemGetDriverVersion", 999, "nvidia-smi"),
        ("nvmlDeviceGetCount_v2", 999, "nvidia-smi"),
    ],
)
def test_a_driver_that_fails(fake: FakeNvml, call: str, code: int, hint: str) -> None:
    fake.has([H100])
    fake.fail(call, code)
    with pytest.raises(Unfit, match=r"^NVML: ") as refused:
        nvml.gpus()
    assert hint in refused.value.hint


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("nvmlDeviceGetHandleByIndex_v2", 4),  # not for us
        ("nvmlDeviceGetHandleByIndex_v2", 15),  # fell off the bus
        ("nvmlDeviceGetUUID", 15),
        ("nvmlDeviceGetName", 999),
        ("nvmlDeviceGetMemoryInfo", 15),
        ("nvmlDeviceGetMigMode", 15),
    ],
)
def test_one_that_cannot_be_used(
    fake: FakeNvml, logged: Callable[[], str], call: str, code: int
) -> None:
    first, second = machine(H100, H100)
    fake.has([first, second])
    fake.fail(call, code, index=0)
    assert nvml.gpus() == [second]
    assert "a GPU cannot be used" in logged()


def test_one_without_a_good_uuid(fake: FakeNvml, logged: Callable[[], str]) -> None:
    fake.has([replace(H100, uuid="GPU-12"), numbered(H100, 1)])
    assert [gpu.index for gpu in nvml.gpus()] == [1]
    assert "is no UUID" in logged()


@pytest.mark.parametrize(
    ("call", "without"),
    [
        ("nvmlDeviceGetMemoryInfo", {"memory": 0, "free": 0}),  # memory shared with the processor
        ("nvmlDeviceGetMinorNumber", {"minor": 0}),
        ("nvmlDeviceGetMigMode", {"mig": False}),
        ("nvmlDeviceGetVirtualizationMode", {"virtual": False}),
        ("nvmlDeviceGetComputeRunningProcesses_v3", {"processes": ()}),
    ],
)
@pytest.mark.parametrize("code", [3, 13])
def test_what_a_gpu_does_not_know(
    fake: FakeNvml, call: str, code: int, without: dict[str, Any]
) -> None:
    made = replace(H100, minor=5, mig=True, processes=(7,))
    fake.has([made], virtual=2)
    fake.fail(call, code, index=0)
    assert nvml.gpus() == [replace(replace(made, virtual=True), **without)]


def test_processes_that_are_not_for_us(fake: FakeNvml) -> None:
    fake.has([replace(H100, processes=(7,))])
    fake.fail("nvmlDeviceGetComputeRunningProcesses_v3", 4, index=0)
    assert nvml.gpus() == [H100]


def test_an_old_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its library lacks calls altogether."""
    fake = FakeNvml(tmp_path, build(tmp_path, "-DOLD"))
    fake.use(monkeypatch)
    fake.has([replace(H100, processes=(7,))])
    assert nvml.gpus() == [H100]


def test_what_is_free_now(fake: FakeNvml) -> None:
    """The rest is not asked for again, and one that is gone is left out."""
    first, second = machine(H100, A100)
    fake.has([first, second])
    known = nvml.gpus()
    fake.has([replace(first, free=GIB, processes=(7,)), second])
    fake.fail("nvmlDeviceGetMemoryInfo", 999, index=1)
    assert nvml.refreshed(known) == [replace(first, free=GIB)]
    fake.fail("nvmlInitWithFlags", 999)
    with pytest.raises(Unfit):
        nvml.refreshed(known)


def test_many_processes(fake: FakeNvml) -> None:
    pids = tuple(range(100, 140))
    fake.has([replace(H100, processes=pids[::-1])])
    assert nvml.gpus() == [replace(H100, processes=pids)]


def test_as_it_is_found(tmp_path: Path, library: Path) -> None:
    """By its name, as the driver installs it, in a fresh process; pynvml is not there before."""
    fake = FakeNvml(tmp_path, library)
    fake.has([H100])
    program = (
        "import sys; from shim.gpu import nvml; from shim.snapshot import host;"
        "assert 'pynvml' not in sys.modules;"
        "print([gpu.uuid for gpu in nvml.gpus()])"
    )
    world = {"THAW_FAKE_NVML": str(fake.world), "LD_LIBRARY_PATH": str(library.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **world},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"['{H100.uuid}']"


def test_whether_there_is_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "NODE", str(tmp_path / "nvidiactl"))
    assert not nvml.present()
    (tmp_path / "nvidiactl").touch()
    assert nvml.present()
