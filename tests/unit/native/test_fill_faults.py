"""System calls that go wrong under a fill, as tests/native/fault.c makes them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.filling import CHOSEN, DIRECT, MIB, PAGE_CACHE, READING, scattered

TESTS = Path(__file__).parents[2]
SIZE = 6 * MIB
PIECES = scattered(SIZE, 5)
CHILD = f"""
import sys
from pathlib import Path
from fakes.filling import *
blob = Blob(Path(sys.argv[1]), noise({SIZE}))
pieces = scattered({SIZE}, 5)
source, budget, warm = map(int, sys.argv[2:])
if not warm:
    blob.drop()
with Target({SIZE}) as target:
    with Fill([blob], pieces, [target.address], source=source, budget=budget) as fill:
        fill.start([target.pid])
        try:
            fill.wait()
        except OSError as error:
            print(error.errno, *fill.failure())
        else:
            assert target.read() == expected([blob], pieces, 0, {SIZE})
            print(fill.progress().direct > 0, fill.progress().cached > 0)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fault") / "fault.so"
    source = TESTS / "native" / "fault.c"
    subprocess.run(
        ["gcc", "-Wall", "-Werror", "-O2", "-fPIC", "-shared", "-o", made, source], check=True
    )
    return made


def run(library: Path, fault: str, program: str, *words: object) -> str:
    """What a program says under a fault."""
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "FAULT": fault,
        "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
    }
    ran = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


SAVE = """
import os, sys
from shim._native import lib
from shim.snapshot.layout import ANONYMOUS, BULK, Run, packed
from shim.snapshot.saving import Saving
runs = packed([Run(1 << 30, 0, 256 << 20, 0, 0, ANONYMOUS | BULK)])
path = sys.argv[1]
open(path, "w").truncate(256 << 20)
for _ in range(30):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    with Saving(runs, [("pages", fd)], threads=16) as saving:
        saving.finish()
    os.close(fd)
"""


def test_threads_that_find_out_together_that_there_is_no_direct_io(
    library: Path, tmp_path: Path
) -> None:
    """One takes O_DIRECT off the file, which was the others' reason too."""
    run(library, "misfit", SAVE, tmp_path / "pages")


THREADS = """
import os, struct, sys
from fakes.settled import own_threads
from shim._native import lib
from shim.gpu.memory.copyin import CopyIn, Source
piece, count = 4 << 20, 64
crc = lib.thaw_crc32c(0, bytes(piece), piece)
extents = b"".join(
    struct.pack("<QQIIIHH", number * piece, number * piece, piece, crc, 0, 0, 0)
    for number in range(count)
)
source = Source("zeros", os.open(sys.argv[1], os.O_RDONLY), count * piece)
before = own_threads()
with CopyIn(extents, [source], budget=0) as copy:
    copy.start([count * piece], int(sys.argv[2]))  # they wait for the region
    print(len(own_threads() - before))
"""


@pytest.mark.parametrize(
    ("processors", "gpus", "threads"),
    [(2, 1, 2), (16, 1, 10), (192, 1, 24), (96, 2, 48), (40, 8, 25)],
)
def test_how_many_fill_gpus(
    library: Path, tmp_path: Path, processors: int, gpus: int, threads: int
) -> None:
    with open(tmp_path / "zeros", "wb") as file:
        file.truncate(256 * MIB)
    said = run(library, f"processors {processors}", THREADS, tmp_path / "zeros", gpus)
    assert int(said) == threads


def fill(library: Path, folder: Path, fault: str, source: int, budget: int, warm: bool) -> str:
    """What a fill in another process says."""
    return run(library, fault, CHILD, folder, source, budget, int(warm))


@pytest.mark.parametrize("budget", [0, 64 * MIB])
@pytest.mark.parametrize("source", [PAGE_CACHE, DIRECT])
def test_a_bad_sector(library: Path, tmp_path: Path, source: int, budget: int) -> None:
    number = len(PIECES) // 2
    bad = PIECES[number].offset + 5
    says = fill(library, tmp_path, f"eio {bad}", source, budget, True)
    raised, error, stage, place = map(int, says.split())
    assert (raised, error, stage) == (errno.EIO, errno.EIO, READING)
    # A read fails as a whole; it may have begun with an extent before this one.
    assert place <= number
    if budget == 0:
        assert place == number


@pytest.mark.parametrize("budget", [0, 64 * MIB])
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("fault", ["short", "interrupt", "partial"])
def test_less_than_was_asked_for(
    library: Path, tmp_path: Path, fault: str, warm: bool, budget: int
) -> None:
    assert "True" in fill(library, tmp_path, fault, CHOSEN, budget, warm)


@pytest.mark.parametrize("budget", [0, 64 * MIB])
def test_a_file_system_without_direct_reading(library: Path, tmp_path: Path, budget: int) -> None:
    assert fill(library, tmp_path, "nodirect", DIRECT, budget, False) == "False True"


@pytest.mark.parametrize("fault", ["misfit", "old"])
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_odd_kernels(library: Path, tmp_path: Path, fault: str, warm: bool) -> None:
    fill(library, tmp_path, fault, CHOSEN, 64 * MIB, warm)
