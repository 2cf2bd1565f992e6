"""Reading CRIU's images: what they say, and every way in which they cannot be believed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes.images import BASE, FLAGS, STATUS, Images, image, noise, single, vma
from hypothesis import given
from hypothesis import strategies as st

from shim.proto import criu_pb as pb
from shim.proto.wire import WireError, varint
from shim.snapshot import images as criu
from shim.snapshot.images import PAGE, NotIndexable

MEMORY = {BASE: noise(2 * PAGE)}
# Of mappings, and of what there is besides; the last one is CRIU's fd of -1.
NUMBERS = st.integers(0, (1 << 64) - 1) | st.sampled_from([0, 1, PAGE, (1 << 32) + 3])
OTHERS = (b"\x48\x05", b"\x51" + bytes(8), b"\x5a\x02\x08\x01", b"\x55" + bytes(4))
MINUS_ONE = b"\x40" + b"\xff" * 9 + b"\x01"


@pytest.mark.parametrize("kind", STATUS)
def test_what_can_be_filled(kind: str) -> None:
    assert criu.fillable(vma(BASE, PAGE, kind))
    assert criu.fillable(vma(BASE, PAGE, kind, prot=2))


@pytest.mark.parametrize("kind", STATUS)
@pytest.mark.parametrize(
    "changes",
    [
        {"prot": 1},
        {"prot": 0},
        {"prot": 7},
        {"prot": 3 | 1 << 24},
        *({"flags": flag} for flag in (0x100, 0x2000, 0x8, 0x40000, 1 << 27, 1 << 20)),
        *({"status": 1 << bit} for bit in (1, 2, 3, 10, 11, 12, 13, 15, 16, 17, 20, 27, 28, 29)),
    ],
    ids=str,
)
def test_what_cannot(kind: str, changes: dict[str, int]) -> None:
    for name, wanted in (("flags", FLAGS[kind]), ("status", STATUS[kind])):
        if name in changes:
            changes = {name: changes[name] | wanted}
    assert not criu.fillable(vma(BASE, PAGE, kind, **changes))


def test_what_is_no_kind_of_mapping() -> None:
    for status in (0, 1, 0x200, 0x81, 0x301, 0xC1, 0x4101 | 0x80):
        assert not criu.fillable(vma(BASE, PAGE, status=status))
    assert not criu.fillable(vma(BASE, PAGE, "private", flags=0x21))
    assert not criu.fillable(vma(BASE, PAGE, "memfd", flags=0x2))


def test_anonymous_is_what_is_zero_without_pages() -> None:
    assert {kind for kind in STATUS if criu.anonymous(vma(BASE, PAGE, kind))} == {"private", "heap"}


def test_inherited_as_criu_has_it() -> None:
    one = vma(BASE, PAGE)
    assert criu.inherited(one, vma(BASE, PAGE))
    assert criu.inherited(one, vma(BASE, PAGE, prot=1)), "it may have been protected since"
    assert criu.inherited(one, vma(BASE, PAGE, "heap"))
    assert not criu.inherited(one, vma(BASE, 2 * PAGE))
    assert not criu.inherited(one, vma(BASE, PAGE, "file"))
    assert not criu.inherited(one, vma(BASE, PAGE, flags=0x122))
    assert not criu.inherited(one, vma(BASE, PAGE, flags=0x40022))
    assert not criu.inherited(vma(BASE, PAGE, "shared"), vma(BASE, PAGE, "shared"))
    file = vma(BASE, PAGE, "file", shmid=4)
    assert criu.inherited(file, vma(BASE, PAGE, "file", shmid=4))
    assert not criu.inherited(file, vma(BASE, PAGE, "file", shmid=5))


def test_processes(tmp_path: Path) -> None:
    images = Images(tmp_path)
    images.zombie(9)
    images.process(7, [vma(BASE, PAGE)], {}, parent=2, executable=5)
    guard = vma(BASE, PAGE, status=1 << 16)
    images.process(2, [vma(BASE + PAGE, PAGE), vma(BASE, PAGE), guard], {})
    images.write()
    first, second = criu.processes(tmp_path)
    assert (first.pid, second.pid, second.parent, second.executable) == (2, 7, 2, 5)
    assert [v.start for v in first.vmas] == [BASE, BASE + PAGE]
    assert [v.start for v in criu.mappings(tmp_path, 2)] == [BASE, BASE + PAGE]
    assert criu.mappings(tmp_path, 9) == []


@pytest.mark.parametrize(
    "vmas",
    [
        [vma(BASE, 0)],
        [vma(BASE, -PAGE)],
        [vma(BASE + 1, PAGE)],
        [vma(BASE, PAGE + 1)],
        [vma(BASE, 2 * PAGE), vma(BASE + PAGE, PAGE)],
    ],
)
def test_mappings_that_cannot_be(tmp_path: Path, vmas: list[pb.Vma]) -> None:
    images = Images(tmp_path)
    images.process(1, vmas, {})
    images.write()
    with pytest.raises(NotIndexable, match=r"mm-1\.img has a mapping at 0x"):
        criu.processes(tmp_path)


def test_a_pid_twice(tmp_path: Path) -> None:
    images = Images(tmp_path)
    images.zombie(1)
    images.zombie(1)
    with pytest.raises(NotIndexable, match="one pid twice"):
        criu.tree(images.write())


def test_restartable_sequences(tmp_path: Path) -> None:
    images = Images(tmp_path)
    images.process(1, [], {}, rseq={1: 0, 5: BASE + PAGE - 32, 6: BASE + 3 * PAGE - 31})
    images.write()
    found = criu.restartable(tmp_path, [1, 5, 6])
    assert found == {BASE, BASE + 2 * PAGE, BASE + 3 * PAGE}
    with pytest.raises(NotIndexable, match=r"cannot read core-7\.img: No such file"):
        criu.restartable(tmp_path, [7])
    area = pb.Rseq(rseq_abi_pointer=BASE, rseq_abi_size=1 << 31)
    core = pb.Core(thread_core=pb.ThreadCore(rseq_entry=area))
    images.put("core-1.img", criu.CORE, core)
    with pytest.raises(NotIndexable, match="an area of 2147483648 bytes"):
        criu.restartable(tmp_path, [1])


def test_shared_memory_by_its_mappings(tmp_path: Path) -> None:
    images = Images(tmp_path)
    images.memfd(40, 77, {})
    images.memfd(41, 78, {}, seals=8)
    images.memfd(42, 79, {}, seals=0x10)
    images.memfd(43, 80, {}, seals=0x40)
    images.memfd(44, 81, {}, hugetlb_flag=0)
    images.memfd(45, 82, {}, seals=0x27)
    images.memfd(46, 83, {})
    images.memfd(47, 83, {})
    memfds = criu.Memfds(images.write())
    found = {}
    for file in range(40, 49):
        mapping = vma(BASE, PAGE, "memfd", shmid=file)
        found[file] = (memfds.object_of(mapping), memfds.may_write(mapping))
    assert found == {
        40: (77, True),
        41: (78, False),
        42: (79, False),
        43: (80, False),
        44: (81, False),
        45: (82, True),
        46: (83, False),
        47: (83, False),
        48: (None, False),
    }
    shared = vma(BASE, PAGE, "shared", shmid=40)
    assert (memfds.object_of(shared), memfds.may_write(shared)) == (40, True)
    for other in (vma(BASE, PAGE), vma(BASE, PAGE, "file"), vma(BASE, PAGE, status=0x81)):
        assert memfds.object_of(other) is None


def test_names_of_pagemaps(tmp_path: Path) -> None:
    for name in ("pagemap-1.img", "pagemap-shmem-0.img", "pages-1.img", "mm-1.img"):
        (tmp_path / name).touch()
    assert criu.pagemaps(tmp_path) == ({1: "pagemap-1.img"}, {0: "pagemap-shmem-0.img"})
    (tmp_path / "pagemap-01.img").touch()
    with pytest.raises(NotIndexable, match=r"pagemap-01\.img is a pagemap of nobody"):
        criu.pagemaps(tmp_path)


def test_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    single(tmp_path, MEMORY)
    criu.check_version(tmp_path)
    monkeypatch.setattr(os, "sysconf", lambda _name: 65536)
    with pytest.raises(NotIndexable, match="this machine's pages have 65536 bytes"):
        criu.check_version(tmp_path)
    monkeypatch.undo()
    images = Images(tmp_path)
    images.version = 3
    images.write()
    with pytest.raises(NotIndexable, match="images of version 3, not 2"):
        criu.check_version(tmp_path)


def test_a_parent(tmp_path: Path) -> None:
    single(tmp_path, MEMORY)
    (tmp_path / "parent").symlink_to("../before")
    with pytest.raises(NotIndexable, match="those of a parent"):
        criu.check_version(tmp_path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "cannot read inventory.img: No such file or directory"),
        (b"", "another magic number"),
        (image(criu.INVENTORY), "another magic number"),
        (criu.INVENTORY.to_bytes(4, "little"), "inventory.img is empty"),
        (criu.INVENTORY.to_bytes(4, "little") + b"\2\0\0\0\x08", "is cut off"),
        (criu.INVENTORY.to_bytes(4, "little") + b"\2\0", "is cut off"),
        (criu.INVENTORY.to_bytes(4, "little") + b"\1\0\0\0\x08", "criu.Inventory: "),
    ],
)
def test_an_inventory_that_is_none(tmp_path: Path, data: bytes | None, words: str) -> None:
    if data is not None:
        (tmp_path / "inventory.img").write_bytes(data)
    with pytest.raises(NotIndexable, match=words):
        criu.check_version(tmp_path)


@pytest.mark.parametrize("head", [b"", image(criu.MM), b"\0" * 8, image(criu.PSTREE)[4:]])
def test_other_magic_numbers(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "pstree.img").write_bytes(head)
    with pytest.raises(NotIndexable, match=r"pstree\.img begins with other magic numbers"):
        criu.tree(tmp_path)


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "pstree.img").mkdir()
    with pytest.raises(NotIndexable, match=r"pstree\.img is not a file"):
        criu.tree(tmp_path)
    (tmp_path / "pstree.img").rmdir()
    (tmp_path / "pstree.img").symlink_to("/dev/zero")
    with pytest.raises(NotIndexable, match=r"cannot read pstree\.img"):
        criu.tree(tmp_path)
    (tmp_path / "pstree.img").unlink()
    os.mkfifo(tmp_path / "pstree.img")
    with pytest.raises(NotIndexable, match=r"pstree\.img is not a file"):
        criu.tree(tmp_path)


def test_an_image_that_is_too_large(tmp_path: Path) -> None:
    single(tmp_path, MEMORY)
    os.truncate(tmp_path / "pstree.img", 1 << 40)
    with pytest.raises(NotIndexable, match="is not a file of less than"):
        criu.tree(tmp_path)


@st.composite
def memories(draw: st.DrawFn) -> bytes:
    """A criu.Mm as anybody might write it."""
    parts = []
    for _ in range(draw(st.integers(0, 6))):
        fields = [
            bytes([number << 3]) + varint(draw(NUMBERS))
            for number in draw(st.lists(st.integers(1, 9), max_size=9))
        ]
        one = b"".join([*fields, *draw(st.lists(st.sampled_from([*OTHERS, MINUS_ONE])))])
        parts.append(b"\x72" + varint(len(one)) + one)
    parts.append(b"\x60" + varint(draw(NUMBERS)))
    return b"".join([*parts, *draw(st.lists(st.sampled_from(OTHERS), max_size=3))])


@given(memories())
def test_mappings_are_read_as_protobuf_has_them(data: bytes) -> None:
    assert criu._memory(data, "mm-1.img") == pb.Mm.decode(data)


@given(memories(), st.integers(0, 400), st.integers(0, 255), st.booleans())
def test_mappings_that_are_damaged(data: bytes, place: int, byte: int, cut: bool) -> None:
    """Refused where protobuf refuses them, and the same where it does not."""
    place = min(place, len(data) - 1)
    damaged = data[:place] if cut else data[:place] + bytes([byte]) + data[place + 1 :]
    try:
        wanted = pb.Mm.decode(damaged)
    except WireError:
        with pytest.raises(NotIndexable, match=r"mm-1\.img: "):
            criu._memory(damaged, "mm-1.img")
    else:
        assert criu._memory(damaged, "mm-1.img") == wanted


@pytest.mark.parametrize("more", [b"\x05\0\0\0\x60", b"\x01\0\0\0\x60", b"\x05\0"])
def test_something_wrong_behind_the_mappings(tmp_path: Path, more: bytes) -> None:
    """CRIU reads one message; what comes after it is damage all the same."""
    single(tmp_path, MEMORY, vma(BASE, 2 * PAGE))
    with open(tmp_path / "mm-1.img", "ab") as file:
        file.write(more)
    with pytest.raises(NotIndexable, match=r"mm-1\.img"):
        criu.mappings(tmp_path, 1)


def test_thousands_of_mappings(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the quick way that is gone."""
    made = pb.Mm(exe_file_id=7, vmas=[vma(BASE + n * PAGE, PAGE, shmid=n) for n in range(3000)])
    data = made.encode()
    monkeypatch.setattr(criu, "_decoded", lambda *_: pytest.fail("it was not needed"))
    assert criu._memory(data, "mm-1.img") == made
