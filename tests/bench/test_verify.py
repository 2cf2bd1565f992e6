"""The benchmark of verifying runs, small, and says what it should; no time is asserted."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from bed.fetch import criu
from bench import verify

pytestmark = [pytest.mark.bench, pytest.mark.timeout(120)]

CASE = {"kind": "seal", "threads": 16, "gib_s": 1.9, "cores": 2.25, "fio_gib_s": 2.0}
MEASURED: dict[str, Any] = {
    "processors": 16,
    "sha256_gib_s": 1.5,
    "size_gib": 5.0,
    "blobs": 7,
    "cases": [CASE, {**CASE, "fio_gib_s": None}],
}


@pytest.mark.skipif(os.geteuid() != 0, reason="CRIU needs root")
def test_it_measures_and_leaves_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--size", "96M", "--threads", "1,2", "-o", "json"]
    arguments += ["--folder", str(tmp_path / "disk"), "--criu", str(criu())]
    assert verify.main(arguments) == 0
    found = json.loads(capfd.readouterr().out)
    assert [(case["kind"], case["threads"]) for case in found["cases"]] == [
        (kind, threads) for threads in (1, 2) for kind in ("verify", "seal", "verify sealed")
    ]
    for case in found["cases"]:
        assert set(case) == set(CASE)
        assert case["gib_s"] > 0
        assert case["cores"] > 0
        assert (case["fio_gib_s"] is not None) == (shutil.which("fio") is not None)
    assert found["size_gib"] > 0.09 * 1.25
    assert found["blobs"] == 4  # config, skeleton, pages, archive
    assert os.listdir(tmp_path / "disk") == []


def test_the_table_has_shares() -> None:
    head, size, _, names, seal, without = verify.table(MEASURED).splitlines()
    assert head == "16 processors, each with SHA-256 at 1.50 GiB/s"
    assert size == "5.00 GiB in 7 blobs"
    assert names.split()[:4] == ["threads", "GiB/s", "fio", "%"]
    assert seal.split() == ["seal", "16", "1.90", "2.00", "95", "2.2"]
    assert without.split() == ["seal", "16", "1.90", "-", "-", "2.2"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["--criu", "/nowhere/criu"], "no CRIU at"), (["--size", "900000G"], "MiB free, too few")],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="CRIU needs root")
def test_what_is_missing_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    words = ["--folder", str(tmp_path), "--criu", str(criu())]
    assert verify.main([*words, *arguments]) == 1
    assert complaint in capfd.readouterr().err


@pytest.mark.parametrize(("flag", "word"), [("--size", "8"), ("--size", "8X"), ("--threads", "a")])
def test_bad_arguments_are_refused(capfd: pytest.CaptureFixture[str], flag: str, word: str) -> None:
    with pytest.raises(SystemExit):
        verify.main([flag, word])
    assert "like" in capfd.readouterr().err
