"""What is said over the socket is what the library's header says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from shim.gpu.memory import wire
from shim.gpu.memory.wire import About, Answer, Kind, Marker, Memory, State, Status, request

HEADER = Path(__file__).parents[4] / "native" / "gpu" / "wire.h"
STRUCTS = {
    "thaw_gpu_marker": (wire.MARKER, "magic version pid engine state"),
    "thaw_gpu_header": (wire.HEADER, "kind status state count value text"),
    "thaw_gpu_memory": (wire.MEMORY, "id size device flags"),
    "thaw_gpu_about": (wire.ABOUT, "movable pieces left devices flags uuids"),
}


def test_the_same_as_the_header(tmp_path: Path) -> None:
    lines = []
    for name, (_, fields) in STRUCTS.items():
        lines.append(f'printf("%zu", sizeof(struct {name}));')
        lines += [f'printf(" %zu", offsetof(struct {name}, {f}));' for f in fields.split()]
        lines.append('printf("\\n");')
    for value in (*Kind, *Status, *State):
        lines.append(f'printf("%d ", THAW_GPU_{value.name});')
    lines.append('printf("\\n");')
    for word in wire.LEFT:
        lines.append(f'printf("%d ", THAW_GPU_LEFT_{word.upper()});')
    lines.append('printf("%d\\n", THAW_GPU_LEFT_KINDS);')
    names = ["MAGIC", "VERSION", "RECORDS", "DEVICES", "UNIT", "GIVEN", "RDMA"]
    lines += [f'printf("%llu ", (unsigned long long)THAW_GPU_{name});' for name in names]
    lines.append('printf("%s\\n", THAW_GPU_MARKER);')
    program = tmp_path / "layout.c"
    includes = f'#include <stddef.h>\n#include <stdio.h>\n#include "{HEADER}"\n'
    program.write_text(f"{includes}int main(void) {{\n{chr(10).join(lines)}\nreturn 0;\n}}\n")
    subprocess.run(["cc", "-o", tmp_path / "layout", program], check=True)
    said = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True)
    *layouts, enums, left, numbers = said.stdout.splitlines()
    for (name, (format_, fields)), line in zip(STRUCTS.items(), layouts, strict=True):
        size, *offsets = map(int, line.split())
        assert format_.size == size, name
        assert offsets == places(format_.format, len(fields.split())), name
    assert [int(word) for word in enums.split()] == [*Kind, *Status, *State]
    assert [int(word) for word in left.split()] == list(range(len(wire.LEFT) + 1))
    constants = [wire.MAGIC, wire.VERSION, wire.RECORDS, wire.DEVICES, wire.GRANULARITY]
    constants += [wire.GIVEN, wire.RDMA]
    assert numbers.split() == [*map(str, constants), wire.NAME]


def places(format_: str, count: int) -> list[int]:
    """Where each field of a struct begins: an array is one."""
    import struct

    parts = re.findall(r"\d*[a-zA-Z]", format_.removeprefix("<"))
    found = [struct.calcsize("<" + "".join(parts[:n])) for n in range(len(parts))]
    assert len(found) == count
    return found


def test_a_request() -> None:
    data = request(Kind.GIVE, 7, [Memory(1, 4096, 2)])
    answer = Answer.parse(data)
    assert (answer.kind, answer.value, answer.many) == (Kind.GIVE, 7, 1)
    assert wire.MEMORY.unpack(answer.records) == (1, 4096, 2, 0)


def header(status: int = 0, state: int = 1, many: int = 0, text: bytes = b"") -> bytes:
    return wire.HEADER.pack(3, status, state, many, 0, text)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (header()[:-1], "87 bytes"),
        (header(status=9), "9"),
        (header(state=3), "3"),
        (header(many=65), "65 records"),
    ],
)
def test_no_answer(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Answer.parse(data)


def test_what_it_says_is_for_people() -> None:
    assert Answer.parse(header(text=b"cu\x1b[31m\xff\0later")).text == "cu?[31m?"


@pytest.mark.parametrize(
    "record",
    [(0, 2 << 20, 0, 0), (1, 0, 0, 0), (1, 1 << 20, 0, 0)],
)
def test_no_piece(record: tuple[int, int, int, int]) -> None:
    data = header(many=1) + wire.MEMORY.pack(*record)
    with pytest.raises(ValueError, match="piece"):
        Answer.parse(data).memory()


def test_records_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="24 bytes of 2 records"):
        Answer.parse(header(many=2) + bytes(24)).memory()


def about(devices: int, uuids: bytes, flags: int = 0) -> bytes:
    return wire.ABOUT.pack(5, 6, 1, 0, 0, 4, 0, 0, devices, flags, uuids)


def test_about() -> None:
    found = About.parse(about(2, b"a" * 16 + b"b" * 16))
    assert (found.movable, found.pieces) == (5, 6)
    assert found.left == {"small": 1, "other": 4}
    assert found.uuids == [b"a" * 16, b"b" * 16]
    assert [About.parse(about(0, b"", flags)).given for flags in (0, 1, 2, 3)] == [
        False,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize("data", [about(65, b""), about(2, b""), about(1, b"")[:-1]])
def test_nothing_about(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each in its own words
        About.parse(data)


@pytest.mark.parametrize("change", [{0: 1}, {1: 2}, {3: -1}])
def test_no_marker(change: dict[int, int]) -> None:
    fields = [wire.MAGIC, wire.VERSION, 1, 5, 0]
    assert Marker.parse(wire.MARKER.pack(*fields)) == Marker(1, 5, 0)
    for place, value in change.items():
        fields[place] = value
    with pytest.raises(ValueError):  # noqa: PT011
        Marker.parse(wire.MARKER.pack(*fields))
