"""How fast this machine can be at best, measured in the run: nobody restores faster than that.

disk         GiB/s of the snapshot's own files, read past the page cache by some threads
memcpy       into fresh memory, 4 KiB and huge pages, one thread for each processor
pinned       pinned memory → GPU, one stream (PyTorch's own copy)
pageable     ordinary memory → GPU and back, as it is without pinning
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.bare import Failed
from bench.programs import compiled, memcpy_rate
from gpu.machine import Machine

GIB = 1 << 30
_PIECE = 8 << 20
_MOST = 3 * GIB  # of the disk
_THREADS = 4
_COPY = """
import json, time, torch
def rate(to, of):
    to.copy_(of); torch.cuda.synchronize(); best = 0.0
    for _ in range(3):
        began = time.monotonic(); to.copy_(of, non_blocking=True); torch.cuda.synchronize()
        best = max(best, of.numel() / (time.monotonic() - began) / 2**30)
    return round(best, 2)
size = 2 << 30
here = torch.empty(size, dtype=torch.uint8, device="cuda")
plain = torch.zeros(size, dtype=torch.uint8)
pinned = plain.pin_memory()
print(json.dumps({"pinned": rate(here, pinned), "pinned back": rate(pinned, here),
                  "pageable": rate(here, plain), "pageable back": rate(plain, here)}))
"""


def ceilings(machine: Machine, files: Sequence[Path]) -> dict[str, Any]:
    """GiB/s by name; what cannot be measured here is left out."""
    found: dict[str, Any] = {"threads": os.cpu_count() or 1, "disk": disk(files)}
    found |= memory(found["threads"])
    if machine.library is not None:
        found |= _copies(machine)
    return found


def disk(files: Sequence[Path], most: int = _MOST) -> float:
    """GiB/s of O_DIRECT reads, the best of two runs with different numbers of threads."""
    pieces = [
        (path, at)
        for path in sorted(files, key=lambda path: -path.stat().st_size)
        for at in range(0, path.stat().st_size // _PIECE * _PIECE, _PIECE)
    ][: most // _PIECE]
    if not pieces:
        return 0.0
    half = max(1, len(pieces) // 2)
    return round(max(_read(pieces[:half], _THREADS), _read(pieces[half:], 4 * _THREADS)), 2)


def _read(pieces: Sequence[tuple[Path, int]], threads: int) -> float:
    def read(share: Sequence[tuple[Path, int]]) -> int:
        done = 0
        with mmap.mmap(-1, _PIECE) as buffer:
            for path, at in share:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
                try:
                    done += os.preadv(fd, [buffer], at)
                finally:
                    os.close(fd)
        return done

    began = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        size = sum(pool.map(read, [pieces[n::threads] for n in range(threads)]))
    return size / (time.monotonic() - began) / GIB


def memory(threads: int, size: int = 4 * GIB) -> dict[str, float]:
    """GiB/s of a parallel memcpy; nothing where there is no compiler."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            program = compiled("ceiling", Path(folder))
            return {
                "memcpy": round(memcpy_rate(program, size, threads, huge=False), 2),
                "memcpy huge": round(memcpy_rate(program, size, threads, huge=True), 2),
            }
        except Failed:
            return {}


def _copies(machine: Machine) -> dict[str, float]:
    environment = {**os.environ, **machine.environment}
    done = subprocess.run(
        [machine.python, "-c", _COPY], capture_output=True, text=True, check=True, env=environment
    )
    told: dict[str, float] = json.loads(done.stdout)
    return told


def about(machine: Machine) -> dict[str, Any]:
    """What this machine is, for the head of a table."""
    found: dict[str, Any] = {
        "processors": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "kernel": os.uname().release,
    }
    program = shutil.which("nvidia-smi") or "/usr/local/nvidia/bin/nvidia-smi"
    if machine.library is not None and Path(program).exists():
        asked = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
        told = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
        found["gpus"] = [line.strip() for line in told.splitlines()]
    return found
