"""The daemon's log: logfmt into containerd's FIFO, and never a danger to the container."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim import log


@pytest.fixture
def fifo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A path for containerd's FIFO; what the log opens is closed again."""
    monkeypatch.setattr(log, "_sink", -1)
    yield tmp_path / "log"
    os.close(log._sink)


def test_one_line_per_fact(logged: Callable[[], str]) -> None:
    log.info("booting cold", container="c1", reason="Unfit", hint="", count=3)
    line = logged()
    assert re.match(r'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ" level=info ', line)
    assert line.endswith(' msg="booting cold" container=c1 reason=Unfit count=3\n')


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain-word_1./:@%+,", "plain-word_1./:@%+,"),
        ("two words", '"two words"'),
        ('say "hi"', r'"say \"hi\""'),
        ("back\\slash", r'"back\\slash"'),
        ("a\nb", r'"a\nb"'),
        ("a=b", '"a=b"'),
        ("ü", "ü"),
    ],
)
def test_values_are_quoted(logged: Callable[[], str], value: str, written: str) -> None:
    log.info("x", key=value)
    assert logged().rstrip("\n").endswith(f" key={written}")


@pytest.mark.parametrize("value", ["a\rb", "a\x1b[2Jb", "a\0b", "a\x85b", "a\u2028b"])
def test_a_pods_words_reach_no_terminal(logged: Callable[[], str], value: str) -> None:
    """The name in an annotation is written by whoever may create pods."""
    log.warning("booting cold", snapshot=value)
    assert logged().rstrip("\n").isprintable()
    assert len(logged().splitlines()) == 1


def test_bytes_that_are_no_text(logged: Callable[[], str]) -> None:
    log.info("x", key="\udcff")
    assert len(logged().splitlines()) == 1


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_levels(logged: Callable[[], str], level: str) -> None:
    log.set_level(level)
    for write in (log.debug, log.info, log.warning, log.error):
        write("x")
    order = ["debug", "info", "warning", "error"]
    found = re.findall(r"level=(\w+)", logged())
    assert found == order[order.index(level) :]


def test_an_error_nobody_expected(logged: Callable[[], str]) -> None:
    def inner() -> None:
        raise RuntimeError("so it is")

    try:
        inner()
    except RuntimeError as error:
        log.exception(error, container="c1")
    line = logged()
    assert 'error="RuntimeError: so it is"' in line
    assert "container=c1" in line
    assert re.search(r'at="test_log\.py:\d+ inner < test_log\.py:\d+ test_an_error', line)


def test_a_long_line_is_still_one_line(logged: Callable[[], str]) -> None:
    log.info("x", key="y" * 10_000)
    log.info("next")
    lines = logged().splitlines(keepends=True)
    assert len(lines) == 2
    assert len(lines[0].encode()) <= 4096, "what a pipe takes in one piece"
    assert lines[0].endswith('..."\n')


def test_into_containerds_fifo(fifo: Path) -> None:
    os.mkfifo(fifo)
    log.open_fifo(str(fifo))
    log.info("before there is a reader")
    with open(fifo, "rb", 0) as reader:
        assert b"before there is a reader" in reader.read(4096)
    log.info("after it has gone")
    with open(fifo, "rb", 0) as reader:
        assert b"after it has gone" in reader.read(4096)


def test_a_log_that_nobody_reads(fifo: Path) -> None:
    os.mkfifo(fifo)
    log.open_fifo(str(fifo))
    for _ in range(200):
        log.info("x" * 4000)  # more than a pipe holds: it neither blocks nor raises


def test_no_fifo(fifo: Path) -> None:
    log.open_fifo(str(fifo))
    log.info("into nothing")
    assert os.readlink(f"/proc/self/fd/{log._sink}") == "/dev/null"
