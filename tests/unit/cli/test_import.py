"""`thaw import`: what was exported comes back byte for byte; anything else leaves no trace."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.artifacts import disk, files, left, made
from fakes.command import Thaw

from shim.cli import exits

Members = dict[str, bytes]


@pytest.fixture
def exported(thaw: Thaw, tmp_path: Path) -> Path:
    """A snapshot as a tar; the store is empty again."""
    snapshot = made(thaw.store, "worker")
    out = tmp_path / "w.tar"
    assert thaw("export", "worker", str(out)).status == 0
    thaw.store.remove(snapshot.id)
    return out


def read(path: Path) -> Members:
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if m.isreg()}  # type: ignore[union-attr]


def write(path: Path, members: Members, kind: bytes = tarfile.REGTYPE) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(data) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(data))


def manifest_of(members: Members) -> str:
    return str(json.loads(members["index.json"])["manifests"][0]["digest"])[7:]


def nothing_is_left(thaw: Thaw) -> None:
    assert (left(thaw.store), thaw.store.ids(), thaw.store.names()) == ([], [], {})
    assert not os.path.exists(thaw.store.stripes[0]) or not any(
        path.is_file() for path in thaw.store.stripes[0].rglob("*")
    )


def test_what_was_exported(thaw: Thaw, tmp_path: Path) -> None:
    before = made(thaw.store, "worker")
    assert thaw("export", "worker", str(tmp_path / "w.tar")).status == 0
    said = thaw("import", str(tmp_path / "w.tar"), "copy", "-o", "json")
    assert said.status == 0
    after = thaw.store.snapshot(said.json["id"])
    assert said.json["digest"] == after.digest == before.digest
    assert after.config == before.config
    assert {n: after.piece(n).read_bytes() for n in after.config.pages} == {
        n: before.piece(n).read_bytes() for n in before.config.pages
    }
    for name in before.config.files:
        assert after.file(name).read_bytes() == before.file(name).read_bytes()
    assert thaw.audited[-1]["outcome"] == "imported"
    assert thaw("verify", "copy").status == 0
    assert thaw("export", "copy", str(tmp_path / "again.tar")).status == 0
    one, two = read(tmp_path / "w.tar"), read(tmp_path / "again.tar")
    assert {k: v for k, v in one.items() if k != "index.json"} == {
        k: v for k, v in two.items() if k != "index.json"
    }
    assert left(thaw.store) == []


@pytest.mark.parametrize("order", ["sorted", "reversed"])
def test_in_any_order(thaw: Thaw, exported: Path, order: str) -> None:
    members = read(exported)
    names = sorted(members, reverse=order == "reversed")
    write(exported, {f"./{name}": members[name] for name in names})
    assert thaw("import", str(exported), "copy").status == 0
    assert len(thaw.store.ids()) == 1


def test_a_folder(thaw: Thaw, exported: Path, tmp_path: Path) -> None:
    """In which other images may be, too."""
    folder = tmp_path / "layout"
    folder.mkdir()
    subprocess.run(["tar", "-xf", exported, "-C", folder], check=True)
    index = json.loads((folder / "index.json").read_text())
    other = {
        **index["manifests"][0],
        "artifactType": "application/x",
        "digest": "sha256:" + "0" * 64,
    }
    index["manifests"].append(other)
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "blobs/sha256" / ("0" * 64)).write_bytes(b"another image's")
    assert thaw("import", str(folder), "copy").status == 0
    (snapshot,) = [thaw.store.snapshot(id) for id in thaw.store.ids()]
    assert "0" * 64 not in files(snapshot.path / "blobs/sha256")


@pytest.mark.parametrize("what", ["oci-layout", "index.json", "blob"])
def test_a_folder_with_links(thaw: Thaw, exported: Path, tmp_path: Path, what: str) -> None:
    folder = tmp_path / "layout"
    folder.mkdir()
    subprocess.run(["tar", "-xf", exported, "-C", folder], check=True)
    path = next((folder / "blobs/sha256").iterdir()) if what == "blob" else folder / what
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    assert thaw("import", str(folder), "copy").status == exits.UNFIT
    nothing_is_left(thaw)


def test_from_a_pipe(thaw: Thaw, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = os.dup(0)
    with subprocess.Popen(["cat", exported, "/dev/null"], stdout=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        os.dup2(cat.stdout.fileno(), 0)
        try:
            said = thaw("import", "-", "copy")
        finally:
            os.dup2(saved, 0)
            os.close(saved)
    assert (said.status, cat.returncode) == (0, 0)


def changed(name: str | None, change: Callable[[bytes], bytes]) -> Callable[[Members], Members]:
    def apply(members: Members) -> Members:
        chosen = manifest_of(members) if name is None else name
        return {k: change(v) if k.endswith(chosen) else v for k, v in members.items()}

    return apply


def index(**values: Any) -> Callable[[Members], Members]:
    def apply(members: Members) -> Members:
        document = json.loads(members["index.json"])
        document["manifests"][0].update(values)
        return {**members, "index.json": json.dumps(document).encode()}

    return apply


def without_largest(members: Members) -> Members:
    largest = max(members, key=lambda name: len(members[name]))
    return {name: data for name, data in members.items() if name != largest}


def largest_flipped(members: Members) -> Members:
    largest = max(members, key=lambda name: len(members[name]))
    data = members[largest]
    return {**members, largest: data[:-1] + bytes([data[-1] ^ 1])}


def one_more(members: Members) -> Members:
    return {**members, "blobs/sha256/" + hashlib.sha256(b"more").hexdigest(): b"more"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_largest, "is missing"),
        (largest_flipped, "is not what it was"),
        (one_more, "is not wanted"),
        (lambda m: dict(reversed(one_more(m).items())), "does not belong there"),
        (lambda m: {**m, "../outside": b""}, "bad name"),
        (lambda m: {**m, "blobs/sha256/xyz": b""}, "no part of an image layout"),
        (lambda m: {**m, "blobs/sha256/../../x": b""}, "bad name"),
        (lambda m: {k: v for k, v in m.items() if k != "index.json"}, "no index.json"),
        (changed("index.json", lambda _: b"[" * 100_000), "nested too deeply"),
        (changed("index.json", lambda _: b"{}"), "lists no manifests"),
        (changed("index.json", lambda _: b'{"manifests": []}'), "lists 0 manifests"),
        (changed("index.json", lambda _: bytes(2 << 20)), "index.json has"),
        (changed("oci-layout", lambda _: b'{"imageLayoutVersion": "2.0"}'), "another version"),
        (changed("oci-layout", lambda _: b"[]"), "another version"),
        (changed(None, lambda data: data + b" "), "is not wanted|is not what it was"),
        (index(digest="sha256:" + "0" * 64), "is missing"),
        (index(digest="sha256:../../x"), "bad digest"),
        (index(digest=7), "bad digest"),
        (index(size=7), "the manifest has"),
        (index(size="7"), "bad digest or size"),
        (index(mediaType="application/x"), "lists 0 manifests"),
        (lambda _: {"etc/passwd": b""}, "neither an exported snapshot nor a checkpoint"),
        (lambda _: {}, "there is nothing in it"),
    ],
)
def test_what_somebody_has_changed(
    thaw: Thaw, exported: Path, change: Callable[[Members], Members], words: str
) -> None:
    write(exported, change(read(exported)))
    said = thaw("import", str(exported), "copy")
    assert (said.status, said.out) == (exits.UNFIT, "")
    (line,) = said.err.splitlines()
    assert any(word in line for word in words.split("|"))
    nothing_is_left(thaw)


def test_two_indexes(thaw: Thaw, exported: Path) -> None:
    members = read(exported)
    other = index(digest="sha256:" + "0" * 64)(members)["index.json"]
    write(exported, {**members, "./index.json": other})
    assert thaw("import", str(exported), "copy").status == exits.UNFIT
    nothing_is_left(thaw)


def test_links_in_a_tar(thaw: Thaw, exported: Path) -> None:
    write(exported, {"oci-layout": b""}, tarfile.SYMTYPE)
    assert thaw("import", str(exported), "copy").status == exits.UNFIT
    nothing_is_left(thaw)


def test_cut_off(thaw: Thaw, exported: Path) -> None:
    whole = exported.read_bytes()
    for length in (0, 100, 700, 2000, len(whole) // 3, len(whole) // 2, len(whole) - 1100):
        exported.write_bytes(whole[:length])
        assert thaw("import", str(exported), "copy").status == exits.UNFIT, length
        nothing_is_left(thaw)


def test_compressed(thaw: Thaw, exported: Path) -> None:
    subprocess.run(["gzip", exported], check=True)
    said = thaw("import", f"{exported}.gz", "copy")
    assert said.status == exits.UNFIT
    assert "zcat" in said.err


def test_a_name_that_is_taken(thaw: Thaw, exported: Path) -> None:
    made(thaw.store, "copy", seed=2)
    assert thaw("import", str(exported), "copy").status == exits.TAKEN
    assert thaw("import", str(exported), "../x").status == exits.USAGE
    assert len(thaw.store.ids()) == 1
    assert thaw("import", str(exported), "copy", "--replace").status == 0
    assert left(thaw.store) == []


def test_no_such_file(thaw: Thaw, tmp_path: Path) -> None:
    assert thaw("import", str(tmp_path / "none"), "copy").status != 0
    nothing_is_left(thaw)


@pytest.fixture
def small(thaw: Thaw, exported: Path) -> Iterator[None]:
    thaw.store.folder.rename(thaw.store.folder.with_name("moved"))
    with disk(thaw.store.folder, "size=300k"):
        yield


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk has to be mounted")
def test_a_full_disk(thaw: Thaw, exported: Path, small: None) -> None:
    said = thaw("import", str(exported), "copy")
    assert said.status == exits.FULL, said.err
    assert os.strerror(errno.ENOSPC) not in said.out
    nothing_is_left(thaw)
