"""`thaw export`: one file that other tools can read, or CRIU's own images; or nothing."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from fakes.artifacts import files, made
from fakes.command import Thaw
from fakes.gpu_snapshots import saved

from shim.cli import exits


def test_the_tar_of_an_image_layout(thaw: Thaw, tmp_path: Path) -> None:
    snapshot = made(thaw.store, "worker")
    out = tmp_path / "out" / "w.tar"
    out.parent.mkdir()
    said = thaw("export", "worker", str(out), "-o", "json")
    assert (said.status, said.json["digest"]) == (0, snapshot.digest)
    assert said.json["bytes"] == out.stat().st_size
    assert os.listdir(out.parent) == ["w.tar"]
    assert out.stat().st_mode & 0o777 == 0o600, "a worker's memory is in there"
    with tarfile.open(out) as tar:
        found = {m.name: tar.extractfile(m).read() for m in tar if m.isreg()}  # type: ignore[union-attr]
    index = json.loads(found.pop("index.json"))["manifests"]
    assert [item["digest"] for item in index] == [snapshot.digest]
    assert index[0]["annotations"] == {"org.opencontainers.image.ref.name": "worker"}
    assert json.loads(found.pop("oci-layout")) == {"imageLayoutVersion": "1.0.0"}
    blobs = {
        f"blobs/sha256/{name}": data for name, data in files(snapshot.path / "blobs/sha256").items()
    }
    assert {name: found[name] for name in blobs} == blobs
    assert len(found) >= 6


@pytest.mark.parametrize("into", ["file", "file opened to append"])
def test_to_stdout(thaw: Thaw, tmp_path: Path, into: str) -> None:
    made(thaw.store, "worker")
    assert thaw("export", "worker", str(tmp_path / "w.tar")).status == 0
    flags = os.O_APPEND if into != "file" else 0
    saved, out = os.dup(1), os.open(tmp_path / "out", os.O_CREAT | os.O_WRONLY | flags, 0o600)
    os.dup2(out, 1)
    try:
        assert thaw("export", "worker", "-").out == ""
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(out)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "w.tar").read_bytes()


def test_what_is_there_stays(thaw: Thaw, tmp_path: Path) -> None:
    made(thaw.store, "worker")
    (tmp_path / "w.tar").write_text("theirs")
    said = thaw("export", "worker", str(tmp_path / "w.tar"))
    assert (said.status, said.out) == (exits.TAKEN, "")
    assert "w.tar exists (--replace" in said.err
    assert (tmp_path / "w.tar").read_text() == "theirs"
    assert thaw("export", "worker", str(tmp_path / "w.tar"), "--replace").status == 0
    assert (tmp_path / "w.tar").stat().st_size > 1000


def test_a_blob_that_is_shorter_leaves_no_debris(thaw: Thaw, tmp_path: Path) -> None:
    snapshot = made(thaw.store, "worker")
    assert thaw("export", "worker", str(tmp_path / "w.tar")).status == 0
    os.truncate(snapshot.piece("pages-1.img.0001"), 100)
    (tmp_path / "out").mkdir()
    said = thaw("export", "worker", str(tmp_path / "out" / "w.tar"))
    assert (said.status, said.out) == (exits.UNFIT, "")
    assert os.listdir(tmp_path / "out") == []


def test_plain_images(thaw: Thaw, tmp_path: Path) -> None:
    snapshot = made(thaw.store, "worker")
    said = thaw("export", "worker", "--criu", str(tmp_path / "images"))
    assert (said.status, said.lines) == (0, [str(tmp_path / "images")])
    pieces = [snapshot.piece(name).read_bytes() for name in sorted(snapshot.config.pages)]
    assert files(tmp_path / "images") == {"core-1.img": b"xxxx", "pages-1.img": b"".join(pieces)}
    assert not any(path.is_symlink() for path in (tmp_path / "images").iterdir())
    assert thaw("export", "worker", "--criu", str(tmp_path / "images")).status == exits.TAKEN
    assert thaw("export", "worker", "--criu", str(tmp_path / "images"), "--replace").status == 0
    snapshot.piece("pages-1.img.0001").unlink()
    assert thaw("export", "worker", "--criu", str(tmp_path / "more")).status == exits.UNFIT
    assert not [path for path in tmp_path.iterdir() if "more" in path.name]


def test_gpu_memory_is_not_criu_s(thaw: Thaw, tmp_path: Path) -> None:
    """Whoever restores them without Thaw would get a worker that has lost it."""
    saved(thaw.store, "worker", [bytes(4 << 20)])
    made(thaw.store, "other")
    said = thaw("export", "worker", "--criu", str(tmp_path / "images"))
    assert said.status == 0
    assert "4.0 MiB of GPU memory" in said.err
    assert not [file for file in files(tmp_path / "images") if file.startswith("gpu-")]
    assert "GPU" not in thaw("export", "other", "--criu", str(tmp_path / "others")).err


@pytest.mark.parametrize("words", [[], ["x.tar", "--criu", "y"]])
def test_where_to(thaw: Thaw, words: list[str]) -> None:
    assert thaw("export", "worker", *words).status != 0


def test_there_is_none(thaw: Thaw, tmp_path: Path) -> None:
    assert thaw("export", "worker", str(tmp_path / "w.tar")).status == exits.MISSING
    assert not (tmp_path / "w.tar").exists()


def test_not_for_a_terminal(thaw: Thaw, monkeypatch: pytest.MonkeyPatch) -> None:
    made(thaw.store, "worker")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdout", Terminal())
    assert thaw("export", "worker", "-").status != 0
