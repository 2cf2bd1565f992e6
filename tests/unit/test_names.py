"""Where names lead: files in a store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shim import names
from shim.reference import parse

ID = "0123456789abcdef"
OTHER = "fedcba9876543210"
HEX = "0a" * 32


def store(folder: Path, *ids: str) -> Path:
    for part in (names.NAMES, names.DIGESTS, names.SNAPSHOTS):
        (folder / part).mkdir(parents=True)
    for id in ids:
        (folder / names.SNAPSHOTS / id).mkdir()
    return folder


def test_a_name_leads_to_a_snapshot(tmp_path: Path) -> None:
    first, second = store(tmp_path / "a", ID), store(tmp_path / "b", ID, OTHER)
    stores = [str(first), str(second)]
    assert names.find(stores, parse("warm")) is None
    (second / "names/warm").write_text(f"{OTHER}\n")
    assert names.find(stores, parse("warm")) == f"{second}/snapshots/{OTHER}"
    (first / "names/warm").write_text(f"{ID}\n")
    assert names.find(stores, parse("warm")) == f"{first}/snapshots/{ID}", "the first one counts"
    assert names.find(stores, parse("auto")) is None


def test_a_name_whose_snapshot_is_gone_is_looked_for_further(tmp_path: Path) -> None:
    first, second = store(tmp_path / "a"), store(tmp_path / "b", ID)
    for folder in (first, second):
        (folder / "names/warm").write_text(f"{ID}\n")
    assert names.find([str(first), str(second)], parse("warm")) == f"{second}/snapshots/{ID}"


def test_a_digest_counts_whatever_the_name_says(tmp_path: Path) -> None:
    folder = store(tmp_path / "a", ID, OTHER)
    (folder / "names/warm").write_text(f"{OTHER}\n")
    pinned = parse(f"warm@sha256:{HEX}")
    assert names.find([str(folder)], pinned) is None
    (folder / "digests" / HEX).write_text(f"{ID}\n")
    assert names.find([str(folder)], pinned) == f"{folder}/snapshots/{ID}"


def test_artifacts_have_names_too(tmp_path: Path) -> None:
    folder = store(tmp_path / "a", ID)
    wanted = parse("127.0.0.1:5000/team/worker:V1")
    (folder / "names" / wanted.file_name).write_text(f"{ID}\n")
    assert names.find([str(folder)], wanted) == f"{folder}/snapshots/{ID}"
    assert names.unquoted(wanted.file_name) == wanted.text


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"../../etc", ID[:-1].encode(), ID.encode() + b"0", b"\xff" * 16]
)
def test_something_else_in_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "name"
    path.write_bytes(content)
    assert names.read_id(str(path)) is None


def test_something_else_in_its_place(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_text(f"{ID}\n")
    assert names.read_id(str(good)) == ID
    (tmp_path / "link").symlink_to(good)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "folder", "fifo", "nothing"):
        assert names.read_id(str(tmp_path / name)) is None


@pytest.mark.parametrize("text", ["a%", "a%2", "a%zz", "%", "a%2fb"])
def test_what_we_have_not_quoted(text: str) -> None:
    assert names.unquoted(text) == text.replace("%2f", "/")
