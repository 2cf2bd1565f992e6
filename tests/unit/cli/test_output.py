"""What verbs print."""

from __future__ import annotations

import argparse
import errno
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from shim.cli import output
from shim.errors import Unfit


@dataclass
class Item:
    name: str
    path: Path


def args(*, json: bool = False, quiet: bool = False) -> argparse.Namespace:
    return argparse.Namespace(output="json" if json else "table", quiet=quiet)


def test_data_as_lines_or_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    items = [Item("a", Path("/b"))]
    output.emit(args(), items, lambda: ["line"])
    assert capsys.readouterr() == ("line\n", "")
    output.emit(args(json=True), items, lambda: ["line"])
    said = capsys.readouterr()
    assert json.loads(said.out) == [{"name": "a", "path": "/b"}]
    assert said.err == ""


def test_prose_goes_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(args(json=True), "so\x1b")
    output.say(args(quiet=True), "not so")
    assert capsys.readouterr() == ("", "so\\x1b\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("näme → ok", "näme → ok"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[2J\x9b0m\x00", "\\x1b[2J\\x9b0m\\x00"),
        ("\u202eevil\u2028", "\\u202eevil\\u2028"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_could_steer_a_terminal(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert output.plain(text) == shown
    output.emit(args(), None, lambda: [text])
    output.emit(args(), None, lambda: output.table(("A",), [(text,)])[1:])
    output.emit(args(), None, lambda: output.facts([("A", text)]))
    assert capsys.readouterr().out == f"{shown}\n{shown}\nA  {shown}\n"


def test_a_table() -> None:
    assert output.table(
        ("NAME", "SIZE", "END"), [("a", 1, "x\n"), ("bcdef", 10, "")], {"SIZE"}
    ) == [
        "NAME   SIZE  END",
        "a         1  x\\n",
        "bcdef    10",
    ]
    assert output.table(("NAME", "SIZE"), []) == ["NAME  SIZE"]


def test_facts() -> None:
    found = output.facts([("name", "a"), ("list", ["b", "c"]), ("none", ""), ("empty", [])])
    assert found == ["name   a", "list   b", "       c", "none   -", "empty  -"]
    assert output.facts([]) == []


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (1.5 * 2**30, "1.5 GiB"),
        (2**80, "1048576.0 EiB"),
    ],
)
def test_sizes(count: float, shown: str) -> None:
    assert output.size(count) == shown
    assert output.rate(count, 1) == f"{shown}/s"
    assert output.rate(count, 0) == "-"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.004, "0.00 s"),
        (9.99, "9.99 s"),
        (9.996, "10.0 s"),
        (59.96, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3661, "1 h 1 min"),
        (200_000, "2 d"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert output.duration(seconds) == shown


@pytest.mark.parametrize(
    ("when", "shown"),
    [
        (0, "-"),
        (1e9 - 3, "3 s ago"),
        (1e9 - 119, "119 s ago"),
        (1e9 - 120, "2 min ago"),
        (1e9 - 7200, "2 h ago"),
        (1e9 - 172800, "2 d ago"),
        (1e9 + 5, "2001-09-09 01:46:45Z"),
        (1e300, "?"),
        (-1e300, "?"),
        (float("nan"), "?"),
    ],
)
def test_times(when: float, shown: str) -> None:
    assert output.ago(when, 1e9) == shown


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (Unfit("no", hint="buy one"), "no (buy one)"),
        (OSError(errno.EIO, "I/O error"), "I/O error"),
        (OSError(errno.EXDEV, "other disk", "/a", None, "/b"), "/a → /b: other disk"),
        (OSError("odd"), "odd"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_reasons(error: Exception, shown: str) -> None:
    assert output.reason_of(error) == shown
