"""Pagemaps, read and written byte by byte as CRIU does it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from fakes.images import BASE, Images, image, noise
from hypothesis import given
from hypothesis import strategies as st

from shim.proto import criu_pb as pb
from shim.snapshot import images as criu
from shim.snapshot import pagemap
from shim.snapshot.images import PAGE, TOP, NotIndexable
from shim.snapshot.pagemap import Entry, Pagemap, encode, load, sized

HEAD = image(criu.PAGEMAP, pb.PagemapHead(pages_id=3))
# vaddr 0x7f0000000000, compat_nr_pages 0, flags 6, nr_pages 256, as CRIU 4.2 writes it.
REAL = bytes.fromhex("0f000000 08 8080808080e01f 10 00 20 06 28 8002")
OLD = bytes.fromhex("0c000000 08 8080808080e01f 10 02 20 04")


def read(folder: Path, *entries: bytes, head: bytes = HEAD) -> Pagemap:
    records = b"".join(len(entry).to_bytes(4, "little") + entry for entry in entries)
    (folder / "pagemap-1.img").write_bytes(head + records)
    return both(folder)


def both(folder: Path) -> Pagemap:
    """As both ways of reading have it."""
    with suppress(NotIndexable):
        made = load(folder, "pagemap-1.img")
        assert sized(folder, "pagemap-1.img") == (made.pages, made.size)
        return made
    sized(folder, "pagemap-1.img")
    raise AssertionError("one takes what the other does not")


def test_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without looking at the entries one by one, unless something is wrong with one."""
    monkeypatch.setattr(pagemap, "_entries", lambda *_: pytest.fail("it was not needed"))
    (tmp_path / "pagemap-1.img").write_bytes(HEAD + REAL)
    assert sized(tmp_path, "pagemap-1.img") == ("pages-3.img", 256 * PAGE)


def test_an_entry_of_criu_4_2(tmp_path: Path) -> None:
    made = read(tmp_path, REAL[4:])
    assert made.entries == [(BASE, 256, 6)]
    assert (made.pages, made.size, made.wide) == ("pages-3.img", 256 * PAGE, True)
    assert encode(made, made.entries) == HEAD + REAL


def test_an_entry_of_older_versions(tmp_path: Path) -> None:
    made = read(tmp_path, OLD[4:])
    assert (made.entries, made.wide) == ([(BASE, 2, 4)], False)
    assert encode(made, made.entries) == HEAD + OLD
    without_flags = read(tmp_path, OLD[4:-2])
    assert without_flags.entries == [(BASE, 2, 4)], "what has no flags is in the pages file"


def test_without_entries(tmp_path: Path) -> None:
    made = read(tmp_path)
    assert (made.entries, made.size, list(made.pieces())) == ([], 0, [])
    assert encode(made, []) == HEAD


def test_pieces_are_what_follows_each_other(tmp_path: Path) -> None:
    images = Images(tmp_path)
    images.pagemap("pagemap-1.img", {0: noise(PAGE), BASE: noise(600 * PAGE)})
    made = load(tmp_path, "pagemap-1.img")
    assert [pages for _, pages, _ in made.entries] == [1, 256, 256, 88]
    assert list(made.pieces()) == [(0, 0, PAGE), (BASE, PAGE, 600 * PAGE)]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("08 8080808080e01f 10 00 20 08 28 01", "has flags 0x8"),
        ("08 8080808080e01f 10 00 20 0c 28 01", "has flags 0xc"),
        ("08 8080808080e01f 10 00 20 02 28 01", "has flags 0x2"),
        ("08 8080808080e01f 10 00 20 05 28 01", "has flags 0x5"),
        ("08 8080808080e01f 10 00 20 00 28 01", "has flags 0x0"),
        ("08 8080808080e01f 10 00 18 01 28 01", "has flags 0x4"),
        ("08 8080808080e01f 10 00 20 04 28 01 30 01", "has a field that is unknown"),
        ("08 8080808080e01f 10 00 20 04 2a 01 30", "has a field that is unknown"),
        ("00 00 08 8080808080e01f 10 00 20 04 28 01", "has a field that is unknown"),
        ("08 01 10 00 20 04 28 01", "cannot be"),
        ("08 00 10 00 20 04 28 00", "cannot be"),
        ("08 00 10 00 20 04", "cannot be"),
        ("08 00 10 00 20 04 28 ffffffffffffffff7f", "pages"),
        ("08 00 10 00 20 04 28 ffffffffffffffffffff7f", "exceeds 64 bits"),
        ("08 00 10 00 20 04 28", "cannot be|is cut off"),
        ("08 00 10 00 20 04 28 80", "cannot be|is cut off"),
    ],
)
def test_entries_that_are_refused(tmp_path: Path, entry: str, words: str) -> None:
    with pytest.raises(NotIndexable, match=f"pagemap-1.img: .*({words})"):
        read(tmp_path, bytes.fromhex(entry))


def test_an_entry_that_reaches_into_the_next(tmp_path: Path) -> None:
    (tmp_path / "pagemap-1.img").write_bytes(HEAD + b"\x0f" + REAL[1:] + REAL)
    with pytest.raises(NotIndexable, match=r"pagemap-1\.img: "):
        both(tmp_path)


def test_entries_out_of_order(tmp_path: Path) -> None:
    with pytest.raises(NotIndexable, match="its entry for 0x7f0000000000 cannot be"):
        read(tmp_path, REAL[4:], REAL[4:])


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (HEAD[:8], "is empty"),
        (HEAD[:-1], "is cut off"),
        (image(criu.PAGEMAP, b"\x08\x03\x10\x01"), "fields in its head that are unknown"),
        (image(criu.PAGEMAP, b"\x08"), "criu.PagemapHead"),
        (image(criu.MM, b"\x08\x03"), "other magic numbers"),
    ],
)
def test_heads_that_are_refused(tmp_path: Path, head: bytes, words: str) -> None:
    with pytest.raises(NotIndexable, match=f"pagemap-1.img:? .*{words}"):
        read(tmp_path, head=head)


def entries() -> st.SearchStrategy[list[Entry]]:
    step = st.tuples(st.integers(0, 1 << 30), st.integers(1, 1 << 20), st.sampled_from([4, 6]))

    def placed(steps: list[tuple[int, int, int]]) -> list[Entry]:
        made, end = [], 0
        for gap, pages, flags in steps:
            made.append((end + gap * PAGE, pages, flags))
            end = made[-1][0] + pages * PAGE
        return made

    return st.lists(step, max_size=20).map(placed).filter(lambda e: not e or e[-1][0] < TOP >> 1)


@given(entries(), st.booleans())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, made: list[Entry], wide: bool
) -> None:
    folder = tmp_path_factory.mktemp("pagemap")
    first = Pagemap("pagemap-1.img", "pages-3.img", HEAD, wide and bool(made), made)
    (folder / first.name).write_bytes(encode(first, made))
    assert both(folder) == first


@given(st.lists(st.sampled_from(range(256)) | st.sampled_from([8, 16, 32, 40]), max_size=24))
def test_entries_of_noise(tmp_path_factory: pytest.TempPathFactory, data: list[int]) -> None:
    """Whatever one of them says of an entry, the other says."""
    with suppress(NotIndexable):
        read(tmp_path_factory.mktemp("pagemap"), bytes(data), REAL[4:])


@given(st.binary(max_size=64))
def test_noise(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("pagemap")
    (folder / "pagemap-1.img").write_bytes(HEAD + data)
    try:
        made = both(folder)
    except NotIndexable:
        return
    assert list(made.pieces())[-1:] == [] or made.size > 0
