"""`thaw index`: any folder of CRIU's images, or a snapshot, and what became of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes.images import BASE, Images, noise, single, vma
from fakes.snapshots import write

from shim.cli import main
from shim.snapshot.images import PAGE
from shim.snapshot.index import FOLDER, Index

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
