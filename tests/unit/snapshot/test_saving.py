"""Memory is read first and written later, within a budget; native/test_save.py has the rest."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from fakes.own_memory import WINDOW, Memory, opened
from fakes.settled import eventually, own_threads

from shim.snapshot.layout import ANONYMOUS, BULK, Run, packed
from shim.snapshot.saving import SIZE, SaveFailed, Saving


def run_of(memory: Memory, length: int) -> bytes:
    return packed([Run(memory.start, 0, length, 0, 0, ANONYMOUS | BULK)])


def test_read_first_and_written_later(tmp_path: Path) -> None:
    """With a budget for all of it the tasks can go on before anything must be written."""
    memory = Memory(8)
    data = os.urandom(8 * WINDOW)
    memory.write(memory.start, data)
    runs = run_of(memory, len(data))
    with opened(tmp_path / "pages", flags=os.O_RDWR | os.O_CREAT | os.O_DIRECT) as files:
        os.ftruncate(files[0], len(data))
        with Saving(runs, [("pages", files[0])], [os.getpid()], budget=1 << 30) as saving:
            saving.wait_read()
            memory.write(memory.start, bytes(len(data)))
            assert len(saving.finish()) == 8 * SIZE
            assert saving.finish()
            saving.wait_read()
    assert (tmp_path / "pages").read_bytes() == data


@pytest.mark.parametrize("budget", [0, 10 << 20, 1 << 30])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_budgets(tmp_path: Path, budget: int, threads: int) -> None:
    memory = Memory(10)
    data = os.urandom(10 * WINDOW)
    memory.write(memory.start, data)
    runs = run_of(memory, len(data))
    with opened(tmp_path / "pages") as files:
        os.ftruncate(files[0], len(data))
        task = [os.getpid()]
        with Saving(runs, [("pages", files[0])], task, threads, budget) as saving:
            assert len(saving.finish()) == 10 * SIZE
    assert (tmp_path / "pages").read_bytes() == data


def test_no_more_threads_than_the_budget_gives(tmp_path: Path) -> None:
    """Each has a buffer of 8 MiB of its own."""
    memory = Memory(32)
    memory.write(memory.start, b"x" * 32 * WINDOW)
    others = own_threads()
    with opened(tmp_path / "pages") as files:
        os.ftruncate(files[0], 32 * WINDOW)
        runs = run_of(memory, 32 * WINDOW)
        with Saving(runs, [("pages", files[0])], [os.getpid()], 5, 16 << 20) as saving:
            assert len(own_threads() - others) <= 2
            saving.finish()


def test_closed_too_early(tmp_path: Path) -> None:
    with opened(tmp_path / "pages") as files:
        saving = Saving(b"", [("pages", files[0])])
        saving.close()
        saving.close()
        with pytest.raises(SaveFailed):
            saving.finish()


def test_cancelled(tmp_path: Path) -> None:
    """At any time; once it is closed it means nothing."""
    memory = Memory(16)
    memory.write(memory.start, b"x" * 16 * WINDOW)
    runs = run_of(memory, 16 * WINDOW)
    with opened(tmp_path / "pages") as files:
        saving = Saving(runs, [("pages", files[0])], [os.getpid()])
        saving.cancel()
        for wait in (saving.wait_read, saving.finish):
            with pytest.raises(SaveFailed) as caught:
                wait()
            assert caught.value.errno == errno.ECANCELED
        saving.close()
        saving.cancel()


def test_given_up(tmp_path: Path) -> None:
    """Closed at any time, no thread, descriptor or memory is left."""
    memory = Memory(16)
    memory.write(memory.start, b"x" * 16 * WINDOW)
    runs = run_of(memory, 16 * WINDOW)
    others = own_threads()
    with opened(tmp_path / "pages") as files:
        for _ in range(20):
            with Saving(runs, [("pages", files[0])], [os.getpid()], budget=1 << 30):
                pass
            with Saving(runs, [("pages", files[0])], [os.getpid()], budget=1 << 30) as saving:
                saving.wait_read()
    eventually(lambda: own_threads() <= others)


def test_a_failure_is_told_to_all_who_wait(tmp_path: Path) -> None:
    memory = Memory(2)
    memory.write(memory.start, b"x" * 2 * WINDOW)
    runs = run_of(memory, 2 * WINDOW)
    with (
        opened(Path("/dev/full"), flags=os.O_RDWR) as files,
        Saving(runs, [("full", files[0])], [os.getpid()], budget=1 << 30) as saving,
    ):
        for wait in (saving.finish, saving.finish, saving.wait_read):
            with pytest.raises(SaveFailed, match="full, 8388608 bytes at 0") as caught:
                wait()
            assert (caught.value.errno, caught.value.stage) == (errno.ENOSPC, 5)
