"""What is remembered of workers that were lost over a snapshot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shim.errors import BadName, FailedPrecondition
from shim.snapshot import lost


def test_an_equal_worker_is_refused(tmp_path: Path) -> None:
    lost.refuse(tmp_path, "warm", "a")
    lost.note(tmp_path, "warm", "a", "no room " * 1000)
    with pytest.raises(FailedPrecondition, match=r"no snapshot warm .* 20..-.*Z: no room") as said:
        lost.refuse(tmp_path, "warm", "a")
    assert "`thaw rm warm`" in said.value.hint
    assert len(said.value.message) < 700
    lost.refuse(tmp_path, "warm", "another")
    lost.refuse(tmp_path, "other", "a")
    lost.note(tmp_path, "warm", "another", "")
    lost.refuse(tmp_path, "warm", "a")


def test_it_is_forgotten(tmp_path: Path) -> None:
    assert not lost.forget(tmp_path, "warm")
    lost.note(tmp_path, "warm", "a", "")
    assert lost.forget(tmp_path, "warm")
    lost.refuse(tmp_path, "warm", "a")


def test_there_is_no_end_of_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost, "MOST", 3)
    for number in range(5):
        lost.note(tmp_path, f"n{number}", "a", "")
        os.utime(tmp_path / "lost" / f"n{number}", (number, number))
    assert sorted(os.listdir(tmp_path / "lost")) == ["n2", "n3", "n4"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"worker": 1}', '"a"', "\0"])
def test_what_is_none_of_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost/warm").write_text(text)
    lost.refuse(tmp_path, "warm", "a")


def test_nothing_outside(tmp_path: Path) -> None:
    for act in (lost.note, lost.refuse):
        args = ("a", "") if act is lost.note else ("a",)
        with pytest.raises(BadName):
            act(tmp_path, "../warm", *args)
    with pytest.raises(BadName):
        lost.forget(tmp_path, "../warm")


def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    lost.note(tmp_path, "warm", "a", "")
    assert (tmp_path / "lost").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "lost/warm").stat().st_mode & 0o777 == 0o600
