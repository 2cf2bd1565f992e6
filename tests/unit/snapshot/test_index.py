"""An index opens if it is whole and right, and says Unfit of everything else."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.images import BASE, LARGE, Images, noise, vma
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shim._native import lib
from shim.errors import Damaged, Unfit
from shim.snapshot import index as indices
from shim.snapshot import pieces
from shim.snapshot.config import DAMAGED
from shim.snapshot.images import PAGE, NotIndexable
from shim.snapshot.index import ANEW, DOCUMENT, EXTENTS, Index
from shim.snapshot.indexing import make, write_reason
from shim.snapshot.pieces import Pieces

DATA = noise(2 * LARGE)
HEADER = 32


def crc(data: bytes) -> int:
    return lib.thaw_crc32c(0, data, len(data))


class Made:
    """Images of two processes with an index, to be spoilt."""

    def __init__(self, folder: Path) -> None:
        self.images = folder / "images"
        self.folder = folder / "index"
        images = Images(self.images)
        for pid, seed in ((1, 1), (2, 2)):
            memory = {BASE: noise(2 * LARGE, seed), BASE + 4 * LARGE: noise(PAGE)}
            images.process(
                pid, [vma(address, len(data)) for address, data in memory.items()], memory
            )
        images.shared(9, {0: noise(LARGE)})
        images.write()
        self.index = make(self.images, self.folder)

    def open(self) -> Index:
        return Index.open(self.folder, self.images)

    def refused(self, words: str, hint: str = ANEW) -> None:
        """It is refused, for a reason, with a remedy."""
        with pytest.raises(Unfit, match=words) as caught:
            self.open()
        assert caught.value.hint == hint
        assert str(self.folder) in caught.value.message

    def flip(self, path: Path, place: int, bit: int = 0) -> None:
        data = bytearray(path.read_bytes())
        data[place] ^= 1 << bit
        path.write_bytes(data)

    def rewrite(
        self,
        change: Callable[[dict[str, Any]], object] = lambda _: None,
        records: bytes | None = None,
    ) -> None:
        """Another document, or other extents, with the checksums that they should have."""
        document = json.loads((self.folder / DOCUMENT).read_bytes())
        change(document)
        self.rewrite_bytes(json.dumps(document).encode(), records)

    def rewrite_bytes(self, text: bytes, records: bytes | None = None) -> None:
        if records is None:
            records = (self.folder / EXTENTS).read_bytes()[HEADER:]
        (self.folder / DOCUMENT).write_bytes(text)
        count = len(records) // 32
        header = struct.pack("<8sIIQI", b"THAWEXTS", 1, crc(text), count, crc(records))
        (self.folder / EXTENTS).write_bytes(header + struct.pack("<I", crc(header)) + records)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def test_what_it_says(made: Made) -> None:
    index = made.open()
    assert index.reason == ""
    assert index.tasks == [1, 2]
    assert index.sources == [("pages-1.img", 2 * LARGE + PAGE), ("pages-2.img", 2 * LARGE + PAGE)]
    assert (index.count, index.bytes) == (2, 4 * LARGE)
    assert len(index.extents) == 2 * 32
    assert index.ranges == [[(BASE, BASE + 2 * LARGE)]] * 2
    assert index.sizes == {"extents": 4 * LARGE, "zero": 0, "skeleton": 2 * PAGE + LARGE}
    assert (index.folder, index.images) == (made.folder, made.images)


def test_it_holds_what_it_needs(made: Made) -> None:
    """Opened once, the files of the index may go: only links lead to them."""
    index = made.open()
    shutil.rmtree(made.folder)
    assert sum(array("I", index.extents)[4::8]) == index.bytes


def test_a_reason(tmp_path: Path) -> None:
    write_reason("of another world", tmp_path)
    index = Index.open(tmp_path, tmp_path / "nowhere")
    assert (index.reason, index.tasks, index.count, index.bytes) == ("of another world", [], 0, 0)
    index.check_files()


def test_links(made: Made, tmp_path: Path) -> None:
    (made.images / "descriptors.json").write_text("[]")
    (made.images / "dump.log").write_text("not for CRIU")
    made.index = make(made.images, made.folder)
    made.index.link(tmp_path / "links")
    leads = {path.name: path.resolve() for path in (tmp_path / "links").iterdir()}
    skeleton = ["pagemap-1.img", "pagemap-2.img", "pages-1.img", "pages-2.img"]
    assert leads == {
        **{name: made.images / name for name in os.listdir(made.images) if name != "dump.log"},
        **{name: made.folder / name for name in skeleton},
    }
    made.index.link(tmp_path / "links")


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its root")
def test_links_work_in_another_root(made: Made, tmp_path: Path) -> None:
    """CRIU opens images in tasks that have the container's root, by a descriptor of the folder."""
    made.index.link(tmp_path / "links")
    (tmp_path / "root").mkdir()
    folder = os.open(tmp_path / "links", os.O_RDONLY)
    try:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.chroot(tmp_path / "root")
                status = len(os.read(os.open("mm-1.img", os.O_RDONLY, dir_fd=folder), 4)) - 4
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        os.close(folder)


def test_links_through_links(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "other").symlink_to("a/b")
    monkeypatch.chdir(tmp_path)
    Index.open(Path("index"), Path("images")).link(Path("other/links"))
    monkeypatch.chdir("/")
    assert all(path.is_file() for path in (tmp_path / "a" / "b" / "links").iterdir())


def test_files_are_checked(made: Made) -> None:
    made.index.check_files()
    names = {path.name for path in made.images.iterdir()} - {"pages-1.img", "pages-2.img"}
    names -= {"pagemap-1.img", "pagemap-2.img"}
    assert "pages-3.img" in names, "what stays wholly with CRIU"
    skeleton = {path.name for path in made.folder.iterdir()} - {DOCUMENT, EXTENTS}
    assert len(skeleton) == 4
    for folder, found in ((made.images, names), (made.folder, skeleton)):
        for name in sorted(found):
            kept = (folder / name).read_bytes()
            made.flip(folder / name, len(kept) // 2)
            with pytest.raises(Unfit, match=f"{name} is not what it was"):
                made.index.check_files()
            (folder / name).write_bytes(kept[:-1])
            with pytest.raises(Unfit, match=f"{name} is not what it was") as caught:
                made.index.check_files()
            assert caught.value.hint == (DAMAGED if folder == made.images else ANEW)
            (folder / name).unlink()
            with pytest.raises(Unfit, match=f"cannot read .*{name}: No such file") as caught:
                made.index.check_files()
            assert caught.value.hint == (DAMAGED if folder == made.images else ANEW)
            (folder / name).symlink_to("/dev/null")
            with pytest.raises(Unfit, match=f"cannot read .*{name}"):
                made.index.check_files()
            (folder / name).unlink()
            (folder / name).mkdir()
            with pytest.raises(Unfit, match=f"cannot read .*{name}"):
                made.index.check_files()
            (folder / name).rmdir()
            (folder / name).write_bytes(kept)
    made.index.check_files()


def test_files_are_read_again_if_they_have_changed(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or might have without its being seen: such a change shows a moment later."""
    seen: list[str] = []
    whole = indices.checksum

    def noted(path: Path) -> tuple[int, int]:
        seen.append(path.name)
        return whole(path)

    monkeypatch.setattr(indices, "checksum", noted)
    monkeypatch.setattr(indices, "_SETTLED", 10**18)
    made.index.check_files()
    everything = len(seen)
    made.index.check_files()
    assert len(seen) == 2 * everything, "they are too new"
    monkeypatch.setattr(indices, "_SETTLED", 0)
    made.index.check_files()
    seen.clear()
    made.index.check_files()
    assert seen == []
    os.utime(made.images / "pages-3.img")
    made.index.check_files()
    assert seen == ["pages-3.img"]


@pytest.mark.parametrize("name", ["pages-1.img", "pages-3.img"])
def test_a_pagemap_that_goes_beyond_its_pages(made: Made, name: str) -> None:
    """With checksums that are right: CRIU would wait for the pages."""
    folder, part = (made.folder, "skeleton") if name == "pages-1.img" else (made.images, "images")
    cut = (folder / name).read_bytes()[:-PAGE]
    (folder / name).write_bytes(cut)
    made.rewrite(lambda document: document[part].update({name: [len(cut), crc(cut)]}))
    with pytest.raises(Damaged, match=f"has more pages than {name}"):
        made.open().check_files()
    made.rewrite(lambda document: document[part].pop(name))
    with pytest.raises(Damaged, match=f"has more pages than {name}"):
        made.open().check_files()


@pytest.mark.parametrize(("name", "step"), [(DOCUMENT, 7), (EXTENTS, 1)])
def test_flipped_bytes_are_found(made: Made, name: str, step: int) -> None:
    path = made.folder / name
    good = path.read_bytes()
    for place in range(0, len(good), step):
        made.flip(path, place, place % 8)
        with pytest.raises(Unfit):
            made.open()
        path.write_bytes(good)
    made.open()


@pytest.mark.parametrize(("name", "step"), [(DOCUMENT, 7), (EXTENTS, 1)])
def test_shorter_files_are_refused(made: Made, name: str, step: int) -> None:
    path = made.folder / name
    good = path.read_bytes()
    for size in range(0, len(good), step):
        path.write_bytes(good[:size])
        with pytest.raises(Unfit):
            made.open()
    path.write_bytes(good + b"\0")
    made.refused("another checksum")


def test_another_version_is_no_damage(made: Made) -> None:
    """Whatever else it is like: CRIU restores it alone, and the images are as good as ever."""
    path = made.folder / EXTENTS
    good = path.read_bytes()
    header = good[:8] + struct.pack("<I", 2) + good[12:28]
    path.write_bytes(header + struct.pack("<I", crc(header)) + b"of another kind")
    index = made.open()
    assert (index.reason, index.tasks, index.extents) == (indices.OTHER_VERSION, [], b"")
    index.check_files()
    path.write_bytes(header + good[28:])
    made.refused("the header of extents has another checksum")
    path.write_bytes(good)
    made.rewrite(set_to("format", 2))
    assert made.open().reason == indices.OTHER_VERSION


@pytest.mark.parametrize("name", ["_MOST_TEXT", "_MOST_EXTENTS"])
def test_what_is_too_large(made: Made, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is neither opened nor made."""
    monkeypatch.setattr(indices, name, 95)
    made.refused("is no file of ours")
    with pytest.raises(NotIndexable, match="too many"):
        indices.write(made.folder, indices.Document("", [], [], {}, {}, {}), made.index.extents)


def test_halves_of_two_indexes(made: Made, tmp_path: Path) -> None:
    write_reason("another", tmp_path)
    shutil.copy(tmp_path / DOCUMENT, made.folder / DOCUMENT)
    made.refused("index.json has another checksum")


@pytest.mark.parametrize("name", [DOCUMENT, EXTENTS])
def test_what_is_missing_or_no_file(made: Made, name: str) -> None:
    path = made.folder / name
    path.unlink()
    made.refused(f"{name} is missing")
    path.mkdir()
    made.refused(f"{name} is no file of ours|Is a directory")
    path.rmdir()
    path.symlink_to("/dev/zero")
    made.refused("cannot use the index")
    path.unlink()
    os.mkfifo(path)
    made.refused(f"{name} is no file of ours")
    path.unlink()
    path.touch()
    os.truncate(path, 1 << 40)
    made.refused(f"{name} is no file of ours")


def test_no_folder(made: Made) -> None:
    shutil.rmtree(made.folder)
    made.refused(f"{EXTENTS} is missing")


def set_to(name: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: document.__setitem__(name, value)


def rename(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["sources"][0].__setitem__(0, name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_to("format", "1"), "another format"),
        (set_to("format", True), "another format"),
        (set_to("reason", None), "reason is no str"),
        (set_to("reason", "but why"), "extents of images that are not indexed"),
        (set_to("tasks", {}), "tasks is no list"),
        (set_to("tasks", ["1"]), "expected a number, found a str"),
        (set_to("tasks", [-1, 2]), "expected a number"),
        (set_to("tasks", [True, 2]), "expected a number, found a bool"),
        (set_to("tasks", [1 << 70, 2]), "expected a number"),
        (set_to("tasks", [1, 1]), "a task is listed twice"),
        (set_to("tasks", [1, 2, 3]), "an mm-.*img is missing"),
        (set_to("tasks", [1]), "a task or a file that is not listed"),
        (set_to("tasks", [1, 7]), "outside what can be filled"),
        (set_to("sources", [[1]]), "sources are no pairs"),
        (set_to("sources", [1, 2]), "sources are no pairs"),
        (set_to("sources", []), "a task or a file that is not listed"),
        (set_to("sources", [["pages-1.img", 1.5]]), "expected a number"),
        (rename("/etc/passwd"), "no name of an image"),
        (rename("../pages-1.img"), "no name of an image"),
        (rename("pages-1.img\n"), "no name of an image"),
        (rename("pages-2.img"), "a file is listed twice"),
        (rename("pages-3.img"), "pages-3.img has .* bytes, it had"),
        (rename("pages-4.img"), "No such file"),
        (set_to("skeleton", []), "skeleton is no dict"),
        (set_to("skeleton", {"a/b.img": [1, 2]}), "no name of an image"),
        (set_to("skeleton", {"a.img": [1]}), "no size and checksum of a.img"),
        (set_to("skeleton", {"pages-1.img.0000": [1, 2]}), "no name of an image"),
        (set_to("images", {"..": [1, 2]}), "no name of an image"),
        (set_to("images", {"pages-1.img.": [1, 2]}), "no name of an image"),
        (rename("pages-1.img.00000"), "no name of an image"),
        (set_to("images", {"a.img": [1, None]}), "expected a number"),
        (set_to("sizes", {}), "expected a number, found a NoneType"),
        (set_to("sizes", {"extents": 1, "zero": 0, "skeleton": 0}), "another size in all"),
    ],
    ids=str,
)
def test_documents_that_are_wrong(
    made: Made, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    made.rewrite(change)
    made.refused(words, DAMAGED if re.search("it had|No such|missing", words) else ANEW)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b"\xff", b"[" * 100000, b"null", b'{"format": 1}']
)
def test_documents_that_are_none(made: Made, text: bytes) -> None:
    made.rewrite_bytes(text)
    made.refused("cannot use the index")


def test_extents_that_are_wrong(made: Made) -> None:
    """Each rule is tested in test_extents.py; here, that they are asked."""
    records = bytearray(made.index.extents)
    words = array("Q", made.index.extents)
    words[0] += 4 * LARGE
    made.rewrite(records=words.tobytes())
    made.refused("outside what can be filled there")
    records[28] = 7
    made.rewrite(records=bytes(records))
    made.refused("a task or a file that is not listed")
    made.rewrite(records=bytes(records[:32]))
    made.refused("another size in all")


def test_a_pages_file_that_has_changed_its_size(made: Made) -> None:
    path = made.images / "pages-2.img"
    os.truncate(path, 2 * LARGE)
    made.refused(r"pages-2\.img has 262144 bytes, it had 266240", DAMAGED)
    path.unlink()
    made.refused("No such file", DAMAGED)
    path.symlink_to("pages-1.img")
    made.refused(r"pages-2\.img has ", DAMAGED)


def test_mappings_that_are_others(made: Made) -> None:
    path = made.images / "mm-1.img"
    good = path.read_bytes()
    path.write_bytes((made.images / "pstree.img").read_bytes())
    made.refused(r"mm-1\.img begins with other magic numbers", DAMAGED)
    path.unlink()
    made.refused(r"an mm-.*img is missing", DAMAGED)
    path.write_bytes(good)
    made.open()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_whatever_the_bytes_are(made: Made, data: st.DataObject) -> None:
    """Also with checksums that are right."""
    records = bytearray(made.index.extents)
    for _ in range(data.draw(st.integers(0, 3))):
        records[data.draw(st.integers(0, len(records) - 1))] = data.draw(st.integers(0, 255))
    text = bytearray((made.folder / DOCUMENT).read_bytes())
    for _ in range(data.draw(st.integers(0, 2))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    keep = [(made.folder / name).read_bytes() for name in (DOCUMENT, EXTENTS)]
    try:
        made.rewrite_bytes(bytes(text), bytes(records))
        try:
            index = made.open()
        except Unfit:
            return
        for task, ranges in enumerate(index.ranges):
            assert task < 2
            for start, end in ranges:
                assert BASE <= start < end <= BASE + 2 * LARGE or end <= BASE + 4 * LARGE + PAGE
    finally:
        for name, content in zip((DOCUMENT, EXTENTS), keep, strict=True):
            (made.folder / name).write_bytes(content)


def test_names_of_images() -> None:
    good = ["pages-1.img", "descriptors.json", "tmpfs-5.tar.gz.img", "ghost-file-1f.img"]
    bad = ["", ".img", "..", "a/b.img", "dump.log", "stats-dump", ".x.img", "pages-1.img.bak"]
    assert [name for name in good + bad if indices.READ_BY_CRIU.fullmatch(name)] == good


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of an index of pieces, in the place of the one that was made of whole files."""
    monkeypatch.setattr(pieces, "PIECE", 2 * LARGE)
    folders = [tmp_path / "pages", tmp_path / "more"]
    for folder in folders:
        folder.mkdir()
    made = Made(tmp_path)
    Pieces(folders).take(made.images)
    made.rewrite(set_to("images", {}))
    make(made.images, made.folder, pages=folders)
    return folders


def test_of_pieces(pages: list[Path], tmp_path: Path) -> None:
    index = Index.open(tmp_path / "index", tmp_path / "images", pages)
    assert [path.name for path in index.paths] == ["pages-1.img.0000", "pages-2.img.0000"]
    assert {path.parent for path in index.paths} <= set(pages)
    index.check_files()
    index.link(tmp_path / "links")
    assert os.path.realpath(tmp_path / "links/pages-1.img") == str(tmp_path / "index/pages-1.img")
    # Of shared memory that nobody maps there is nothing to fill, so CRIU gets the piece itself.
    only = Pieces(pages).path("pages-3.img.0000")
    assert os.path.realpath(tmp_path / "links/pages-3.img") == str(only)
    only.write_bytes(only.read_bytes()[:-1] + b"?")
    with pytest.raises(Damaged, match="is not what it was") as caught:
        index.check_files()
    assert caught.value.hint == DAMAGED


def test_what_helps_a_snapshot(pages: list[Path], tmp_path: Path) -> None:
    """Its index cannot be made anew."""
    Pieces(pages).path("pages-1.img.0000").unlink()
    for name in (None, EXTENTS):
        if name:
            (tmp_path / "index" / name).unlink()
        with pytest.raises(Damaged) as caught:
            Index.open(tmp_path / "index", tmp_path / "images", pages)
        assert caught.value.hint == DAMAGED
