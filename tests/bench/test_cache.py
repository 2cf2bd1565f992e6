"""The benchmark of the node's cache, on a driver without a GPU; no time is asserted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from bench import cache
from fakes.cuda import VARIABLE, FakeCuda
from fakes.nvml import H100

KINDS = ["taken in", "pinned", "put", "asked for"]
pytestmark = [pytest.mark.bench, pytest.mark.timeout(120)]


@pytest.mark.parametrize("regions", ["1", "3", "100"])
def test_it_measures_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    regions: str,
) -> None:
    cuda = FakeCuda(tmp_path / "cuda")
    monkeypatch.setenv(VARIABLE, str(cuda.folder))
    monkeypatch.setattr(cache, "SEGMENT", 16 << 20)
    (tmp_path / "files").mkdir()
    arguments = ["--size", "34M", "--regions", regions, "--folder", str(tmp_path / "files")]
    arguments += ["--library", cuda.library, "--uuid", H100.uuid]
    assert cache.main([*arguments, "-o", "json"]) == 0
    said = capfd.readouterr()
    found = json.loads(said.out)
    assert [case["kind"] for case in found] == KINDS
    assert all(case["gib_s"] > 0 for case in found)
    assert "not pinned" not in said.err
    assert os.listdir(tmp_path / "files") == []


def test_there_is_no_gpu(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--size", "4M", "--folder", str(tmp_path), "--uuid", H100.uuid]
    assert cache.main([*arguments, "--library", "/none/libcuda.so.1"]) == 1
    assert "no CUDA driver" in capfd.readouterr().err
    assert os.listdir(tmp_path) == []
