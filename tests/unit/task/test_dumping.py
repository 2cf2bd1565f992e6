"""When a dump can still be broken off: who is quicker, the daemon or the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shim.errors import Cancelled
from shim.task.dumping import BEGUN, STOPPED, Dumping, is_marked, mark, unmark


class Engine:
    """An engine that only notes that it is not needed any longer."""

    def __init__(self) -> None:
        self.dismissed = False

    def dismiss(self) -> None:
        self.dismissed = True


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path)


@pytest.fixture
def dumping(folder: str) -> Dumping:
    return Dumping(folder)


def begin(dumping: Dumping, *, unasked: bool = False) -> Engine:
    engine: Any = Engine()
    dumping.begin(engine, unasked=unasked)
    assert isinstance(engine, Engine)
    return engine


@pytest.mark.parametrize("criu", [False, True])
@pytest.mark.parametrize("unasked", [False, True])
def test_the_end(dumping: Dumping, folder: str, criu: bool, unasked: bool) -> None:
    engine = begin(dumping, unasked=unasked)
    if criu:
        mark(folder, BEGUN)
    dumping.end()
    assert engine.dismissed == (not criu)
    dumping.done()
    with pytest.raises(Cancelled):
        begin(dumping)


@pytest.mark.parametrize("criu", [False, True])
@pytest.mark.parametrize("unasked", [False, True])
def test_a_stop(dumping: Dumping, folder: str, criu: bool, unasked: bool) -> None:
    engine = begin(dumping, unasked=unasked)
    if criu:
        mark(folder, BEGUN)
    dumping.stop()
    assert engine.dismissed == (unasked and not criu)
    assert is_marked(folder, STOPPED), "the engine will look whether it is there"
    dumping.done()
    begin(dumping)
    with pytest.raises(Cancelled):
        begin(dumping, unasked=True)


def test_one_dump_after_another(dumping: Dumping, folder: str) -> None:
    """What the first has left says nothing of the second."""
    first = begin(dumping)
    mark(folder, BEGUN)
    dumping.done()
    assert not is_marked(folder, BEGUN)
    mark(folder, BEGUN)
    second = begin(dumping)
    dumping.end()
    assert (first.dismissed, second.dismissed) == (False, True)


def test_nothing_is_dumped(dumping: Dumping) -> None:
    begin(dumping, unasked=True)
    dumping.done()
    dumping.stop()
    dumping.end()


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    dumping = Dumping(str(tmp_path / "gone"))
    engine = begin(dumping, unasked=True)
    dumping.stop()
    assert engine.dismissed
    dumping.done()


def test_marks(folder: str) -> None:
    assert not is_marked(folder, BEGUN)
    for _ in range(2):
        mark(folder, BEGUN)
        assert is_marked(folder, BEGUN)
    for _ in range(2):
        unmark(folder, BEGUN)
        assert not is_marked(folder, BEGUN)
