"""The benchmark of GPU memory, on a driver that has none; no time is asserted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from bench import device
from fakes.cuda import VARIABLE, FakeCuda
from fakes.nvml import H100

pytestmark = [pytest.mark.bench, pytest.mark.timeout(120)]

KINDS = ["in, page cache", "in, from buffers"], ["out, until read", "out, until written"]


def test_it_measures_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cuda = FakeCuda(tmp_path / "cuda")
    monkeypatch.setenv(VARIABLE, str(cuda.folder))
    (tmp_path / "files").mkdir()
    arguments = ["--size", "34M", "--threads", "1,2", "--folder", str(tmp_path / "files")]
    arguments += ["--library", cuda.library, "--uuid", H100.uuid]
    assert device.main([*arguments, "-o", "json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert [(case["kind"], case["threads"]) for case in found] == [
        ("scan, all zeros", 1),
        *((kind, threads) for threads in (1, 2) for kind in KINDS[0]),
        ("scan, no zeros", 1),
        *((kind, threads) for threads in (1, 2) for kind in KINDS[1]),
    ]
    assert all(case["gib_s"] > 0 for case in found)
    assert os.listdir(tmp_path / "files") == []
    assert device.main([*arguments, "--threads", "0"]) == 0
    print(told := capfd.readouterr().out)
    assert told.splitlines()[2].split()[:4] == ["in,", "page", "cache", "chosen"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--library", "/nowhere/libcuda.so", "--uuid", H100.uuid], "no CUDA driver"),
        (["--uuid", "GPU-7"], "no UUID of a GPU"),
        (["--size", "900000G", "--uuid", H100.uuid], "MiB free"),
    ],
)
def test_what_is_missing_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert device.main(["--size", "2M", "--folder", str(tmp_path), *arguments]) == 1
    assert complaint in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flag", "word"), [("--size", "8"), ("--threads", "a"), ("--make", "4M"), ("--make", "3x1M")]
)
def test_bad_arguments_are_refused(capfd: pytest.CaptureFixture[str], flag: str, word: str) -> None:
    with pytest.raises(SystemExit):
        device.main([flag, word])
    assert "look" in capfd.readouterr().err


def test_regions_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cuda = FakeCuda(tmp_path / "cuda")
    monkeypatch.setenv(VARIABLE, str(cuda.folder))
    arguments = ["--make", "5x4M", "--library", cuda.library, "--uuid", H100.uuid]
    cuda.trace()
    assert device.main([*arguments, "-o", "json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert [case["threads"] for case in found] == [1, 2, 4, 8]
    assert all(case["made"] > 0 and case["exported"] > 0 for case in found)
    for call in ("cuMemCreate", "cuMemExportToShareableHandle", "cuMemRelease"):
        assert cuda.count(call) == 5 * 4 * 3
    assert device.main(arguments) == 0
    assert capfd.readouterr().out.split()[:3] == ["threads", "made", "descriptors"]
