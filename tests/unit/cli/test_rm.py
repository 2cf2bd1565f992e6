"""`thaw rm`: what is named goes, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes.snapshots import write

from shim.cli import main


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "snapshots"
    (tmp_path / "config.toml").write_text(f'snapshots = "{folder}"\n')
    for name in ("one", "two", "three"):
        write(folder / name)
    return folder


def rm(store: Path, *names: str) -> int:
    return main(["rm", *names, "--config", str(store.parent / "config.toml")])


def test_several(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rm(store, "one", "two") == 0
    assert os.listdir(store) == ["three"]
    assert capsys.readouterr() == ("", "")


def test_one_that_cannot_be_read_can_be_removed(store: Path) -> None:
    (store / "one" / "config.json").write_text("{")
    assert rm(store, "one") == 0
    assert not (store / "one").exists()


def test_the_first_that_is_not_there_ends_it(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rm(store, "one", "none", "two") == 1
    assert sorted(os.listdir(store)) == ["three", "two"]
    assert capsys.readouterr().err.startswith("thaw rm: no snapshot named none")


def test_nothing_outside_the_store(store: Path) -> None:
    (store.parent / "precious").mkdir()
    for name in ("../precious", str(store.parent / "precious"), "..", "."):
        assert rm(store, name) == 1
    assert (store.parent / "precious").is_dir()
