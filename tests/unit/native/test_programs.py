"""The programs are static and small: they run many times for a moment, or stay for long."""

from __future__ import annotations

import struct
import sysconfig
from pathlib import Path

import pytest

from shim.native import HOOK, KEEPER

LAUNCHER = Path(sysconfig.get_path("scripts"), "containerd-shim-thaw-v1")
PROGRAMS = [LAUNCHER, Path(HOOK), Path(KEEPER)]
PT_INTERP = 3


def segment_types(program: Path) -> list[int]:
    """The types of an ELF file's program headers."""
    data = program.read_bytes()
    (start,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    return [struct.unpack_from("<I", data, start + n * size)[0] for n in range(count)]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_no_loader_is_needed(program: Path) -> None:
    if not program.exists():
        pytest.skip(f"{program} is not installed")
    assert PT_INTERP in segment_types(Path("/bin/sh").resolve())
    assert PT_INTERP not in segment_types(program)
    assert program.stat().st_size < 1 << 20
