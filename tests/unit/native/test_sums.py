"""The kernel that finds checksums, as the driver gets it, and the sums of slices put together."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from fakes.ptx import run

from shim._native import lib

NATIVE = Path(__file__).parents[3] / "native"
SLICE = 4096
NOISE = random.Random(7).randbytes(3 * SLICE)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The kernel, as the compiler has put it together."""
    folder = tmp_path_factory.mktemp("sums")
    (folder / "print.c").write_text(
        '#include "sums.h"\n#include <stdio.h>\nint main(void) { return puts(SUMS_PTX) < 0; }\n'
    )
    built = ["cc", f"-I{NATIVE}", "-o", str(folder / "print"), str(folder / "print.c")]
    subprocess.run(built, check=True)
    return subprocess.run([folder / "print"], capture_output=True, text=True, check=True).stdout


def crc32c(data: bytes) -> int:
    return lib.thaw_crc32c(0, data, len(data))


@pytest.mark.parametrize(
    "data", [bytes(SLICE), b"\xff" * SLICE, NOISE[:SLICE]], ids=["zeros", "ones", "noise"]
)
def test_a_thread_finds_that_of_its_slice(text: str, data: bytes) -> None:
    """The second of a block of two: the first one's bytes and sum are not its business."""
    memory = bytearray(b"x" * SLICE + data + b"y" * 8)
    parameters = {"data": 0, "sums": 2 * SLICE, "count": 2}
    run(text, parameters, memory, ctaid_x=0, ntid_x=32, tid_x=1)
    assert memory[: 2 * SLICE] == b"x" * SLICE + data
    assert memory[2 * SLICE :] == b"y" * 4 + crc32c(data).to_bytes(4, "little")


def test_a_thread_of_another_block(text: str) -> None:
    memory = bytearray(NOISE + bytes(12))
    parameters = {"data": 0, "sums": 3 * SLICE, "count": 3}
    run(text, parameters, memory, ctaid_x=1, ntid_x=2, tid_x=0)
    assert memory[3 * SLICE :] == bytes(8) + crc32c(NOISE[2 * SLICE :]).to_bytes(4, "little")


def test_threads_that_are_too_many_do_nothing(text: str) -> None:
    memory = bytearray(NOISE)
    run(text, {"data": 0, "sums": 0, "count": 3}, memory, ctaid_x=0, ntid_x=32, tid_x=3)
    assert memory == NOISE
