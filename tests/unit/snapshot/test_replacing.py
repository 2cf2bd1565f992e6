"""A folder is replaced whole or not at all, and nothing is left of those who did not finish."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shim.snapshot.replacing import replacing


def put(folder: Path, word: str) -> None:
    with replacing(folder) as draft:
        assert list(draft.iterdir()) == []
        (draft / "word").write_text(word)


def test_made_and_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    put(folder, "one")
    (folder / "more").touch()
    put(folder, "two")
    assert [path.name for path in folder.iterdir()] == ["word"]
    assert (folder / "word").read_text() == "two"
    assert os.listdir(tmp_path) == ["index"]


def test_the_old_one_is_there_meanwhile(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    put(folder, "one")
    with replacing(folder):
        assert (folder / "word").read_text() == "one"


@pytest.mark.parametrize("there", [True, False])
def test_an_error_changes_nothing(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "index"
    if there:
        put(folder, "one")
    with pytest.raises(KeyboardInterrupt), replacing(folder):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == (["index"] if there else [])


def test_a_rename_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "index"
    put(folder, "one")
    rename = os.rename

    def sometimes(source: Path, target: Path) -> None:
        if target == folder and (source / "word").read_text() == "two":
            raise OSError(28, "on purpose")
        rename(source, target)

    monkeypatch.setattr(os, "rename", sometimes)
    with pytest.raises(OSError, match="on purpose"):
        put(folder, "two")
    assert (folder / "word").read_text() == "one"
    assert os.listdir(tmp_path) == ["index"]


def test_a_way_back_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "index"
    put(folder, "one")
    rename = os.rename

    def away_only(source: Path, target: Path) -> None:
        if target == folder:
            raise OSError(28 if (source / "word").read_text() == "two" else 5, "on purpose")
        rename(source, target)

    monkeypatch.setattr(os, "rename", away_only)
    with pytest.raises(OSError, match="on purpose") as caught:
        put(folder, "two")
    assert caught.value.errno == 28, "the first one"
    assert f"what was {folder} is {tmp_path}/.index-" in caught.value.__notes__[0]


def test_alone(tmp_path: Path) -> None:
    """Whoever has to be away is so while it is replaced, and may refuse."""
    folder = tmp_path / "index"
    seen = []

    @contextmanager
    def alone() -> Iterator[None]:
        seen.append((folder / "word").read_text())
        yield
        seen.append((folder / "word").read_text())
        raise FileExistsError

    put(folder, "one")
    with pytest.raises(FileExistsError), replacing(folder, alone()) as draft:
        (draft / "word").write_text("two")
    assert seen == ["one", "two"]


KILLED = """
import os, signal, sys
from pathlib import Path
from shim.snapshot.replacing import replacing
with replacing(Path(sys.argv[1])) as draft:
    (draft / "half").touch()
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_drafts_of_the_dead_are_removed_and_no_others(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    other = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[3],
    )
    with other:
        assert other.stdout is not None
        other.stdout.readline()
        put(folder, "one")
        drafts = [path for path in tmp_path.iterdir() if path.name.startswith(".index-")]
        assert [path.name for path in drafts[0].iterdir()] == ["half"]
        other.kill()
    put(folder, "two")
    assert os.listdir(tmp_path) == ["index"]


def test_what_only_looks_like_a_draft_stays(tmp_path: Path) -> None:
    """The folder may lie beside somebody's own."""
    theirs = [tmp_path / name for name in (".index-of-mine", ".index-0123456789ab.txt", ".index-")]
    for path in theirs:
        path.mkdir()
    with replacing(tmp_path / "index"):
        pass
    assert all(path.is_dir() for path in theirs)
