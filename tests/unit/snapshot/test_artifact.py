"""Sealing and laying out: the same snapshot again, or Unfit; and killed in the middle of it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.snapshots import CONFIG, file_of, make, tar_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shim.errors import Cancelled, Damaged, FailedPrecondition, NoSuchSnapshot, Unfit
from shim.snapshot.artifact import (
    Manifest,
    blobs_of,
    check_digest,
    lay_out,
    manifest_of,
    seal,
    size_to_seal,
)
from shim.snapshot.config import SnapshotConfig
from shim.snapshot.snapshot import Snapshot, check_whole, open_at
from shim.snapshot.store import Store, Stores

CHECKOUT = Path(__file__).resolve().parents[3]
CONTENTS = {
    "criu/core-1.img": b"core" * 400,
    "criu/inventory.img": b"",
    "criu/descriptors.json": b"[]",
    "index/extents": b"e" * 513,
    "index/index.json": b"{}",
    "rootfs.tar.0000": tar_of({"a": b"a" * 1000}),
    "rootfs.tar.0001": b"r" * 100,
    "volumes/0.tar.0000": tar_of({"b": b"b"}),
}
PIECES = {"pages-1.img.0000": 4096, "pages-2.img.0000": 8192, "pages-10.img.0000": 4096}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def snapshot(store: Store) -> Snapshot:
    return store.snapshot(make(store, "one", replace(CONFIG, pages=PIECES), CONTENTS))


def files_of(snapshot: Snapshot) -> dict[str, bytes]:
    names = ["config.json", *snapshot.config.files, *(f"pages/{name}" for name in PIECES)]
    return {name: (snapshot.path / name).read_bytes() for name in names}


def fetched(snapshot: Snapshot, folder: Path) -> tuple[Path, bytes]:
    """The blobs of a sealed snapshot in another folder, as a pull leaves them; the manifest."""
    text, manifest = manifest_of(snapshot)
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for digest, path in blobs_of(snapshot, manifest).items():
        shutil.copyfile(path, blobs / digest.removeprefix("sha256:"))
    folder.chmod(0o700)
    return folder, text


def test_sealed_and_laid_out(store: Store, snapshot: Snapshot) -> None:
    digest = seal(snapshot)
    check_whole(snapshot, skeleton=True)
    assert Stores([store]).open(f"other@{digest}").id == snapshot.id
    text, manifest = manifest_of(snapshot)
    with store.draft("two") as draft:
        shutil.rmtree(draft.path / "pages")
        fetched(snapshot, draft.path)
        lay_out(draft.path, text)
    again = store.snapshot(draft.id)
    check_whole(again, skeleton=True)
    assert again.config == snapshot.config
    assert files_of(again) == files_of(snapshot)
    assert again.digest == digest == seal(again)
    check_digest(again, digest)
    assert Manifest.parse(manifest.to_json()) == manifest
    assert manifest.to_json() == text


def test_the_layout(snapshot: Snapshot) -> None:
    """As the specification of OCI has it, in the order that is ours."""
    digest = seal(snapshot)
    root = snapshot.path
    assert json.loads((root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((root / "index.json").read_text())
    (described,) = index["manifests"]
    assert described["digest"] == digest == snapshot.digest
    assert described["artifactType"] == "application/vnd.thaw.snapshot.v1"
    text = (root / "blobs/sha256" / digest[7:]).read_bytes()
    assert described["size"] == len(text)
    document = json.loads(text)
    titles = [
        layer["annotations"]["org.opencontainers.image.title"] for layer in document["layers"]
    ]
    assert titles == [
        "skeleton.tar",
        *(f"pages/{name}" for name in PIECES),
        "rootfs.tar.0000",
        "rootfs.tar.0001",
        "volumes/0.tar.0000",
    ]
    for blob in [document["config"], *document["layers"]]:
        data = (root / "blobs/sha256" / blob["digest"][7:]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == blob["digest"][7:]
        assert len(data) == blob["size"]
    assert document["annotations"] == {"org.opencontainers.image.created": CONFIG.created}
    assert set(os.listdir(root / "blobs/sha256")) == {
        blob["digest"][7:] for blob in [described, document["config"], *document["layers"]]
    }


def test_blobs_are_the_files_themselves(snapshot: Snapshot) -> None:
    seal(snapshot)
    blobs = {path.stat().st_ino for path in (snapshot.path / "blobs/sha256").iterdir()}
    for name in ("config.json", "pages/pages-2.img.0000", "rootfs.tar.0000", "volumes/0.tar.0000"):
        assert (snapshot.path / name).stat().st_ino in blobs


def test_the_skeleton_is_a_tar_that_others_can_read(snapshot: Snapshot) -> None:
    seal(snapshot)
    layer = manifest_of(snapshot)[1].layers[0]
    with tarfile.open(snapshot.path / "blobs/sha256" / layer.hex) as tar:
        assert tar.getnames() == [n for n in sorted(CONTENTS) if n.startswith(("criu", "index"))]
        for member in tar:
            assert (member.mtime, member.uid, member.mode) == (0, 0, 0o600)
            found = tar.extractfile(member)
            assert found is not None
            assert found.read() == CONTENTS[member.name]


def test_the_same_snapshot_has_the_same_digest(store: Store, snapshot: Snapshot) -> None:
    other = store.snapshot(make(store, "two", replace(CONFIG, pages=PIECES), CONTENTS))
    assert seal(other) == seal(snapshot)
    assert Stores([store]).open(f"x@{snapshot.digest}").id == other.id, "the first one counts"


def test_of_two_that_are_the_same_one_goes(store: Store, snapshot: Snapshot) -> None:
    """The digest leads to the other then."""
    other = store.snapshot(make(store, "two", replace(CONFIG, pages=PIECES), CONTENTS))
    digest = seal(snapshot)
    seal(other)
    (store.folder / "snapshots" / ("0" * 16)).touch()  # one that cannot be read
    store.remove(snapshot.id)
    assert Stores([store]).open(f"x@{digest}").id == other.id
    store.remove(other.id)
    assert os.listdir(store.folder / "digests") == []


def test_it_is_not_removed_before_its_digest_leads_to_it(
    store: Store, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[str] = []

    def note(self: Store, id: str, digest: str) -> None:
        with pytest.raises(FailedPrecondition):
            self.remove(id)
        noted.append(digest)

    monkeypatch.setattr(Store, "note_digest", note)
    assert [seal(snapshot)] == noted


def test_one_that_was_removed_just_now(store: Store, snapshot: Snapshot) -> None:
    store.remove(snapshot.id)
    with pytest.raises(NoSuchSnapshot):
        seal(snapshot)


@pytest.mark.parametrize("name", ["rootfs.tar.0001", "criu/core-1.img", "index/extents"])
def test_what_is_rotten_gets_no_digest(snapshot: Snapshot, name: str) -> None:
    with open(snapshot.path / name, "r+b") as file:
        file.write(b"?")
    with pytest.raises(Damaged, match="is not what it was"):
        seal(snapshot)
    assert snapshot.digest == ""


def test_it_can_be_restored_while_it_is_sealed(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any point of it all is as a restore wants it."""
    fsync, looked = os.fsync, []

    def look(fd: int) -> None:
        fsync(fd)
        check_whole(snapshot)
        assert not [name for name in os.listdir(snapshot.path) if name.startswith(".")]
        looked.append(fd)

    monkeypatch.setattr(os, "fsync", look)
    seal(snapshot)
    assert len(looked) > 5


def test_striped(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", [tmp_path / "disk"])
    id = make(store, "one", replace(CONFIG, pages=PIECES), CONTENTS)
    moved = store.snapshot(id).pages[1] / "pages-2.img.0000"
    (store.path_of(id) / "pages" / moved.name).rename(moved)
    snapshot = store.snapshot(id)
    seal(snapshot)
    check_whole(snapshot, skeleton=True)
    _, manifest = manifest_of(snapshot)
    layer = next(layer for layer in manifest.layers if layer.title == f"pages/{moved.name}")
    assert blobs_of(snapshot, manifest)[layer.digest] == moved
    for digest, path in blobs_of(snapshot, manifest).items():
        assert not path.is_symlink()
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest[7:]
        assert (snapshot.path / "blobs/sha256" / digest[7:]).read_bytes() == path.read_bytes()


def test_progress(snapshot: Snapshot) -> None:
    told: list[int] = []
    seal(snapshot, threads=2, progress=told.append)
    assert sum(told) == size_to_seal(snapshot)
    told.clear()
    seal(snapshot, progress=told.append)
    assert told == [], "it is sealed"


def test_cancelled(snapshot: Snapshot) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        seal(snapshot, cancelled=cancelled)
    assert snapshot.digest == ""
    seal(snapshot)


SEALER = """
import os, sys
sys.path[:0] = [{tests!r}]
from shim.snapshot.artifact import seal
from shim.snapshot.store import Store
left = [{number}]
def counted(function):
    def call(*args, **kwargs):
        if not left[0]:
            os.kill(os.getpid(), 9)
        left[0] -= 1
        return function(*args, **kwargs)
    return call
snapshot = Store({store!r}).snapshot({id!r})
for name in ("rename", "link", "unlink", "mkdir", "fsync", "write", "open"):
    setattr(os, name, counted(getattr(os, name)))
seal(snapshot)
"""


def test_killed_anywhere(store: Store, snapshot: Snapshot, tmp_path: Path) -> None:
    """It is sealed or not; what was begun is no hindrance for the next."""
    for number in range(0, 1000, 9):
        script = SEALER.format(
            tests=str(CHECKOUT / "tests"), store=str(store.folder), id=snapshot.id, number=number
        )
        done = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, check=False, timeout=60)
        check_whole(snapshot, skeleton=True)
        if snapshot.digest:
            check_digest(snapshot, snapshot.digest)
        if done.returncode == 0:
            break
        assert done.returncode == -9
    assert number > 20
    digest = seal(snapshot)
    assert list(snapshot.path.rglob(".*")) == [], "nor is it still there"
    assert Stores([store]).open(f"x@{digest}").id == snapshot.id
    folder, text = fetched(snapshot, tmp_path / "again")
    lay_out(folder, text)


def test_two_seal_at_once(snapshot: Snapshot) -> None:
    digests: list[str] = []
    threads = [threading.Thread(target=lambda: digests.append(seal(snapshot))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 4
    assert len(set(digests)) == 1
    check_digest(snapshot, digests[0])


def test_what_is_not_sealed(snapshot: Snapshot) -> None:
    with pytest.raises(FailedPrecondition, match="not sealed"):
        manifest_of(snapshot)
    (snapshot.path / "rootfs.tar.0000").unlink()
    with pytest.raises(Unfit, match="missing"):
        seal(snapshot)
    assert snapshot.digest == ""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"manifests": []}', '{"manifests": [{}]}',
    '{"manifests": [{"digest": "sha256:zz"}]}', '{"manifests": {"0": 1}}', "[" * 5000])  # fmt: skip
def test_a_seal_that_is_none(store: Store, snapshot: Snapshot, text: str) -> None:
    seal(snapshot)
    (snapshot.path / "index.json").write_text(text)
    with pytest.raises(Damaged, match=r"index\.json"):
        assert snapshot.digest
    assert "index.json" in store.entries()[0].error


def test_a_manifest_that_is_another(snapshot: Snapshot) -> None:
    digest = seal(snapshot)
    path = snapshot.path / "blobs/sha256" / digest[7:]
    path.write_bytes(path.read_bytes().replace(b"2026", b"2027"))
    for use in (manifest_of, lambda s: check_digest(s, digest)):
        with pytest.raises(Damaged, match="is not what it was"):
            use(snapshot)
    path.unlink()
    with pytest.raises(Unfit, match="cannot read"):
        manifest_of(snapshot)


# Laying out what is not as it should be

Spoil = Callable[[Path, dict[str, Path]], None]


def blob(title: str, change: Callable[[Path], object]) -> Spoil:
    return lambda _folder, blobs: void(change(blobs[title]))


def void(_: object) -> None:
    pass


def set_bytes(at: int, data: bytes) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(data)

    return change


def to_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (blob("pages/pages-2.img.0000", Path.unlink), "is missing"),
        (
            blob("pages/pages-2.img.0000", lambda p: os.truncate(p, 4096)),
            "has 4096 bytes, not 8192",
        ),
        (blob("rootfs.tar.0001", lambda p: os.truncate(p, 101)), "has 101 bytes, not 100"),
        (blob("rootfs.tar.0001", to_link), "bytes, not 100"),
        (blob("skeleton.tar", set_bytes(0, b"x")), "expected criu/core-1.img"),
        (blob("skeleton.tar", set_bytes(156, b"2")), "expected criu/core-1.img"),
        (blob("skeleton.tar", set_bytes(512 + 1600, b"x")), "something behind criu/core-1.img"),
        (blob("skeleton.tar", set_bytes(2560, b"../../x")), "expected criu/descriptors.json"),
        (blob("", set_bytes(30, b"x")), "json|format|checksum"),
    ],
)
def test_blobs_that_are_not_what_they_should_be(
    snapshot: Snapshot, tmp_path: Path, spoil: Spoil, words: str
) -> None:
    """Digests are checked by who fetches them; here is what is caught without."""
    seal(snapshot)
    folder, text = fetched(snapshot, tmp_path / "new")
    manifest = Manifest.parse(text)
    blobs = {b.title: folder / "blobs/sha256" / b.hex for b in (manifest.config, *manifest.layers)}
    spoil(folder, blobs)
    with pytest.raises(Unfit, match=words):
        lay_out(folder, text)
    assert not (folder / "index.json").exists()
    assert not (tmp_path / "x").exists()


def relabelled(folder: Path, config: SnapshotConfig, manifest: Manifest) -> bytes:
    """The same blobs with another config."""
    data = config.to_json().encode()
    digits = hashlib.sha256(data).hexdigest()
    (folder / "blobs/sha256" / digits).write_bytes(data)
    described = replace(manifest.config, digest=f"sha256:{digits}", size=len(data))
    return replace(manifest, config=described).to_json()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pages": {**PIECES, "pages-11.img.0000": 4096}}, "agree on pages/pages-11.img.0000"),
        ({"pages": {}}, "do not agree on pages/"),
        ({"pages": {**PIECES, "pages-1.img.0000": 4095}}, "agree on pages/pages-1.img.0000"),
        ({"pages": {"pages-1.img": 4096}}, "do not agree on"),
        ({"files": {**CONFIG.files, "rootfs.tar.0002": file_of(b"")}}, "do not agree on"),
        ({"more": {"criu/x.img": file_of(b"xx")}}, "skeleton.tar: expected criu/x.img"),
        ({"more": {"criu/core-1.img": file_of(b"core" * 401)}}, "expected criu/core-1.img"),
        ({"more": {"index/zz": file_of(b"")}}, "expected index/zz"),
        ({"less": "index/index.json"}, "more in it than the config lists"),
        ({"less": "criu/core-1.img"}, "expected criu/descriptors.json"),
    ],
)
def test_a_config_that_lists_something_else(
    snapshot: Snapshot, tmp_path: Path, changes: dict[str, dict[str, object]], words: str
) -> None:
    seal(snapshot)
    folder, text = fetched(snapshot, tmp_path / "new")
    files = {**snapshot.config.files, **changes.pop("more", {})}
    files.pop(str(changes.pop("less", "")), None)
    config = replace(snapshot.config, **{"files": files, **changes})  # type: ignore[arg-type]
    with pytest.raises(Unfit, match=words):
        lay_out(folder, relabelled(folder, config, Manifest.parse(text)))


def test_sizes_of_the_config_that_the_skeleton_has_not(snapshot: Snapshot, tmp_path: Path) -> None:
    """A tar that ends too early, whose header says what the config says."""
    seal(snapshot)
    folder, text = fetched(snapshot, tmp_path / "new")
    manifest = Manifest.parse(text)
    tar = folder / "blobs/sha256" / manifest.layers[0].hex
    os.truncate(tar, 1000)
    skeleton = replace(manifest.layers[0], size=1000)
    with pytest.raises(Damaged, match="cut off"):
        lay_out(folder, replace(manifest, layers=[skeleton, *manifest.layers[1:]]).to_json())


def test_laid_out_twice(snapshot: Snapshot, tmp_path: Path) -> None:
    """The first attempt was broken off."""
    seal(snapshot)
    folder, text = fetched(snapshot, tmp_path / "new")
    lay_out(folder, text)
    (folder / "index.json").unlink()
    (folder / "criu" / "core-1.img").write_bytes(b"half")
    lay_out(folder, text)
    again = open_at(folder)
    check_whole(again, skeleton=True)
    assert files_of(again) == files_of(snapshot)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_skeleton_of_other_bytes(
    snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Every byte of it follows from the config; those of its files are checked when it restores."""
    seal(snapshot)
    folder, text = fetched(snapshot, tmp_path_factory.mktemp("new") / "s")
    tar = folder / "blobs/sha256" / Manifest.parse(text).layers[0].hex
    found = bytearray(tar.read_bytes())
    at = data.draw(st.integers(0, len(found) - 1))
    found[at] ^= data.draw(st.integers(1, 255))
    tar.write_bytes(found)

    def use() -> None:
        lay_out(folder, text)
        check_whole(open_at(folder), skeleton=True)

    with pytest.raises(Unfit):
        use()
    assert sorted(os.listdir(folder.parent)) == ["s"]


def test_a_checkpoint_of_containerds_is_no_artifact(store: Store) -> None:
    id = make(store, None, replace(CONFIG, pages={"pages-1.img": 4096}))
    with pytest.raises(FailedPrecondition, match=r"pages/pages-1\.img has no place"):
        seal(store.snapshot(id))


def test_a_tar_of_the_same_bytes(snapshot: Snapshot) -> None:
    """What the header is made of does not depend on who makes it, or when."""
    seal(snapshot)
    tar = snapshot.path / "blobs/sha256" / manifest_of(snapshot)[1].layers[0].hex
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as other:
        for name in sorted(n for n in CONTENTS if n.startswith(("criu/", "index/"))):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(CONTENTS[name]), 0o600
            other.addfile(info, io.BytesIO(CONTENTS[name]))
    assert made.getvalue().rstrip(b"\0") == tar.read_bytes().rstrip(b"\0")
