"""`thaw show`: the document, as it lies there."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.snapshots import write

from shim.cli import main


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "snapshots"
    (tmp_path / "config.toml").write_text(f'snapshots = "{folder}"\n')
    return folder


def show(store: Path, name: str) -> int:
    return main(["show", name, "--config", str(store.parent / "config.toml")])


def test_the_document(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(store / "one")
    assert show(store, "one") == 0
    assert capsys.readouterr().out == (store / "one" / "config.json").read_text()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("two", "thaw show: no snapshot named two"),
        ("../one", "is a reference, not a name"),
        ("bad", "config.json"),
    ],
)
def test_there_is_none(
    store: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    write(store / "bad")
    (store / "bad" / "config.json").unlink()
    assert show(store, name) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
