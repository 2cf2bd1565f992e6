"""The restore benchmark runs, small, and says what it should; nothing is asserted about time."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from bed.fetch import criu
from bench import report, restore

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

FIGURES = ("fill_gib_s", "memcpy_gib_s", "fio_gib_s", "stock_s", "thaw_s")
ROW: dict[str, Any] = {
    "size_gib": 8.0,
    "processes": 1,
    "threads": 16,
    "pages": "small",
    "fill_gib_s": 20.0,
    "memcpy_gib_s": 25.0,
    "cold_gib_s": None,
    "fio_gib_s": None,
    "stock_s": 6.0,
    "thaw_s": 0.5,
    "stock_cold_s": None,
    "thaw_cold_s": None,
}


def a_document() -> dict[str, Any]:
    rows = [
        {**ROW, "threads": threads, "size_gib": size} for threads in (4, 16) for size in (8.0, 24.0)
    ]
    return report.document(rows, "4.2")


@pytest.mark.skipif(os.geteuid() != 0, reason="CRIU needs root")
@pytest.mark.parametrize(
    ("more", "processes", "threads"),
    [([], (1, 2), (1, 2)), (["--huge", "--warm"], (2,), (1,))],
    ids=["small", "huge"],
)
def test_it_measures_and_leaves_nothing(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    more: list[str],
    processes: tuple[int, ...],
    threads: tuple[int, ...],
) -> None:
    arguments = ["--size", "64M", "-o", "json"]
    for flag, numbers in (("--processes", processes), ("--threads", threads)):
        arguments += [flag, ",".join(map(str, numbers))]
    arguments += ["--folder", str(tmp_path / "disk"), "--criu", str(criu())]
    assert restore.main([*arguments, *more]) == 0
    found = json.loads(capfd.readouterr().out)
    with capfd.disabled():
        print(f"\n{report.table(found)}")
    measured = [(case["processes"], case["threads"]) for case in found["cases"]]
    assert measured == [(count, each) for count in processes for each in threads]
    for case in found["cases"]:
        assert set(case) == set(ROW)
        there = [key for key in FIGURES if key != "fio_gib_s" or ("--warm" not in more and fio())]
        assert all(case[key] > 0 for key in there)
    assert os.listdir(tmp_path / "disk") == []


def fio() -> bool:
    return shutil.which("fio") is not None


def test_the_table_has_shares_and_ratios() -> None:
    last = report.table(a_document()).splitlines()[-1].split()
    assert last == ["24", "1", "16", "20.00", "25.00", "80", *"---", "6.00", "0.50", "12.0", *"---"]


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_it_draws_what_was_saved(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    pytest.importorskip("matplotlib")
    saved, picture = tmp_path / "figures.json", tmp_path / f"figures.{kind}"
    saved.write_text(json.dumps(a_document()))
    assert restore.main(["--from", str(saved), "--plot", str(picture)]) == 0
    assert picture.stat().st_size > 10_000
    if kind == "svg":
        assert "stock CRIU, warm" in picture.read_text()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--criu", "/nowhere/criu"], "no CRIU at /nowhere/criu"),
        (["--criu", "/bin/true"], "4.2 or later"),
        (["--from", "/nowhere.json"], "cannot read /nowhere.json"),
    ],
)
def test_what_is_missing_is_said(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert restore.main(arguments) == 1
    assert complaint in capfd.readouterr().err


@pytest.mark.parametrize(("flag", "word"), [("--size", "8"), ("--size", "8X"), ("--threads", "a")])
def test_bad_arguments_are_refused(capfd: pytest.CaptureFixture[str], flag: str, word: str) -> None:
    with pytest.raises(SystemExit):
        restore.main([flag, word])
    assert "like" in capfd.readouterr().err
