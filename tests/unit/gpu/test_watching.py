"""How far somebody else has got with a process, as tests/gpu sees it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from gpu.watching import Killer, being_checkpointed, init_of, on_gpu, resident, traced

GROWS = (
    "import sys; sys.stdin.readline(); held = bytearray(b'x') * (64 << 20); sys.stdin.readline()"
)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", GROWS], stdin=subprocess.PIPE) as started:
        yield started
        started.kill()


def test_it_is_killed_once_its_memory_grows(process: subprocess.Popen[bytes]) -> None:
    condition = being_checkpointed(process.pid, 64 << 20)
    assert condition() == 0
    assert process.stdin is not None
    with Killer(condition) as killer:
        process.stdin.write(b"grow\n")
        process.stdin.flush()
        assert process.wait(60) == -9
    assert killer.killed == process.pid


def test_nobody_is_killed_when_the_block_ends_first(process: subprocess.Popen[bytes]) -> None:
    with Killer(lambda: 0) as killer:
        pass
    assert killer.killed == 0
    assert process.poll() is None


def test_what_is_seen_of_a_process(process: subprocess.Popen[bytes]) -> None:
    assert resident(process.pid) > 0
    assert not traced(process.pid)
    assert not on_gpu(process.pid)
    assert init_of("no such container") == 0
    process.kill()
    process.wait()
    assert resident(process.pid) == 0
