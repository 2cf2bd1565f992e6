"""A snapshot is untrusted input: whatever its bytes are, it is refused in words, or it is harmless.

Each case is one example: it makes something that is right, spoils it (with the checksums that it
should have, as whoever forges a snapshot would) and gives it to the code that reads such things.
Nothing may come out but an error of ours, and nothing may be written outside of where it belongs.
The rooms' own tests have what each reader refuses, and why.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fakes import archives, snapshots
from fakes import creds as fake_creds
from fakes.images import BASE, LARGE, Images, noise, vma
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from shim._native import lib
from shim.errors import ThawError, Unfit
from shim.proto import criu_pb as pb
from shim.snapshot import artifact, config, filesystems, indexing, privileges
from shim.snapshot import images as criu
from shim.snapshot.config import SnapshotConfig
from shim.snapshot.images import PAGE, NotIndexable
from shim.snapshot.index import DOCUMENT, EXTENTS, Index
from shim.snapshot.manifest import KINDS, Descriptor, Manifest
from shim.snapshot.snapshot import check_whole, open_at

Case = Callable[[st.DataObject, Path], None]
PATIENCE = 5.0  # seconds of a processor for one example

NAMES = (
    *("../x", "/etc/passwd", "criu/../../x", "./x", "x/", "//x", ".", "..", "", "a\0b", "\ud800"),
    *("criu/core-1.img", "pages-1.img", "pages-1.img.0000", "pages/pages-1.img.0000", "mm-1.img"),
    *("rootfs.tar.0000", "rootfs.tar.9999", "volumes/0.tar.0000", "volumes/../config.json"),
    *("index/index.json", "skeleton.tar", "config.json", "shared", "blobs/sha256/x", "x" * 5000),
    *("sha256:" + "0" * 64, "sha256:" + "../" * 21 + "x", "\u00b2", "pages-\uff11.img.0000"),
)
VALUES: st.SearchStrategy[Any] = (
    st.sampled_from(NAMES)
    | st.sampled_from((-1, 0, 1, 2, 4096, 1 << 31, 1 << 63, 1 << 64, 10**400, -(1 << 63)))
    | st.sampled_from((None, True, False, 0.5, 1e308, float("inf"), float("nan")))
    | st.builds(lambda: [[[[]]]])
    | st.builds(dict)
    | st.dictionaries(st.sampled_from(NAMES), st.integers(-1, 9), max_size=2)
    | st.lists(st.sampled_from(NAMES), max_size=3)
)


def crc(data: bytes) -> int:
    return lib.thaw_crc32c(0, data, len(data))


def spoilt(data: st.DataObject, document: Any) -> Any:
    """The document with one to three of its values replaced, removed or repeated."""
    document = copy.deepcopy(document)
    for _ in range(data.draw(st.integers(1, 3))):
        node = document
        while True:
            keys = sorted(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            inner = node[key]
            if isinstance(inner, dict | list) and inner and data.draw(st.integers(0, 4)):
                node = inner
                continue
            spoil(data, node, key)
            break
    return document


def spoil(data: st.DataObject, node: Any, key: Any) -> None:
    what = data.draw(st.sampled_from(("replace", "remove", "rename", "repeat")))
    if what == "replace":
        node[key] = data.draw(VALUES)
    elif what == "remove":
        del node[key]
    elif isinstance(node, dict):
        node[data.draw(st.sampled_from(NAMES))] = node[key] if what == "repeat" else node.pop(key)
    else:
        node.append(copy.deepcopy(node[key]))


def torn(data: st.DataObject, good: bytes) -> bytes:
    """The bytes with some replaced, put in or taken out, or cut off."""
    made = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(made)))
        length = data.draw(st.sampled_from((0, 1, 1, 2, 4, 8, 1 << 20)))
        put = data.draw(st.binary(max_size=8) | st.sampled_from((b"\xff" * 10, b"\0" * 512)))
        made[place : place + length] = put
    return bytes(made)


@contextmanager
def refused() -> Iterator[None]:
    """What is refused is refused as Unfit, in words that a terminal can bear."""
    try:
        yield
    except Unfit as error:
        check_words(error)


def check_words(error: Unfit) -> None:
    assert error.message
    error.message.encode()  # half of a surrogate pair could not be logged
    assert len(error.message) < 2000


# Cases


@cache
def good_config() -> dict[str, Any]:
    document = json.loads(snapshots.CONFIG.to_json())
    del document["checksum"]
    return document  # type: ignore[no-any-return]


def resealed(document: dict[str, Any]) -> str:
    """As whoever forges a config would write it."""
    return config._written({**document, "checksum": config._checksum(document)})


def a_config(data: st.DataObject, folder: Path) -> None:
    document = spoilt(data, good_config())
    document["format"] = config.FORMAT if data.draw(st.booleans()) else document.get("format")
    try:
        text = resealed(document)
    except (ValueError, UnicodeEncodeError):  # no JSON: nan
        return
    with refused():
        found = SnapshotConfig.from_json(text, "config.json")
        assert SnapshotConfig.from_json(found.to_json(), "again") == found
        for name in (*found.files, *(f"pages/{name}" for name in found.pages)):
            inside(folder, name)


def torn_config(data: st.DataObject, folder: Path) -> None:
    text = torn(data, resealed(good_config()).encode())
    with refused():
        SnapshotConfig.from_json(text, "config.json")
        assert text == resealed(good_config()).encode(), "a byte was changed and nobody noticed"


def inside(folder: Path, name: str) -> None:
    """A name of a file leads into the snapshot's folder, whoever joins it."""
    assert name
    assert "\0" not in name
    path = os.path.normpath(folder / name)
    assert path == f"{folder}/{name}", name


@cache
def good_manifest() -> dict[str, Any]:
    titles = ("skeleton.tar", "pages/pages-1.img.0000", "rootfs.tar.0000", "volumes/0.tar.0000")
    layers = [
        Descriptor(kind.media_type, f"sha256:{number:064x}", 4096, title)
        for number, (kind, title) in enumerate(zip(KINDS, titles, strict=True))
    ]
    made = Manifest(
        Descriptor("application/vnd.thaw.config.v1+json", f"sha256:{9:064x}", 10), layers, "2026"
    )
    return json.loads(made.to_json())  # type: ignore[no-any-return]


def a_manifest(data: st.DataObject, folder: Path) -> None:
    text = json.dumps(spoilt(data, good_manifest())).encode()
    if not data.draw(st.integers(0, 3)):
        text = torn(data, text)
    with refused():
        found = Manifest.parse(text)
        assert Manifest.parse(found.to_json()) == found
        for layer in found.layers:
            inside(folder, layer.title)
        for blob in found.blobs:
            inside(folder, blob.hex)


def deep(data: st.DataObject, folder: Path) -> None:
    """Documents that no stack can hold, or that are large."""
    depth = data.draw(st.sampled_from((900, 5000, 200_000)))
    opening, closing = data.draw(st.sampled_from((("[", "]"), ('{"a":', "}"))))
    nest = opening * depth + ("1" if opening != "[" else "") + closing * depth
    text = nest if data.draw(st.booleans()) else f'{{"format":2,"config":{nest},"layers":{nest}}}'
    for read in (
        lambda: SnapshotConfig.from_json(text, "x"),
        lambda: Manifest.parse(text.encode()),
    ):
        with refused():
            read()
    if sys.getrecursionlimit() < depth:
        with pytest.raises(Unfit):
            SnapshotConfig.from_json(text, "x")


def an_index(data: st.DataObject, folder: Path) -> None:
    shutil.copytree(indexed(), folder / "made", copy_function=os.link)
    images, index = folder / "made/images", folder / "made/index"
    document = json.loads((index / DOCUMENT).read_bytes())
    records = (index / EXTENTS).read_bytes()[32:]
    text = json.dumps(spoilt(data, document)).encode()
    if data.draw(st.booleans()):
        records = torn(data, records)
        records = records[: len(records) // 32 * 32]
        text = text if data.draw(st.booleans()) else json.dumps(document).encode()
    for name in (DOCUMENT, EXTENTS):
        (index / name).unlink()
    (index / DOCUMENT).write_bytes(text)
    header = struct.pack("<8sIIQI", b"THAWEXTS", 1, crc(text), len(records) // 32, crc(records))
    (index / EXTENTS).write_bytes(header + struct.pack("<I", crc(header)) + records)
    with refused():
        found = Index.open(index, images)
        for path in found.paths:
            assert path.parent == images
        found.link(folder / "links")
        found.check_files()
    for link in (folder / "links").glob("**/*"):
        assert link.parent == folder / "links"


@cache
def indexed() -> Path:
    folder = SCRATCH / "indexed"
    images = Images(folder / "images")
    for pid in (1, 2):
        memory = {BASE: noise(2 * LARGE, pid), BASE + 4 * LARGE: noise(PAGE)}
        images.process(pid, [vma(at, len(found)) for at, found in memory.items()], memory)
    images.shared(9, {0: noise(LARGE)})
    images.write()
    indexing.make(folder / "images", folder / "index")
    return folder


def images_of_criu(data: st.DataObject, folder: Path) -> None:
    dump = fake_creds.Dump(folder / "criu", 1, 7)
    images = dump.write()
    mount = pb.Mount(mnt_id=1, mountpoint=b"/", fsname=b"overlay")
    Images(images).put("mountpoints-12.img", filesystems._MAGIC, mount)
    name = data.draw(st.sampled_from(sorted({*os.listdir(images)} - {"inventory.img"})))
    (images / name).write_bytes(torn(data, (images / name).read_bytes()))
    with refused():
        privileges.check(images, fake_creds.spec())


def other_privileges(data: st.DataObject, folder: Path) -> None:
    """Whole messages with any numbers: accepted is only what the pod has itself."""
    dump = fake_creds.Dump(folder / "criu", 1, 7)
    core = dump.cores[7].thread_core
    assert core is not None
    assert core.creds is not None
    fields = {field: kind for _, field, kind, _ in pb.Creds.FIELDS}
    name = data.draw(st.sampled_from([name for name, kind in fields.items() if kind & 31 == 13]))
    number = data.draw(st.integers(0, 2000) | st.integers(0, (1 << 32) - 1))
    before = getattr(core.creds, name)
    value = [number, number] if isinstance(before, list) else number
    assume(value != before)
    setattr(core.creds, name, value)
    images = dump.write()
    try:
        privileges.check(images, fake_creds.spec())
    except Unfit:
        return
    bits = fake_creds.ALL
    harmless = {
        "cap_bnd": number & ~bits == 0,  # and not in the second word
        "cap_inh": number & ~bits == 0,
        "groups": number in (5, 6, 1001),
        "secbits": number < 1 << 12 and not number & 4,
        "no_new_privs": number > 0,
    }
    gids = name in ("gid", "egid", "sgid", "fsgid") and number in (5, 6, 1001)
    assert harmless.get(name, False) or gids, (name, value)
    assert name not in ("cap_bnd", "cap_inh") or number == 0


def images_for_an_index(data: st.DataObject, folder: Path) -> None:
    shutil.copytree(indexed() / "images", folder / "images")
    names = sorted(os.listdir(folder / "images"))
    name = data.draw(st.sampled_from([name for name in names if not name.startswith("pages")]))
    path = folder / "images" / name
    path.write_bytes(torn(data, path.read_bytes()))
    try:
        criu.check_version(folder / "images")
        criu.processes(folder / "images")
        criu.Memfds(folder / "images")
        criu.restartable(folder / "images", [1, 2])
        indexing.make(folder / "images", folder / "index")
    except (NotIndexable, Unfit):
        pass


ELSEWHERE = b"/tmp/thaw-fuzz-x"  # nobody else has a file of that name
KINDS_OF_MEMBERS = (b"0", b"0", b"5", b"5", b"2", b"1", b"3", b"6", b"x", b"g", b"L", b"K", b"S")
PATHS = (
    *(b"./", b"./d/", b"d/", b"d/f", b"./d/f", b"./f", b"f", b"l", b"./l/x", b"l/d/f"),
    *(b"../x", ELSEWHERE, b"d/../../x", b"d//f", b"d/./f", b"", b".", b"..", b"d/..", b"\xff"),
)


def archive_member(data: st.DataObject) -> bytes:
    kind = data.draw(st.sampled_from(KINDS_OF_MEMBERS))
    name = data.draw(st.sampled_from(PATHS))
    if kind in (b"x", b"g"):
        key = data.draw(st.sampled_from(("path", "linkpath", "size", "uid", "mtime", "hdrcharset")))
        value = data.draw(st.sampled_from(PATHS) | st.sampled_from((b"-1", b"9" * 30, b"1.5e3")))
        return archives.member(b"x", archives.record(key.encode(), value), kind)
    contents = data.draw(st.sampled_from((b"", b"data", b"../x\0", ELSEWHERE + b"\0")))
    contents = contents if kind in (b"0", b"L", b"K", b"S") else b""
    target = data.draw(st.sampled_from(PATHS)) if kind in (b"1", b"2") else b""
    mode = data.draw(
        st.sampled_from((b"0000644\0", b"0004755\0", b"7777777\0", b"\x80" + b"\xff" * 7))
    )
    return archives.member(name, contents, kind, target=target, mode=mode)


def an_archive(data: st.DataObject, folder: Path) -> None:
    members = [archive_member(data) for _ in range(data.draw(st.integers(1, 6)))]
    text = b"".join([*members, archives.END])
    if not data.draw(st.integers(0, 3)):
        text = torn(data, text)
    target = folder / "target"
    (folder / "elsewhere").mkdir()
    target.mkdir()
    (target / "l").symlink_to("../elsewhere")  # another container of the pod can put it there
    (folder / "archive").mkdir()
    archive = archives.write(folder / "archive", text)
    whiteouts = data.draw(st.booleans())
    with refused():
        archives.lay(archive, target, whiteouts=whiteouts)
    archives.take_back(archive, target)
    assert os.listdir(folder / "elsewhere") == []
    assert sorted(os.listdir(folder)) == ["archive", "elsewhere", "target"]
    assert not os.path.lexists(ELSEWHERE)
    assert [path for path in archived(target) if path.is_block_device()] == []


def archived(target: Path) -> list[Path]:
    return [Path(folder, name) for folder, _, files in os.walk(target) for name in files]


def an_artifact(data: st.DataObject, folder: Path) -> None:
    """Blobs of a registry, whose digests are right: a whole snapshot is made of them, or none."""
    document, skeleton = good_config(), good_skeleton()
    if data.draw(st.booleans()):
        document = spoilt(data, document)
    if data.draw(st.booleans()):
        skeleton = torn(data, skeleton)
    try:
        text = resealed(document).encode()
    except (ValueError, UnicodeEncodeError):
        return
    manifest = manifest_of(folder / "snapshot", text, skeleton)
    if data.draw(st.booleans()):
        manifest = spoilt(data, manifest)
    with refused():
        artifact.lay_out(folder / "snapshot", json.dumps(manifest).encode())
        check_whole(open_at(folder / "snapshot"))
    assert os.listdir(folder) == ["snapshot"]


def good_skeleton() -> bytes:
    return artifact._header("criu/core-1.img", 4) + b"xxxx".ljust(512, b"\0") + archives.END


def manifest_of(folder: Path, text: bytes, skeleton: bytes) -> dict[str, Any]:
    """The blobs in the folder of a pull, and what a registry says of them."""
    blobs = [text, skeleton, b"x" * 4096, snapshots.EMPTY, snapshots.EMPTY]
    manifest = copy.deepcopy(good_manifest())
    (folder / "blobs/sha256").mkdir(parents=True, mode=0o700)
    for blob, descriptor in zip(blobs, [manifest["config"], *manifest["layers"]], strict=True):
        digest = hashlib.sha256(blob).hexdigest()
        descriptor.update(digest=f"sha256:{digest}", size=len(blob))
        (folder / "blobs/sha256" / digest).write_bytes(blob)
        (folder / "blobs/sha256" / digest).chmod(0o600)
    return manifest


def test_what_is_not_spoilt_is_taken(tmp_path: Path) -> None:
    """Otherwise all that follows would be refused for the same reason."""
    text = resealed(good_config())
    assert SnapshotConfig.from_json(text, "x") == snapshots.CONFIG
    manifest = json.dumps(manifest_of(tmp_path / "snapshot", text.encode(), good_skeleton()))
    artifact.lay_out(tmp_path / "snapshot", manifest.encode())
    check_whole(open_at(tmp_path / "snapshot"))
    Index.open(indexed() / "index", indexed() / "images").check_files()
    privileges.check(fake_creds.Dump(tmp_path / "criu", 1, 7).write(), fake_creds.spec())


CASES: tuple[Case, ...] = (
    a_config,
    torn_config,
    a_manifest,
    deep,
    an_index,
    images_of_criu,
    other_privileges,
    images_for_an_index,
    an_archive,
    an_artifact,
)
SCRATCH = Path("/nowhere")  # what cases share; set by the fixture


@pytest.fixture(scope="module", autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory) -> None:
    global SCRATCH
    SCRATCH = tmp_path_factory.mktemp("scratch")


def run(case: Case, folder: Path, examples: int) -> None:
    numbers = itertools.count()

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        place = folder / str(next(numbers))
        place.mkdir()
        began = time.process_time()
        try:
            case(data, place)
        except ThawError as error:
            raise AssertionError(f"not Unfit, but {error!r}") from error
        finally:
            shutil.rmtree(place)
        assert time.process_time() - began < PATIENCE

    attempt()


@pytest.mark.parametrize("case", CASES)
def test_whatever_the_bytes_are(case: Case, tmp_path: Path) -> None:
    run(case, tmp_path, 12 if case is deep else 60)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CASES)
def test_for_long(case: Case, tmp_path: Path) -> None:
    run(case, tmp_path, 200 if case is deep else 10_000)
