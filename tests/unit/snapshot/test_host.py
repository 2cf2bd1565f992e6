from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.nvml import A100, GIB, H100, FakeNvml, machine

from shim.config import Config
from shim.errors import Unavailable
from shim.gpu import nvml
from shim.snapshot.config import Gpu
from shim.snapshot.host import cpu_features, criu_version, on_tmpfs, read_mount_table, this_host
from shim.snapshot.kernel import kernel_features


def criu(folder: Path, script: str) -> Config:
    path = folder / "criu"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return Config({"criu": str(path)})


@pytest.mark.parametrize("version", ["4.2", "4.2.1", "4.10", "5.0"])
def test_a_criu_that_is_new_enough(tmp_path: Path, version: str) -> None:
    assert criu_version(criu(tmp_path, f"echo Version: {version}; echo GitID: v")) == version


@pytest.mark.parametrize(
    "script",
    ["echo Version: 4.1.1", "echo Version: 3.17", "echo hello", "echo Version:", "exit 1", "true"],
)
def test_a_criu_that_will_not_do(tmp_path: Path, script: str) -> None:
    with pytest.raises(Unavailable, match="criu is ") as refused:
        criu_version(criu(tmp_path, script))
    assert "CRIU 4.2 or newer" in refused.value.hint


def test_a_criu_that_says_so_and_fails(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        criu_version(criu(tmp_path, "echo Version: 4.2; exit 1"))


def test_no_criu(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=f"cannot run {tmp_path}/none"):
        criu_version(Config({"criu": f"{tmp_path}/none"}))


def test_criu_from_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    criu(tmp_path, "echo Version: 4.9")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert criu_version(Config()) == "4.9"


def test_this_machine() -> None:
    host = this_host("4.2")
    assert (host.architecture, host.kernel) == (platform.machine(), platform.release())
    assert host.criu == "4.2"
    assert host.cpu_features == cpu_features() == sorted(set(cpu_features()))
    assert host.cpu_features
    assert host.kernel_features == kernel_features()
    assert host.cgroup == (2 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1)
    assert host.gpus == [] or nvml.present()


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """A machine with NVIDIA's driver, and an NVML."""
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(nvml, "NODE", str(tmp_path / "nvidiactl"))
    fake = FakeNvml(tmp_path)
    fake.use(monkeypatch)
    return fake


def test_its_gpus(driver: FakeNvml) -> None:
    driver.has(machine(H100, A100, H100))
    assert this_host().gpus == [
        Gpu(A100.model, 40 * GIB, "580.159.04", 1),
        Gpu(H100.model, 80 * GIB, "580.159.04", 2),
    ]
    assert this_host(gpus=False).gpus == []


def test_a_driver_that_fails_is_no_matter_for_others(
    driver: FakeNvml, logged: Callable[[], str]
) -> None:
    driver.fail("nvmlInitWithFlags", 18)
    assert this_host().gpus == []
    assert "the GPUs are unknown" in logged()


def test_nvml_is_not_asked_without_a_driver(
    driver: FakeNvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    driver.has([H100])
    monkeypatch.setattr(nvml, "NODE", str(tmp_path / "none"))
    assert this_host().gpus == []


def test_what_lies_on_a_tmpfs(tmp_path: Path) -> None:
    kinds = {
        line.split(" ")[4]: line.partition(" - ")[2].split(" ")[0]
        for line in read_mount_table(os.getpid()).splitlines()
    }
    if kinds.get("/dev/shm") != "tmpfs":
        pytest.skip("this machine has no /dev/shm")
    assert on_tmpfs("/dev/shm")
    assert not on_tmpfs("/proc")
    assert not on_tmpfs(str(tmp_path / "missing"))
