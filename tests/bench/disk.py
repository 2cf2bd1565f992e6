"""What the benchmark needs of the disk: files in the page cache or out of it, and fio's word."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .bare import Failed

_MIB = 1 << 20
_BLOCK = 4 * _MIB
_PIECE = 16 * _BLOCK
_READERS = 8  # threads: one reads a cache of tens of GiB for seconds
# The first keeps a single disk busy; striped ones and those behind a network need more.
_JOBS = (4, 16)


def files_below(folders: Iterable[Path]) -> list[Path]:
    """All regular files in some folders."""
    found = [path for folder in folders for path in folder.rglob("*")]
    return [path for path in found if path.is_file() and not path.is_symlink()]


def warm(files: Iterable[Path]) -> None:
    """Bring files into the page cache, as far as it has room."""
    pieces = [(path, at) for path in files for at in range(0, path.stat().st_size, _PIECE)]
    with ThreadPoolExecutor(_READERS) as pool:
        list(pool.map(_read, pieces))


def _read(piece: tuple[Path, int]) -> None:
    path, at = piece
    buffer = bytearray(_BLOCK)
    with open(path, "rb", buffering=0) as file:
        file.seek(at)
        for _ in range(_PIECE // _BLOCK):
            if not file.readinto(buffer):
                break


def cool(files: Iterable[Path]) -> None:
    """Take files out of the page cache, and only these; what is dirty is written first."""
    for path in files:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def in_memory(folder: Path) -> bool:
    """Whether a folder has no disk below it, so that nothing there is ever cold."""
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[2] == wanted:
            return words[words.index("-") + 1] in ("tmpfs", "ramfs")
    return False


def fio_rate(files: Sequence[Path]) -> float | None:
    """GiB/s that fio reads with O_DIRECT, the best of some numbers of jobs; None: no fio here."""
    if shutil.which("fio") is None:
        return None
    return max(_fio(files, jobs) for jobs in _JOBS)


def _fio(files: Sequence[Path], jobs: int) -> float:
    command = ["fio", "--output-format=json", "--direct=1", "--bs=4M", "--rw=read"]
    command += ["--ioengine=psync", "--thread", "--group_reporting", "--invalidate=1"]
    pieces = [piece for file in files for piece in _pieces(file, max(1, jobs // len(files)))]
    for number, (file, offset, size) in enumerate(pieces):
        command += [f"--name=job{number}", f"--filename={file}"]
        command += [f"--offset={offset}", f"--size={size}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"fio failed: {done.stderr or done.stdout}")
    read = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]
    return float(read["io_bytes"]) / (float(read["runtime"]) / 1000) / (1 << 30)


def _pieces(file: Path, count: int) -> Iterable[tuple[Path, int, int]]:
    """A file in equal pieces of whole blocks; what is left at its end is not read."""
    blocks = file.stat().st_size // _BLOCK
    count = min(count, blocks)
    each = blocks // count * _BLOCK if count else 0
    return [(file, number * each, each) for number in range(count)]
