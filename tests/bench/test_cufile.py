"""The benchmark of cuFile, on libraries that have no GPU; no time is asserted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from bench import cufile
from fakes.cuda import VARIABLE, FakeCuda
from fakes.cufile import FakeCufile
from fakes.nvml import H100

pytestmark = [pytest.mark.bench, pytest.mark.timeout(120)]


@pytest.fixture
def cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    made = FakeCuda(tmp_path / "cuda")
    monkeypatch.setenv(VARIABLE, str(made.folder))
    monkeypatch.setenv("CUFILE_LOGFILE_PATH", os.devnull)
    monkeypatch.setattr("shim.gpu.memory.cufile.MODULES", str(tmp_path))
    return made


def run(cuda: FakeCuda, folder: Path, library: str) -> int:
    arguments = ["--size", "34M", "--threads", "1,2", "--folder", str(folder), "-o", "json"]
    arguments += ["--library", cuda.library, "--cufile", library, "--uuid", H100.uuid]
    return cufile.main(arguments)


@pytest.mark.parametrize("direct", [True, False])
def test_it_measures_what_there_is(
    cuda: FakeCuda, tmp_path: Path, capfd: pytest.CaptureFixture[str], direct: bool
) -> None:
    fake = FakeCufile(cuda)
    if direct:
        fake.is_so("nvidia-fs")
    (tmp_path / "files").mkdir()
    assert run(cuda, tmp_path / "files", fake.library) == 0
    said = capfd.readouterr()
    kinds = [(case["kind"], case["threads"]) for case in json.loads(said.out)]
    assert kinds == [
        ("ring, from disk", 0),
        ("ring, page cache", 0),
        *(("cuFile, compatible", threads) for threads in (1, 2)),
        *(("cuFile, GPUDirect", threads) for threads in (1, 2) if direct),
    ]
    assert ("GPUDirect: cuFileDriverOpen: DRIVER_NOT_INITIALIZED" in said.err) == (not direct)
    assert "with a flipped byte: noise at 16777216 has another checksum" in said.err
    assert os.listdir(tmp_path / "files") == []


def test_there_is_no_cufile(
    cuda: FakeCuda, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The ring's figures are there all the same."""
    assert run(cuda, tmp_path, "/nowhere/libcufile.so.0") == 0
    said = capfd.readouterr()
    assert [case["kind"][:4] for case in json.loads(said.out)] == ["ring", "ring"]
    assert said.err.count("/nowhere/libcufile.so.0: cannot open") == 5
