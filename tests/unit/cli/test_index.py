"""`thaw index`: any folder of CRIU's images, or a snapshot, and what became of it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes.images import BASE, Images, noise, single, vma
from fakes.snapshots import write

from shim.cli import main
from shim.snapshot import indexing
from shim.snapshot.images import PAGE
from shim.snapshot.index import FOLDER, Index
from shim.snapshot.layout import Layout
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
    assert out == (f"{folder}/index: 1.0 MiB in 1 extents, 2.0 MiB zero, 0.0 MiB left to CRIU\n")
    assert err == ""
    assert Index.open(folder / FOLDER, folder).bytes == MIB
    assert said(capsys, folder, "--threads", "3") == (out, err), "it is made anew"


def test_a_snapshot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "one")
    single(folder / "criu", {BASE: noise(MIB), 1 << 40: noise(PAGE)})
    assert said(capsys, folder)[0].startswith(f"{folder}/index: 1.0 MiB in ")
    assert Index.open(folder / FOLDER, folder / "criu").reason == ""


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
    out, err = said(capsys, tmp_path / "empty", code=1)
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
    err = said(capsys, folder, code=1)[1]
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
        assert said(capsys, folder, code=1) == (
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

        def meanwhile(layout: Layout, images: Path, threads: int) -> bytes:
            restore.enter_context(held(folder))
            return scan(layout, images, threads)

        monkeypatch.setattr(indexing, "scan", meanwhile)
        assert "is being restored from" in said(capsys, folder, code=1)[1]
    assert os.stat(folder / FOLDER).st_ino == before
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
