"""How fast GPU memory is copied to files and back: `python -m tests.bench.device --help`.

Nothing but native/device.c and what it is made of: no worker, no CRIU. A region of so many bytes is
filled from files of noise in the page cache, and from buffers that were read, verified and pinned
before; it is looked through for zeros, and copied out to files again. Every figure is GiB/s.

With `--make 225x200M` nothing is copied: so many regions of that size are made, by 1, 2, 4 and 8
threads, and descriptors of them; every figure is seconds, the best of three.

Needs an NVIDIA driver and a GPU (`--uuid`, by default NVML's first), or a library that looks like
one, which tells nothing about a GPU.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from shim._native import lib
from shim.errors import ThawError
from shim.gpu.driver import LIBRARY
from shim.gpu.memory.copyin import CopyIn, Source
from shim.gpu.memory.device import BUDGET, GRANULARITY, CopyOut, Memory, Region, laid_out
from shim.gpu.memory.making import Making, Wanted
from shim.gpu.nvml import gpus, uuid_bytes

MIB, GIB = 1 << 20, 1 << 30
_UNITS = {"M": MIB, "G": GIB}
_EXTENT = 4 * MIB
_MAKERS = (1, 2, 4, 8)
_TIMES = 3
RECORD = struct.Struct("<QQIIIHH")  # struct thaw_extent


@dataclass(frozen=True)
class Case:
    """One way of copying, with so many threads (0: what is chosen)."""

    kind: str
    threads: int
    gib_s: float


@dataclass(frozen=True)
class Made:
    """Regions made by so many threads, and then their descriptors, in seconds."""

    threads: int
    made: float
    exported: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    args = _parser().parse_args(argv)
    try:
        uuid = chosen(args.uuid)
        if args.make:
            made = _make_all(args.library, uuid, *args.make)
            show(args.output, made, made_table(made))
            return 0
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            cases = _run(Path(folder), args.library, uuid, args.size, args.threads)
    except (ThawError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(args.output, cases, table(cases))
    return 0


def show(output: str, cases: Sequence[Case | Made], words: Sequence[str]) -> None:
    """Print the figures, as JSON or in these words."""
    if output == "json":
        print(json.dumps([asdict(case) for case in cases], indent=2))
    else:
        print("\n".join(words))


def table(cases: Sequence[Case]) -> list[str]:
    """The figures for people."""
    rows = [f"{case.kind:20} {case.threads or 'chosen':>7} {case.gib_s:8.1f}" for case in cases]
    return [f"{'':20} {'threads':>7} {'GiB/s':>8}", *rows]


def made_table(cases: Sequence[Made]) -> list[str]:
    """The same for regions that are made."""
    rows = [f"{case.threads:>7} {case.made:8.3f} {case.exported:12.3f}" for case in cases]
    return [f"{'threads':>7} {'made':>8} {'descriptors':>12}", *rows]


def _make_all(library: str, uuid: bytes, count: int, size: int) -> list[Made]:
    memory = Memory.open(library)
    try:
        memory.use(uuid)
        wanted, cases = [Wanted(uuid, size)] * count, []
        for threads in _MAKERS:
            found = [_make(memory, wanted, threads) for _ in range(_TIMES)]
            cases.append(Made(threads, *(min(seconds) for seconds in zip(*found, strict=True))))
        return cases
    finally:
        memory.close()


def _make(memory: Memory, wanted: Sequence[Wanted], threads: int) -> tuple[float, float]:
    """Seconds until all are there, and until there are descriptors."""
    began = time.monotonic()
    with closing(Making(memory, wanted, range(len(wanted)), makers=threads)) as making:
        making.wait()
        made = time.monotonic()
        making.settle()
        return made - began, time.monotonic() - made


def _run(folder: Path, library: str, uuid: bytes, size: int, threads: Sequence[int]) -> list[Case]:
    if shutil.disk_usage(folder).free < 2 * size + GIB:
        raise OSError(f"{folder}: fewer than {(2 * size + GIB) // MIB} MiB free")
    noise, extents = folder / "noise", write_noise(folder / "noise", size)
    cases: list[Case] = []

    def note(kind: str, count: int, seconds: float) -> None:
        cases.append(Case(kind, count, size / GIB / seconds))

    memory = Memory.open(library)
    with memory.create(uuid, size) as region:
        note("scan, all zeros", 1, _scan(region, b"\0"))
        for count in threads:
            note("in, page cache", count, _in(region, extents, noise, count, ahead=False))
            note("in, from buffers", count, _in(region, extents, noise, count, ahead=True))
        note("scan, no zeros", 1, _scan(region, b"\1"))
        for count in threads:
            note("out, until read", count, _out(region, folder / "copy", count, written=False))
            note("out, until written", count, _out(region, folder / "copy", count, written=True))
    memory.close()
    return cases


def write_noise(path: Path, size: int) -> bytes:
    """The file, and extents that cover it."""
    piece = bytearray(random.Random(1).randbytes(_EXTENT))
    extents = []
    with open(path, "wb") as file:
        for at in range(0, size, _EXTENT):
            piece[:8] = at.to_bytes(8, "little")
            length = min(_EXTENT, size - at)
            checksum = lib.thaw_crc32c(0, bytes(piece[:length]), length)
            extents.append(RECORD.pack(at, at, length, checksum, 0, 0, 0))
            file.write(memoryview(piece)[:length])
    return b"".join(extents)


def _scan(region: Region, wanted: bytes) -> float:
    """Seconds."""
    began = time.monotonic()
    found = region.scan()
    seconds = time.monotonic() - began
    assert found == wanted * len(found), "what was copied is not there"
    return seconds


def _in(region: Region, extents: bytes, path: Path, threads: int, *, ahead: bool) -> float:
    """Seconds; `ahead`: all is read and verified before."""
    budget = region.size + GIB if ahead else BUDGET
    with open(path, "rb") as file:
        source = Source(path.name, file.fileno(), region.size)
        with CopyIn(extents, [source], threads=threads, budget=budget) as copy:
            while ahead and (now := copy.progress()).direct + now.cached < now.total:
                copy.prefetch()
                time.sleep(0.01)
            began = time.monotonic()
            copy.start([region.size])
            copy.add(0, region)
            copy.wait()
            return time.monotonic() - began


def _out(region: Region, path: Path, threads: int, *, written: bool) -> float:
    """Seconds until the region is needed no longer, all of it buffered, or all is on disk."""
    runs, sizes = laid_out([region.scan()], region.size)
    budget = BUDGET if written else region.size + GIB
    with open(path, "wb") as file:
        file.truncate(sizes[0])
        began = time.monotonic()
        files = [(path.name, file.fileno())]
        with CopyOut([region], runs, files, threads=threads, budget=budget) as copy:
            copy.finish() if written else copy.wait_read()
            return time.monotonic() - began


def chosen(uuid: str) -> bytes:
    """The UUID of the GPU that was named, or of NVML's first."""
    if uuid:
        return uuid_bytes(uuid)
    found = gpus()
    if not found:
        raise OSError("there is no GPU; a library that looks like one needs --uuid, too")
    return found[0].uuid_bytes


def size_of(text: str) -> int:
    """Bytes, of 512M or 8G."""
    if text[-1:] not in _UNITS or not text[:-1].isdigit():
        raise argparse.ArgumentTypeError("a size looks like 512M or 8G")
    return int(text[:-1]) * _UNITS[text[-1]]


def _regions(text: str) -> tuple[int, int]:
    """How many, and bytes of each, of 225x200M."""
    count, _, size = text.partition("x")
    if not count.isdigit() or size_of(size) % GRANULARITY:
        raise argparse.ArgumentTypeError("regions look like 225x200M, in steps of 2M")
    return int(count), size_of(size)


def counts(text: str) -> list[int]:
    """Numbers, of 1,4,0."""
    if not all(word.isdigit() for word in text.split(",")):
        raise argparse.ArgumentTypeError("numbers of threads look like 1,4,0")
    return [int(word) for word in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.device", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--size", type=size_of, default=GIB, help="of the region (1G)")
    parser.add_argument(
        "--threads", type=counts, default=[0], help="that copy, one after the other; 0: chosen"
    )
    parser.add_argument(
        "--make", type=_regions, metavar="NxSIZE", help="only make regions, as 225x200M"
    )
    parser.add_argument("--folder", default="/dev/shm", help="where the files are (/dev/shm)")
    parser.add_argument("--library", default=LIBRARY, help="of the driver")
    parser.add_argument("--uuid", default="", help="the GPU's, as nvidia-smi -L has it")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
