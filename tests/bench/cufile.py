"""How fast cuFile fills GPU memory, and whether it does: `python -m tests.bench.cufile --help`.

A region is filled from a file of noise: by the engine's ring, by cuFile in its compatibility mode,
and, where nvidia-fs is, by GPUDirect Storage; every time the GPU finds the checksums. The file is
not in the page cache, as far as `--folder`'s file system lets go of it, but for the ring's second
figure. Then a byte of the file is flipped, which has to be found. Every figure is GiB/s; what does
not work is said on stderr, with the reason, and what it takes to open cuFile.

Needs an NVIDIA driver, a GPU (`--uuid`, by default NVML's first) and libcufile.so.0 (`--cufile`; in
the wheel nvidia-cufile-cu12, 1.2 MB), or libraries that look like these. cuFile looks the file's
disk up in udev's database, /run/udev.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from shim.errors import ThawError
from shim.gpu.driver import LIBRARY
from shim.gpu.memory import cufile
from shim.gpu.memory.copyin import CopyIn, Source
from shim.gpu.memory.cufile import Direct, NotDirect
from shim.gpu.memory.device import Memory, Region

from .device import GIB, Case, chosen, counts, show, size_of, table, write_noise

_KINDS = {True: "cuFile, compatible", False: "cuFile, GPUDirect"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    args = _parser().parse_args(argv)
    os.environ.setdefault("CUFILE_LOGFILE_PATH", os.devnull)
    try:
        uuid = chosen(args.uuid)
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            cases = _run(Path(folder), args, uuid)
    except (ThawError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(args.output, cases, table(cases))
    return 0


def _run(folder: Path, args: argparse.Namespace, uuid: bytes) -> list[Case]:
    path, size = folder / "noise", args.size
    extents = write_noise(path, size)
    memory, cases = Memory.open(args.library), []
    with open(path, "r+b", buffering=0) as file:
        os.fsync(file.fileno())
        source = Source(path.name, file.fileno(), size)
        for kind in ("ring, from disk", "ring, page cache"):
            if kind == "ring, from disk":
                _forget(source)
            with memory.create(uuid, size) as region:
                seconds = _ring(region, extents, source)
            cases.append(Case(kind, 0, size / GIB / seconds))
        for compatible in (True, False):
            for threads in args.threads:
                direct = Direct(
                    extents, [source], compatible=compatible, library=args.cufile, threads=threads
                )
                _forget(source)
                with memory.create(uuid, size) as region:
                    found = _cufile(direct, region)
                if isinstance(found, float):
                    cases.append(Case(_KINDS[compatible], threads, size / GIB / found))
                else:
                    print(f"{_KINDS[compatible]}: {found}", file=sys.stderr)
        with memory.create(uuid, size) as region:
            print(
                f"with a flipped byte: {_flipped(extents, source, args, region)}", file=sys.stderr
            )
    memory.close()
    return cases


def _ring(region: Region, extents: bytes, source: Source) -> float:
    """Seconds."""
    with CopyIn(extents, [source]) as copy:
        began = time.monotonic()
        copy.start([region.size])
        copy.add(0, region)
        copy.wait()
        return time.monotonic() - began


def _cufile(direct: Direct, region: Region) -> float | str:
    """Seconds, or why not."""
    try:
        began = time.monotonic()
        direct.open()
        opened = time.monotonic()
        direct.fill([region])
        seconds = time.monotonic() - opened
    except NotDirect as error:
        return str(error)
    finally:
        direct.close()
    print(f"cuFile was opened in {opened - began:.2f} s", file=sys.stderr)
    assert 0 not in region.scan(), "what was read is not there"
    return seconds


def _flipped(extents: bytes, source: Source, args: argparse.Namespace, region: Region) -> str:
    """What is said of a file in which a byte is another one."""
    at = source.size // 2 + 12345
    byte = os.pread(source.fd, 1, at)
    os.pwrite(source.fd, bytes([byte[0] ^ 1]), at)
    direct = Direct(extents, [source], compatible=True, library=args.cufile)
    found = _cufile(direct, region)
    assert isinstance(found, str), "a flipped byte was not found"
    return found


def _forget(source: Source) -> None:
    """No page of it is in the page cache, if its file system can do that (tmpfs cannot)."""
    os.posix_fadvise(source.fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cufile", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--size", type=size_of, default=GIB, help="of the region (1G)")
    parser.add_argument(
        "--threads",
        type=counts,
        default=[0],
        help="that read by cuFile, one number after the other; 0: chosen",
    )
    parser.add_argument("--folder", default="/var/tmp", help="where the file is (/var/tmp)")
    parser.add_argument("--library", default=LIBRARY, help="of the driver")
    parser.add_argument("--cufile", default=cufile.LIBRARY, help="libcufile.so.0")
    parser.add_argument("--uuid", default="", help="the GPU's, as nvidia-smi -L has it")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
