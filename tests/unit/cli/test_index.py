"""`thaw index`: any folder of CRIU's images but a snapshot's, and what became of it."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes.images import BASE, Images, noise, single, vma

from shim.cli import main
from shim.cli.exits import TAKEN, USAGE
from shim.snapshot import indexing
from shim.snapshot.images import PAGE
from shim.snapshot.index import FOLDER, Index
from shim.snapshot.layout import Layout
from shim.snapshot.pieces import Pieces
from shim.snapshot.store import held

MIB = 1 << 20


def said(
    capsys: pytest.CaptureFixture[str], folder: Path, *options: str, code: int = 0
) -> tuple[str, str]:
    config = folder.parent / "config.toml"
    config.write_text("")
    assert main(["index", str(folder), *options, "--config", str(config)]) == code
    words = capsys.readouterr()
    return words.out, words.err


def test_criu_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = single(tmp_path / "images", {BASE: noise(MIB) + bytes(2 * MIB), 1 << 40: noise(PAGE)})
    out, err = said(capsys, folder)
    assert out == (f"{folder}/index: 1.0 MiB in 1 extent, 2.0 MiB zero, 4.0 KiB left to CRIU\n")
    assert err == ""
    assert Index.open(folder / FOLDER, folder).bytes == MIB
    assert said(capsys, folder, "--threads", "3") == (out, err), "it is made anew"


@pytest.mark.parametrize("inner", ["", "criu"])
def test_a_snapshot(tmp_path: Path, capsys: pytest.CaptureFixture[str], inner: str) -> None:
    folder = single(tmp_path / "one/criu", {BASE: noise(MIB), 1 << 40: noise(PAGE)}).parent
    (folder / "pages").mkdir()
    (folder / "config.json").touch()
    out, err = said(capsys, folder / inner, code=USAGE)
    assert out == ""
    assert "is a snapshot of the store: a snapshot is immutable (" in err
    assert not list(tmp_path.rglob("index"))


def test_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = single(tmp_path / "images", {BASE: noise(MIB), 1 << 40: noise(PAGE)})
    assert json.loads(said(capsys, folder, "-o", "json")[0]) == {
        "folder": f"{folder}/index",
        "reason": "",
        "extents": 1,
        "sizes": {"extents": MIB, "zero": 0, "skeleton": PAGE},
    }


def test_what_cannot_be_indexed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = Images(tmp_path / "images")
    images.version = 1
    images.process(1, [vma(BASE, PAGE)], {BASE: noise(PAGE)})
    folder = images.write()
    assert said(capsys, folder) == (
        f"{folder}/index: not indexed, CRIU restores it alone: images of version 1, not 2\n",
        "",
    )


def test_no_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    out, err = said(capsys, tmp_path / "empty", code=USAGE)
    assert out == ""
    assert err.startswith(f"thaw index: {tmp_path}/empty has no CRIU images in it (")
    assert os.listdir(tmp_path / "empty") == []


@pytest.mark.parametrize("name", ["thaw.tar", "thaw"])
def test_a_checkpoint_of_containerd(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """A restore looks for the index in its pack."""
    folder = single(tmp_path / "images", {BASE: noise(MIB), 1 << 40: noise(PAGE)})
    (folder / name).touch()
    err = said(capsys, folder, code=USAGE)[1]
    assert err.startswith(f"thaw index: {folder} is a checkpoint that containerd asked for: ")
    assert err.endswith("make the checkpoint again)\n")
    assert not (folder / FOLDER).exists()


@pytest.mark.parametrize("threads", ["-1", "1025", "x", "1.5", ""])
def test_threads(tmp_path: Path, capsys: pytest.CaptureFixture[str], threads: str) -> None:
    with pytest.raises(SystemExit):
        said(capsys, tmp_path / "images", f"--threads={threads}")
    assert f"{threads} is no number from 0 to 1024" in capsys.readouterr().err


def test_while_it_is_restored_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = single(tmp_path / "images", {BASE: noise(MIB), 1 << 40: noise(PAGE)})
    with held(folder):
        assert said(capsys, folder, code=TAKEN) == (
            "",
            f"thaw index: {folder} is being restored from (try again when that is over)\n",
        )
    assert not (folder / FOLDER).exists()
    said(capsys, folder)


def test_a_restore_that_begins_meanwhile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index that it uses stays; one may begin while the files are read."""
    folder = single(tmp_path / "images", {BASE: noise(MIB), 1 << 40: noise(PAGE)})
    said(capsys, folder)
    before = os.stat(folder / FOLDER).st_ino
    scan = indexing.scan
    with ExitStack() as restore:

        def meanwhile(layout: Layout, pages: Pieces, threads: int) -> bytes:
            restore.enter_context(held(folder))
            return scan(layout, pages, threads)

        monkeypatch.setattr(indexing, "scan", meanwhile)
        assert "is being restored from" in said(capsys, folder, code=TAKEN)[1]
    assert os.stat(folder / FOLDER).st_ino == before
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
