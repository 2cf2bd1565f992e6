"""The figures of a run on a GPU: what the tables and the picture make of a document."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from gpu import table
from gpu.cells import GIB, markdown
from gpu.drawing import Bar, svg
from gpu.figures import faults, middle, outside, overview, parts, phases, rates, starts
from gpu.lane import fields
from gpu.record import Record
from gpu.report import report

LINE = (
    'time="2026-11-21T13:00:00Z" level=info msg=restored container=c1 snapshot=8b seconds=4.500 '
    'timeline="plan=0.100 control=0.010 criu=1.000 device=3.100 adopt=0.010 canary=0.000" '
    'memory=native gib=18.000 fill=0.900 cuda="init=0.000 restore=3.000 unlock=0.100" '
    'sockets="0 moved, \\"x\\" kept"'
)
RESTORED = fields(LINE)
RESTORE: dict[str, Any] = {
    "cache": "warm",
    "pod": 0.25,
    "created": 0.5,
    "started": 5.0,
    "answered": 5.5,
    "restored": RESTORED,
}
STOCK = {"criu": 9.0, "restore": 2.0, "unlock": 0.0, "first answer": 0.1, "answered": 11.0}
FOUND: dict[str, Any] = {
    "machine": {"processors": 16, "memory_gib": 126.0, "kernel": "6.18", "gpus": ["H100, 580"]},
    "ceilings": {"disk": 2.0, "memcpy": 20.0, "memcpy huge": 25.0, "pinned": 50.0},
    "workers": {
        "8b": {
            "thaw": {
                "cold": {"pod": 0.5, "created": 0.75, "started": 1.0, "answered": 20.0},
                "snapshot": {
                    "seconds": 20.0,
                    "steps": {"lock": 0.001, "device": 9.0, "pages": 9.0, "dump": 10.0},
                    "bytes": 18 * GIB,
                    "gpu": {"memory": {"GPU-1": 15 * GIB}},
                },
                "restores": [{**RESTORE, "answered": 6.0}, RESTORE, {**RESTORE, "answered": 5.25}],
            },
            "stock": {
                "checkpoint": {"checkpoint": 8.0, "dump": 9.0},
                "restores": [{"cache": "warm", **STOCK}],
                "bytes": 19 * GIB,
            },
        }
    },
    "faults": {"managed": {"good": False, "seconds": 2.0, "outcome": "a | b"}},
}


def test_a_line_of_the_log() -> None:
    assert RESTORED["gib"] == 18.0
    assert RESTORED["timeline"]["device"] == 3.1
    assert RESTORED["cuda"] == {"init": 0.0, "restore": 3.0, "unlock": 0.1}
    assert RESTORED["sockets"] == '0 moved, "x" kept'


def test_the_phases_are_all_of_the_time() -> None:
    told = dict(parts(RESTORE))
    assert sum(told.values()) == pytest.approx(5.5)
    assert told["plan, files"] == pytest.approx(0.11)
    assert told["CUDA restore"] == 3.0
    assert told["first token"] == 0.5
    assert outside(RESTORE) == 2.5
    assert outside({}) is None


def test_the_middle_restore_stands_beside_the_middle_one_of_stock() -> None:
    _, row = overview(FOUND)
    assert row[:6] == ("8b", "15.0", "20.00", "5.50", "-", "11.00")
    assert row[6] == "2.0 \u00d7"
    assert row[-1] == "2.50"
    _, rate, top = rates(FOUND)
    assert rate == ("8b", "20.0 (80%)", "-", "5.0 (10%)", "1.7", "2.0 (100%)")
    assert top[0] == "ceiling"
    assert ("CRIU and fill", "1.00") in phases(FOUND)
    assert starts(FOUND)[1] == ("8b", "0.50", "0.25", "0.25", "19.00", "20.00")


def test_of_two_restores_the_slower_counts() -> None:
    times = [{"cache": "warm", "answered": answered} for answered in (3.0, 1.0)]
    assert middle({"restores": times}, "warm")["answered"] == 3.0
    assert middle({"restores": times}, "cold") == {}


def test_a_document_in_which_little_is() -> None:
    assert report({}) == []
    assert phases({"workers": {"x": {}}}) == []
    lines = report({**FOUND, "workers": {"8b": {"thaw": {"cold": {"answered": 1.0}}}}})
    assert any("| 8b | - | 1.00 | - |" in line for line in lines)


def test_markdown() -> None:
    lines = markdown(faults(FOUND))
    assert lines[1] == "| --- | --: | --- |"
    assert lines[2] == "| managed | 2.0 | NOT AS IT SHOULD BE: a / b |"


def test_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "found.json"
    Record(str(document), FOUND).save()
    picture = tmp_path / "picture.svg"
    assert table.main([str(document), "--svg", str(picture)]) == 0
    assert "| 8b | 15.0 |" in capsys.readouterr().out
    told = "".join(ET.fromstring(picture.read_text()).itertext())
    assert "8b, page cache" in told
    assert "CUDA restore: 3.000 s" in told
    assert "11.10 s" in told  # its parts, as they were measured
    again = svg([Bar("<&>", [("CRIU", 1.0)])], "t")
    assert ET.fromstring(again) is not None


def test_workers_stand_apart() -> None:
    bars = [Bar(name, [("CRIU", 1.0)], apart) for name, apart in (("a", True), ("b", False))]
    places = [float(rect.attrib["y"]) for rect in _bars(svg([*bars, *bars], "t"))]
    near, far, again = (below - above for above, below in pairwise(places))
    assert near == again < far


def _bars(picture: str) -> list[ET.Element]:
    rects = ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}rect")
    return [rect for rect in rects if rect.find("{http://www.w3.org/2000/svg}title") is not None]


def test_a_record_is_gone_on_with(tmp_path: Path) -> None:
    path = str(tmp_path / "found.json")
    first = Record.opened(path)
    first.put(1.5, "workers", "a", "cold")
    first.add("x", "list")
    second = Record.opened(path)
    second.put(2.5, "workers", "a", "warm")
    assert Record.opened(path).found == {
        "workers": {"a": {"cold": 1.5, "warm": 2.5}},
        "list": ["x"],
    }
    assert [entry.name for entry in tmp_path.iterdir()] == ["found.json"]
