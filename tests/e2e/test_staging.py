"""Memory that is taken for a GPU driver's staging comes back in huge pages, by CRIU itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from bed.fetch import criu
from bench import thaw
from bench.bare import Criu
from bench.programs import Worker, compiled

from shim.snapshot.cuda import CudaProcess, Staging
from shim.snapshot.index import FOLDER, Index
from shim.snapshot.indexing import make

pytestmark = [
    pytest.mark.one_lane,
    pytest.mark.skipif(os.geteuid() != 0, reason="CRIU needs root"),
]

_MIB = 1 << 20
_HUGE = 2 * _MIB
SIZE = 48 * _MIB
SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


class Dumped(NamedTuple):
    """A worker that has ended, its images, and where most of its memory was."""

    worker: Worker
    images: Path
    area: Staging


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dumped]:
    folder = tmp_path_factory.mktemp("staging")
    (folder / "images").mkdir()
    program = compiled("worker", folder)
    with Worker(program, folder, SIZE, 1, huge=None) as worker:
        Criu(criu()).dump(worker.pid, folder / "images")
        worker.end()
        index = make(folder / "images", folder / "images" / FOLDER)
        yield Dumped(worker, folder / "images", _largest(index))


def _largest(index: Index) -> Staging:
    start, end = max(index.ranges[0], key=lambda range_: range_[1] - range_[0])
    return Staging(start, end - start)


def in_huge_pages(pid: int, area: Staging) -> tuple[bool, int]:
    """Whether a mapping is advised to have huge pages, and how many bytes have some."""
    here, size = False, 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            start, end = (int(part, 16) for part in words[0].split("-"))
            here = start <= area.address < end
        elif here and words[0] == "AnonHugePages:":
            size = int(words[1]) << 10
        elif here and words[0] == "VmFlags:":
            return "hg" in words, size
    raise AssertionError(f"no mapping at {area.address:#x}")


@pytest.mark.parametrize("taken", ["for staging", "for nothing"])
def test_huge_pages_where_they_are_wanted(dumped: Dumped, tmp_path: Path, taken: str) -> None:
    worker, images, area = dumped
    staging = [CudaProcess(worker.pid, [area])] if taken == "for staging" else []
    found: list[tuple[bool, int]] = []
    worker.forget()
    try:
        thaw.restore(
            Criu(criu()),
            images,
            tmp_path,
            threads=2,
            budget=SIZE,
            staging=staging,
            look=lambda init: found.append(in_huge_pages(init, area)),
        )
        worker.verify()
    finally:
        worker.end()
    [(advised, size)] = found
    assert advised == bool(staging)
    if staging and "[never]" not in SWITCH.read_text():
        # Whatever the kernel could not find room for, most of it is there.
        assert size >= (area.length - 2 * _HUGE) // 2
    if not staging and "[always]" not in SWITCH.read_text():
        assert size == 0
