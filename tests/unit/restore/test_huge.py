"""One more bit in CRIU's images, for the mappings that are the GPU driver's."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.images import BASE, LARGE, image, vma

from shim.config import Config
from shim.errors import Damaged
from shim.proto import criu_pb as pb
from shim.restore import huge
from shim.restore.fields import fields
from shim.snapshot import images as criu
from shim.snapshot.cuda import CudaProcess, Staging
from shim.snapshot.images import PAGE
from shim.snapshot.kernel import PROBES

MADV = 9
HUGE, NEVER, NOT_FORKED = 1 << 14, 1 << 15, 1 << 10
# Field numbers that we do not read, one of each wire type: a newer CRIU's.
MORE = bytes([200 << 3 & 0x7F | 0x80, 200 >> 4, 5]) + bytes([0xFA, 0x0C, 2]) + b"ab"
NAME = "mm-7.img"


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROBES, "transparent-hugepage", lambda: True)


def entry(made: pb.Vma, advice: int | None = None) -> bytes:
    """A mapping as CRIU writes it, with an advice and what we do not know."""
    said = b"" if advice is None else bytes([MADV << 3]) + varint(advice)
    return made.encode() + said + MORE


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def mm(*entries: bytes) -> bytes:
    """An mm-*.img of these mappings, with other fields around them."""
    parts = [bytes([14 << 3 | 2]) + varint(len(each)) + each for each in entries]
    return image(criu.MM, pb.Mm(exe_file_id=3).encode() + b"".join(parts) + MORE)


def advices(folder: Path, staging: list[Staging], *entries: bytes) -> list[int | None]:
    """What is said of each mapping when these are staging; nothing else may change."""
    (folder / NAME).write_bytes(mm(*entries))
    made = huge.images(folder, Config(), [CudaProcess(7, staging)])
    assert (folder / NAME).read_bytes() == mm(*entries)
    [record] = criu.records(made[NAME], 8, NAME)
    mappings = [field.value for field in fields(record) if field.number == 14]
    found: list[int | None] = []
    for mapping, original in zip(mappings, entries, strict=True):
        assert isinstance(mapping, bytes)
        said = [field for field in fields(mapping) if field.number == MADV]
        value = said[0].value if said else None
        assert len(said) < 2
        assert not isinstance(value, bytes)
        found.append(value)
        left = [field[:2] for field in fields(mapping) if field.number != MADV]
        assert left == [field[:2] for field in fields(original) if field.number != MADV]
    return found


def test_only_staging_is_advised(tmp_path: Path) -> None:
    entries = [entry(vma(BASE + n * LARGE, LARGE)) for n in range(3)]
    assert advices(tmp_path, [Staging(BASE + LARGE, LARGE)], *entries) == [None, HUGE, None]


def test_what_was_said_before_stays(tmp_path: Path) -> None:
    """A driver that wants no huge pages gets none."""
    advice = [NOT_FORKED, NEVER, NEVER | NOT_FORKED, HUGE]
    entries = [entry(vma(BASE + n * LARGE, LARGE), each) for n, each in enumerate(advice)]
    found = advices(tmp_path, [Staging(BASE, 4 * LARGE)], *entries)
    assert found == [NOT_FORKED | HUGE, NEVER, NEVER | NOT_FORKED, HUGE]


@pytest.mark.parametrize(
    ("start", "length", "advised"),
    [
        (0, LARGE, True),
        (-LARGE, 4 * LARGE, True),
        (LARGE // 2, LARGE // 2, True),
        (LARGE // 2 + PAGE, LARGE // 2, False),
        (LARGE, LARGE, False),
        (-LARGE, LARGE, False),
    ],
)
def test_a_part_of_a_mapping(tmp_path: Path, start: int, length: int, advised: bool) -> None:
    """The kernel has made one of two mappings that adjoin: half of it is enough."""
    found = advices(tmp_path, [Staging(BASE + start, length)], entry(vma(BASE, LARGE)))
    assert found == [HUGE if advised else None]


def test_parts_of_one_mapping_count_together(tmp_path: Path) -> None:
    parts = [Staging(BASE + n * PAGE, PAGE) for n in range(0, LARGE // PAGE, 2)]
    assert advices(tmp_path, parts, entry(vma(BASE, LARGE))) == [HUGE]
    assert advices(tmp_path, parts[1:] * 2, entry(vma(BASE, LARGE))) == [None]


@pytest.mark.parametrize(
    "odd",
    [
        vma(BASE, LARGE, "shared"),
        vma(BASE, LARGE, "file"),
        vma(BASE, LARGE, prot=1),
        vma(BASE, LARGE, flags=0x40022),
    ],
)
def test_memory_of_other_kinds_is_left_as_it_is(tmp_path: Path, odd: pb.Vma) -> None:
    assert advices(tmp_path, [Staging(BASE, LARGE)], entry(odd)) == [None]


def test_when_nothing_is_to_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no images here: none is looked at."""
    wanted = [CudaProcess(7, [Staging(BASE, LARGE)])]
    assert huge.images(tmp_path, Config(), [CudaProcess(7)]) == {}
    assert huge.images(tmp_path, Config({"gpu.pages": "small"}), wanted) == {}
    monkeypatch.setitem(PROBES, "transparent-hugepage", lambda: False)
    assert huge.images(tmp_path, Config(), wanted) == {}  # CRIU would fail at it


@pytest.mark.parametrize(
    "data",
    [
        b"",
        image(criu.CORE, pb.Mm()),
        mm(entry(vma(BASE, LARGE)))[:-1],
        image(criu.MM, b"\x72\x05ab"),
        image(criu.MM, b"\x72\x02\xff\xff"),
        image(criu.MM, b"\x0f"),
    ],
)
def test_images_that_are_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(Damaged, match=NAME):
        huge.images(tmp_path, Config(), [CudaProcess(7, [Staging(BASE, LARGE)])])


def test_a_mapping_whose_fields_come_in_another_order(tmp_path: Path) -> None:
    made = vma(BASE, LARGE)
    first = bytes([1 << 3]) + varint(made.start)
    second = bytes([2 << 3]) + varint(made.end)
    assert made.encode().startswith(first + second)
    rest = made.encode()[len(first + second) :]
    staging = [Staging(BASE, LARGE)]
    for odd in (second + first, first + rest + second, first + first + second + second):
        whole = odd if rest in odd else odd + rest
        assert advices(tmp_path, staging, whole) == [HUGE]
