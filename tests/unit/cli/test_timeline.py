"""`thaw timeline`: from a snapshot, a file, or standard input."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from fakes.command import Thaw
from fakes.snapshots import config, make

from shim.cli import exits
from shim.timeline import Span

SPANS = [Span("pages", 0.25, 0.5), Span("dump", 0.0, 1.0)]


def test_of_a_snapshot(thaw: Thaw) -> None:
    make(thaw.store, "one", config(spans=SPANS))
    said = thaw("timeline", "one")
    assert (said.status, said.err) == (0, "")
    assert said.lines == [
        "STEP     START  SECONDS",
        f"dump     0.000    1.000  {'█' * 40}",
        f"  pages  0.250    0.500  {' ' * 10}{'█' * 20}",
    ]
    assert thaw("timeline", "one", "-o", "json").json == [
        {"name": "dump", "start": 0.0, "seconds": 1.0},
        {"name": "pages", "start": 0.25, "seconds": 0.5},
    ]


def test_of_what_show_prints(thaw: Thaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(thaw.store, "one", config(spans=SPANS))
    shown = thaw("timeline", "one").out
    document = thaw("show", "one", "-o", "json").out
    (tmp_path / "one.json").write_text(document)
    assert thaw("timeline", str(tmp_path / "one.json")).out == shown
    monkeypatch.setattr(sys, "stdin", io.StringIO(document))
    assert thaw("timeline", "-").out == shown


def test_drawn_and_traced(thaw: Thaw, tmp_path: Path) -> None:
    make(thaw.store, "one", config(spans=SPANS))
    svg, trace = tmp_path / "one.svg", tmp_path / "one.trace"
    assert thaw("timeline", "one", "--svg", str(svg), "--trace", str(trace)).status == 0
    assert svg.read_text().startswith("<svg ")
    names = [event["name"] for event in json.loads(trace.read_text())["traceEvents"]]
    assert names == ["process_name", "thread_name", "dump", "pages"]


def test_words_of_a_document_stay_on_their_line(thaw: Thaw) -> None:
    make(thaw.store, "one", config(spans=[Span("\x1b[2J\n", 0, 1)]))
    assert thaw("timeline", "one").lines[1].startswith("\\x1b[2J\\n")


def test_there_are_none(thaw: Thaw, tmp_path: Path) -> None:
    make(thaw.store, "one", config(spans=[]))
    assert thaw("timeline", "one").status == exits.UNFIT
    assert thaw("timeline", "two").status == exits.MISSING
    assert thaw("timeline", str(tmp_path / "none.json")).status == exits.MISSING
    (tmp_path / "bad.json").write_bytes(b"\xff{")
    said = thaw("timeline", str(tmp_path / "bad.json"))
    assert (said.status, said.out) == (exits.UNFIT, "")
    assert "bad.json" in said.err
