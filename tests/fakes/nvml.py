"""An NVML without GPUs: a real library under the real pynvml, whose world a test writes."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pynvml
import pytest

from shim.gpu.nvml import Gpu

SOURCE = Path(__file__).with_name("libnvml.c")
NAME = "libnvidia-ml.so.1"
GIB = 1 << 30

H100 = Gpu(
    index=0,
    minor=0,
    uuid="GPU-00000000-1111-2222-3333-444444444400",
    model="NVIDIA H100 80GB HBM3",
    memory=80 * GIB,
    free=79 * GIB,
    driver="580.159.04",
)
A100 = replace(H100, model="NVIDIA A100-SXM4-40GB", memory=40 * GIB, free=39 * GIB)


def machine(*models: Gpu) -> list[Gpu]:
    """GPUs like these, with an index, a minor and a UUID of their own each."""
    return [numbered(gpu, index) for index, gpu in enumerate(models)]


def numbered(gpu: Gpu, index: int) -> Gpu:
    return replace(gpu, index=index, minor=index, uuid=f"{H100.uuid[:-2]}{index:02x}")


def build(folder: Path, *options: str) -> Path:
    """Make the library in `folder`."""
    library = folder / NAME
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-Wall", "-Werror", *options, "-o", library, SOURCE], check=True
    )
    return library


class FakeNvml:
    """The library, and what it tells: a file in `folder`."""

    def __init__(self, folder: Path, library: Path | None = None) -> None:
        self.library = library or build(folder)
        self.world = folder / "nvml"
        self._gpus: list[str] = []
        self._failures: list[str] = []
        self._write()

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put it where pynvml keeps the library that it has loaded, until the test is over."""
        monkeypatch.setenv("THAW_FAKE_NVML", str(self.world))
        monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(self.library)))
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})

    def has(self, gpus: Iterable[Gpu], virtual: int = 0) -> None:
        """From now on it has these; `virtual` is NVML's word for how they are virtual."""
        self._gpus = [
            f"gpu {gpu.minor} {gpu.memory} {gpu.free} {int(gpu.mig)} {virtual} {gpu.uuid} "
            f"{','.join(map(str, gpu.processes)) or '-'} {gpu.model}"
            for gpu in gpus
        ]
        self._write()

    def fail(self, call: str, code: int, index: int = -1) -> None:
        """From now on a call fails, for the GPU with that index or, with -1, in general."""
        self._failures.append(f"fail {call} {index} {code}")
        self._write()

    def _write(self) -> None:
        lines = [f"driver {H100.driver}", *self._gpus, *self._failures]
        new = self.world.with_name("nvml.new")  # a thread may just be asking
        new.write_text("".join(f"{line}\n" for line in lines))
        os.replace(new, self.world)
