"""How far somebody else has got with a process, as tests/gpu sees it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.settled import eventually
from gpu import watching
from gpu.watching import (
    EMPTIED,
    HELD,
    Killer,
    being_checkpointed,
    emptied,
    engine,
    init_of,
    moved,
    on_gpu,
    refilled,
    resident,
    traced,
)

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


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What anyone could see of a process."""
    now = {"moved": 0, "traced": 0, "on_gpu": 1, "gpu_memory": 8}
    monkeypatch.setattr(watching, "moved", lambda _: now["moved"])
    monkeypatch.setattr(watching, "traced", lambda _: bool(now["traced"]))
    monkeypatch.setattr(watching, "on_gpu", lambda _: bool(now["on_gpu"]))
    monkeypatch.setattr(watching, "gpu_memory", lambda: now["gpu_memory"])
    return now


AWAY = [
    ({}, ""),
    ({"moved": HELD}, "held"),
    ({"moved": EMPTIED}, "held emptied"),
    ({"traced": 1}, "held emptied dumped"),
    ({"traced": 0}, "held emptied given"),
    ({"moved": 0}, "given"),
]


@pytest.mark.parametrize("stage", ["held", "emptied", "dumped", "given"])
def test_stages_of_a_dump(seen: dict[str, int], stage: str) -> None:
    reached = emptied(stage, 1)
    for change, there in AWAY:
        seen |= change
        assert reached() is (stage in there.split())


BACK = [
    (0, {}, ""),
    (0, {"gpu_memory": 5}, "filling"),
    (7, {"moved": EMPTIED, "traced": 1, "on_gpu": 0}, "filling restoring"),
    (7, {"traced": 0}, "filling"),
    (7, {"on_gpu": 1}, "returned"),
    (7, {"moved": 0}, ""),
]


@pytest.mark.parametrize("stage", ["filling", "restoring", "returned"])
def test_stages_of_a_restore(seen: dict[str, int], stage: str) -> None:
    reached = refilled(stage, 8, 8)
    for pid, change, there in BACK:
        seen |= change
        assert reached(pid) is (stage in there.split())


def test_the_marker_and_the_engine_of_those_that_have_none(tmp_path: Path) -> None:
    command = [sys.executable, "-c", GROWS, "engine", f"{tmp_path}/bundle"]
    assert engine(tmp_path, "engine") == 0
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        # The kernel lets the one who starts it go on before it has written down its command line.
        eventually(lambda: engine(tmp_path, "engine") == process.pid)
        assert engine(tmp_path, "no engine") == engine(tmp_path / "other", "engine") == 0
        assert moved(process.pid) == 0
        process.kill()
    assert moved(process.pid) == engine(tmp_path, "engine") == 0
