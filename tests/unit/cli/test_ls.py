"""`thaw ls`: a line for each snapshot, also for one that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.snapshots import config, write

from shim.cli import main


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "snapshots"
    (tmp_path / "config.toml").write_text(f'snapshots = "{folder}"\n')
    return folder


def shown(store: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    assert main(["ls", *options, "--config", str(store.parent / "config.toml")]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out.splitlines()


def test_no_store_yet(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(store, capsys) == ["NAME  CONTAINER  MADE  SIZE  IMAGE"]
    assert shown(store, capsys, "-q") == []


def test_a_table(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(store / "b", config(created="2025-01-02T03:04:05Z"))
    write(store / "a-long-name", config(container="", image="registry/other:2"))
    head, first, second = shown(store, capsys)
    assert head.split() == ["NAME", "CONTAINER", "MADE", "SIZE", "IMAGE"]
    assert first.split()[:2] == ["a-long-name", "-"]
    assert first.split()[-1] == "registry/other:2"
    assert second.split()[:3] == ["b", "worker", "2025-01-02T03:04:05Z"]
    assert " MiB " in second
    assert second.index("worker") == head.index("CONTAINER"), "columns stand below their heads"
    assert shown(store, capsys, "-q") == ["a-long-name", "b"]


def test_one_that_cannot_be_read_hides_no_other(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(store / "good")
    write(store / "bad")
    (store / "bad" / "config.json").write_text("{")
    (store / "file").touch()
    (store / ".draft-0").mkdir()
    lines = shown(store, capsys)
    assert [line.split()[0] for line in lines[1:]] == ["bad", "file", "good"]
    assert lines[1].split()[1:4] == ["-", "-", "-"]
    assert "config.json" in lines[1]
    assert "is not a folder" in lines[2]


def test_words_from_a_document_stay_on_their_line(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image's name comes from whoever made the pod: it must not steer the terminal."""
    write(store / "odd", config(image="a\nb\x1b[2J\ud800"))
    lines = shown(store, capsys)
    assert len(lines) == 2
    assert lines[1].isprintable()
