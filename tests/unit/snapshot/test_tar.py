"""Headers of tars: everything that they can say, and everything that is damage."""

from __future__ import annotations

import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.archives import END, extended, header, member, record, records, summed
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.errors import Damaged
from shim.snapshot import tar
from shim.snapshot.sparse import Regions
from shim.snapshot.tar import Kind, Member, members

FOLDER = header(b"f/", b"5")


class Bytes:
    """An archive in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


def read(*pieces: bytes) -> list[Member]:
    return list(members(Bytes(b"".join(pieces)), "a.tar"))


def one(*pieces: bytes) -> Member:
    (found,) = read(*pieces, END)
    return found


def test_a_plain_file() -> None:
    found = one(member(b"./f", b"data", mode=b"0104751\0", uid=b"0000005\0", gid=b"0000006\0"))
    assert (found.kind, found.path, found.size, found.start) == (Kind.FILE, b"f", 4, 512)
    assert (found.mode, found.uid, found.gid) == (0o4751, 5, 6)
    assert (found.mtime, found.regions, found.xattrs) == (1_700_000_000 * 10**9, None, ())


@pytest.mark.parametrize("name", [b"./", b".", b"./."])
def test_the_root(name: bytes) -> None:
    if name == b"./.":
        with pytest.raises(Damaged, match="bad name"):
            one(header(name, b"5"))
    else:
        assert one(header(name, b"5")).path == b""


def test_nothing_in_it() -> None:
    assert read(END) == []
    assert read(END, bytes(9 * 512)) == []


def test_long_names() -> None:
    long = b"/".join([b"d" * 200] * 3)
    assert one(header(b"name", prefix=b"pre/fix")).path == b"pre/fix/name"
    assert one(extended(records(path=long)), header(b"cut")).path == long
    gnu = {"magic": b"ustar  \0"}
    assert one(member(b"././@LongLink", long + b"\0", b"L", **gnu), header(b"x")).path == long
    found = one(member(b"x", long + b"\0", b"K", **gnu), header(b"x", b"2"))
    assert (found.kind, found.target) == (Kind.SYMLINK, long)


def test_values_of_any_bytes() -> None:
    value = bytes(range(256))
    pairs = record(b"SCHILY.xattr.user.a%3Db%253D", value) + record(b"path", b"\xff\n=")
    found = one(extended(pairs), header(b"x"))
    assert found.xattrs == ((b"user.a=b%3D", value),)
    assert found.path == b"\xff\n="


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        (b"1.5", 1_500_000_000),
        (b"-1.5", -1_500_000_000),
        (b"0.000000001", 1),
        (b"7", 7 * 10**9),
        (b"1.1234567899", 1_123_456_789),
    ],
)
def test_times(text: bytes, nanoseconds: int) -> None:
    assert one(extended(records(mtime=text)), header(b"x")).mtime == nanoseconds


def test_numbers_in_records_come_first() -> None:
    big = extended(records(uid=b"4000000000", gid=b"3000000", size=b"3"))
    found = one(big, header(b"x"), b"abc".ljust(512, b"\0"))
    assert (found.uid, found.gid, found.size) == (4000000000, 3000000, 3)


def test_gnus_large_numbers() -> None:
    found = one(member(b"x", uid=b"\x80" + (3 << 20).to_bytes(7, "big")))
    assert found.uid == 3 << 20


SPARSE = b"ABCDEF".ljust(512, b"\0")
REGIONS = ((0, 2), (4096, 4), (8192, 0))


def sparse_old() -> bytes:
    entries = b"".join(b"%011o\0%011o\0" % pair for pair in REGIONS)
    block = header(b"s", b"S", 6, magic=b"ustar  \0")
    block = block[:386] + entries.ljust(96, b"\0") + b"\0" + b"%011o\0" % 8192 + block[495:]
    return summed(block) + SPARSE


def sparse_long() -> bytes:
    """With its map continued in another block."""
    entries = [b"%011o\0%011o\0" % (64 * n, 1) for n in range(6)]
    block = header(b"s", b"S", 6, magic=b"ustar  \0")
    block = block[:386] + b"".join(entries[:4]) + b"\1" + b"%011o\0" % 8192 + block[495:]
    return summed(block) + b"".join(entries[4:]).ljust(512, b"\0") + SPARSE


def sparse_0(map: bytes) -> bytes:
    pairs = record(b"GNU.sparse.size", b"8192") + record(b"GNU.sparse.numblocks", b"3") + map
    return extended(pairs) + member(b"s", b"ABCDEF")


def sparse_00() -> bytes:
    keys = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
    return sparse_0(b"".join(record(k, b"%d" % n) for r in REGIONS for k, n in zip(keys, r)))  # noqa: B905


def sparse_01() -> bytes:
    return sparse_0(record(b"GNU.sparse.map", b"0,2,4096,4,8192,0"))


def sparse_10(text: bytes = b"3\n0\n2\n4096\n4\n8192\n0\n") -> bytes:
    pairs = records(GNU__sparse__major=b"1", GNU__sparse__minor=b"0", GNU__sparse__name=b"s")
    pairs += record(b"GNU.sparse.realsize", b"8192")
    return extended(pairs) + member(b"GNUSparseFile.7/s", text.ljust(512, b"\0") + b"ABCDEF")


@pytest.mark.parametrize("made", [sparse_old, sparse_00, sparse_01, sparse_10])
def test_sparse_files(made: object) -> None:
    assert callable(made)
    data = made()
    found = one(data)
    assert (found.path, found.size, found.regions) == (b"s", 8192, Regions(REGIONS))
    assert data[found.start : found.start + 6] == b"ABCDEF"


def test_a_long_map_of_old() -> None:
    found = one(sparse_long())
    assert list(found.regions or ()) == [(64 * n, 1) for n in range(6)]
    assert found.start == 1024


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0", "old"])
def test_sparse_files_of_gnu_tar(tmp_path: Path, version: str) -> None:
    with open(tmp_path / "s", "wb") as file:
        for n in range(40):
            file.seek(n << 20)
            file.write(b"%d" % n * 4096)
        file.truncate(64 << 20)
    how = ["--format=gnu"] if version == "old" else ["--format=posix", "--sparse-version", version]
    made = subprocess.run(
        ["tar", "-C", tmp_path, "-c", "--sparse", *how, "s"], check=True, capture_output=True
    ).stdout
    found = one(made)
    content, start = bytearray(64 << 20), found.start
    for offset, length in found.regions or ():
        content[offset : offset + length] = made[start : start + length]
        start += length
    assert found.path == b"s"
    assert len(found.regions or ()) >= 40
    assert bytes(content) == (tmp_path / "s").read_bytes()


SPARSE_ONE = record(b"GNU.sparse.offset", b"0") + record(b"GNU.sparse.numbytes", b"1")


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([b"no tar".ljust(512, b"x")], "no octal number|wrong checksum"),
        ([], "cut off"),
        ([bytes(512)], "cut off"),
        ([bytes(700)], "after the end|cut off"),
        ([END, b"x"], "after the end"),
        ([END, bytes(1 << 25)], "after the end"),
        ([member(b"f", b"data")[:600]], "cut off"),
        ([header(b"f", size=1 << 32)], "cut off"),
        ([header(b"f", magic=b"\0" * 8)], "no header of GNU tar or pax"),
        ([header(b"f", b"g")], "unknown type"),
        ([header(b"f", b"5", 512), bytes(512)], "no file"),
        ([header(b"f", mode=b"00x0644\0")], "no octal"),
        ([header(b"f", uid=b"\xff" * 8)], "no octal"),
        ([header(b"f", mtime=b"\x80" + (1 << 62).to_bytes(11, "big"))], "no time"),
        ([member(b"f", uid=b"\x80" + b"\xff" * 7)], "nobody's number"),
        ([extended(records(uid=b"4294967295")), header(b"f")], "nobody's number"),
        ([extended(records(path=b"f"))], "without a member"),
        ([extended(b""), header(b"f")], "empty extended header"),
        ([extended(b"99 path=f\n"), header(b"f")], "bad record"),
        ([extended(b"0 path=f\n"), header(b"f")], "bad record"),
        ([extended(b"8 path=f\n"), header(b"f")], "bad record"),
        ([extended(b"path=f\n"), header(b"f")], "no number"),
        ([extended(b"-9 path=f\n"), header(b"f")], "no number"),
        ([extended(b"7 pathf\n"), header(b"f")], "bad record"),
        ([extended(b"9" * 40 + b" path=f\n"), header(b"f")], "no number"),
        ([extended(record(b"path", b"f") * 2), header(b"f")], "two records"),
        ([extended(records(path=b"f")) * 2, header(b"f")], "two headers"),
        ([extended(records(mtimd=b"1")), header(b"f")], "unknown record"),
        ([extended(records(mtime=b"1e3")), header(b"f")], "no time"),
        ([extended(records(size=b"-1")), header(b"f")], "no number"),
        ([extended(record(b"SCHILY.xattr.", b"")), header(b"f")], "bad extended attribute"),
        ([extended(record(b"SCHILY.xattr.user.a\0b", b"")), header(b"f")], "bad extended attr"),
        ([header(b"l", b"2")], "symlink to nothing"),
        ([header(b"x", b"x", 17 << 20)], "a header of"),
        ([sparse_10(b"3\n0\n2\n")], "no number"),
        ([sparse_10(b"1\n0\n7\n")], "not its data"),
        ([sparse_10(b"3\n0\n2\n1\n4\n8192\n0\n")], "out of order"),
        ([sparse_10(b"3\n0\n2\n8190\n4\n8194\n0\n")], "not its data"),
        ([sparse_10(b"99999999999\n0\n2\n")], "no number"),
        ([sparse_0(b"")], "another number of regions"),
        ([sparse_0(record(b"GNU.sparse.numbytes", b"1"))], "bad map"),
        ([sparse_0(record(b"GNU.sparse.map", b"1,2,3"))], "bad map"),
        ([extended(records(GNU__sparse__major=b"2")), header(b"f")], "unknown format"),
        ([extended(records(GNU__sparse__size=b"2")), header(b"f", b"5")], "no file"),
        ([header(b"f", b"S")], "foreign header"),
        ([sparse_0(record(b"GNU.sparse.map", b"0,2,4096,0,8192,4"))], "an empty region"),
        ([sparse_10(b"3\n0\n0\n2\n6\n8192\n0\n")], "an empty region"),
        ([extended(SPARSE_ONE), header(b"f")], "a map of what is no sparse file"),
        ([extended(records(GNU__sparse__x=b"1")), header(b"f")], "unknown record"),
    ],
)  # fmt: skip
def test_damage(pieces: list[bytes], words: str) -> None:
    with pytest.raises(Damaged, match=words) as caught:
        read(*pieces, b"" if b"".join(pieces)[-512:] == bytes(512) or not pieces else END)
    assert "a.tar: " in caught.value.message


@pytest.mark.parametrize(
    "name",
    [
        b"/f", b"..", b"../f", b"f/../g", b"f//g", b"f/./g", b"f/", b"", b"./",
        b"d/" * 300 + b"f", b"x" * 256, b"/".join([b"x" * 255] * 17),
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere(name: bytes) -> None:
    with pytest.raises(Damaged, match=r"bad name|a root that is no folder"):
        one(extended(records(path=name or b"./")), header(b"f"))
    with pytest.raises(Damaged, match=r"bad name|a root that is no folder"):
        one(extended(records(linkpath=name or b"./")), header(b"f", b"1"))


def test_a_name_with_a_zero_byte() -> None:
    with pytest.raises(Damaged, match="bad name"):
        one(extended(records(path=b"f\0g")), header(b"f"))


def test_too_many_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MEMBERS", 2)
    with pytest.raises(Damaged, match="more than 2 members"):
        read(FOLDER, FOLDER, END)


def test_too_many_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "ALL_RECORDS", 20)
    with pytest.raises(Damaged, match="too many extended headers"):
        read(*[extended(records(mtime=b"1")), header(b"f")] * 3, END)


@pytest.mark.parametrize("made", [sparse_old, sparse_00, sparse_01, sparse_10])
def test_too_many_regions(monkeypatch: pytest.MonkeyPatch, made: Callable[[], bytes]) -> None:
    """All files of an archive count: many small maps fill memory as one large one does."""
    monkeypatch.setattr(tar, "MOST", 8)
    assert len(read(made(), made(), END)) == 2
    with pytest.raises(Damaged, match="too many regions"):
        read(made(), made(), made(), END)


def test_too_many_attributes() -> None:
    """Found while they are read: each costs more memory than there is of it in the archive."""
    one = extended(b"".join(record(b"SCHILY.xattr.%d" % n, b"") for n in range(1100)))
    with pytest.raises(Damaged, match="too many extended attributes"):
        read(one, header(b"f"), END)


def test_the_memory_of_a_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a Python number for each, neither in what is kept nor while it is read."""
    most = 1 << 14
    monkeypatch.setattr(tar, "MOST", most)
    for count in (most, most * 8):
        text = b",".join(b"%d,1" % (2 * n) for n in range(count))
        pairs = record(b"GNU.sparse.size", b"%d" % (1 << 40)) + record(b"GNU.sparse.map", text)
        archive = extended(pairs) + member(b"s", bytes(count)) + END
        tracemalloc.start()
        try:
            if count == most:
                assert len(one(archive).regions or ()) == count
            else:
                with pytest.raises(Damaged, match="too many regions"):
                    read(archive)
            taken = tracemalloc.get_traced_memory()[1] - 4 * len(archive)
        finally:
            tracemalloc.stop()
        assert taken < 1 << 20


def test_the_map_of_format_1_is_all_that_is_read_of_the_data() -> None:
    """What is read as a header counts; the data of many sparse files is none."""

    class Counted(Bytes):
        most = 0

        def read(self, offset: int, length: int) -> bytes:
            self.most = max(self.most, length)
            return super().read(offset, length)

    text = b"1\n0\n8192\n".ljust(512, b"\0")
    keys = {"major": b"1", "minor": b"0", "name": b"s", "realsize": b"8192"}
    pairs = b"".join(record(b"GNU.sparse." + k.encode(), v) for k, v in keys.items())
    source = Counted(extended(pairs) + member(b"s", text + bytes(8192)) + bytes(2048))
    assert [list(found.regions or ()) for found in members(source, "a.tar")] == [[(0, 8192)]]
    assert source.most <= 2048


SMALL = b"".join(
    [extended(records(mtime=b"7.5")), FOLDER, member(b"f/x", b"data"), sparse_00(), END]
)


def test_cut_anywhere() -> None:
    whole = read(SMALL)
    for length in range(len(SMALL)):
        with pytest.raises(Damaged):
            read(SMALL[:length])
    assert read(SMALL + bytes(512)) == whole


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=2048), st.integers(0, len(SMALL)), st.integers(0, 600))
def test_any_bytes(data: bytes, position: int, skipped: int) -> None:
    """Whatever stands there: members, or Damaged; nothing else, and no end that never comes."""
    for document in (data, SMALL[:position] + data + SMALL[position + skipped :]):
        try:
            for found in read(document):
                assert b".." not in found.path.split(b"/")
                assert not found.path.startswith(b"/")
                assert found.start <= len(document)
        except Damaged:
            pass


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"x", b"L", b"K", b"S", b"0"]))
def test_any_bytes_with_a_right_checksum(data: bytes, kind: bytes) -> None:
    for pieces in (
        [member(b"x", data, kind), header(b"f")],
        [summed(data[:200].ljust(512, b"\0"))],
        [summed(header(b"f", kind)[:300] + data.ljust(212, b"\0"))],
    ):
        try:
            read(*pieces, END)
        except Damaged:
            pass
