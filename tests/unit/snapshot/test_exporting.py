"""Files that appear whole; what is in them is in tests/unit/cli/test_export.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shim.errors import AlreadyExists
from shim.snapshot.exporting import new_file


@pytest.mark.parametrize("replace", [False, True])
def test_a_file_that_fails_is_not_there(tmp_path: Path, replace: bool) -> None:
    path = tmp_path / "out"
    if replace:
        path.write_text("before")

    def fail() -> None:
        with new_file(path, replace) as writer:
            os.write(writer, b"half")
            assert not path.exists() or path.read_text() == "before"
            raise OSError(28, "no space")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert os.listdir(tmp_path) == (["out"] if replace else [])
    with new_file(path, replace) as writer:
        os.write(writer, b"whole")
    assert path.read_text() == "whole"
    assert os.listdir(tmp_path) == ["out"]


def test_somebody_is_quicker(tmp_path: Path) -> None:
    path = tmp_path / "out"

    def late() -> None:
        with new_file(path):
            path.write_text("theirs")

    with pytest.raises(AlreadyExists, match="out exists"):
        late()
    assert path.read_text() == "theirs"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_is_no_file(tmp_path: Path, replace: bool) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(AlreadyExists), new_file(tmp_path / "out", replace):
        pass
    assert os.listdir(tmp_path) == ["out"]
