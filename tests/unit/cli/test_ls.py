"""`thaw ls`: a line for each name, also of what cannot be read."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from fakes.command import Thaw
from fakes.snapshots import config, make

GOLDEN = Path(__file__).resolve().parents[2] / "data" / "cli" / "ls.txt"


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two days after what fakes.snapshots.CONFIG was made."""
    monkeypatch.setattr(time, "time", lambda: 1785758400.0)


def test_no_store_yet(thaw: Thaw) -> None:
    said = thaw("ls")
    assert (said.status, said.err) == (0, "")
    assert said.lines == [
        "NAME  ID  DIGEST  CONTAINER  NAMESPACE  MADE  USED  SIZE  IMAGE",
    ]
    assert thaw("ls", "-q").out == ""
    assert thaw("ls", "-o", "json").json == []


def test_a_table(thaw: Thaw) -> None:
    plain = make(thaw.store, "b", config(namespace="team-a"))
    other = make(thaw.store, "a-long-name", config(container="", image="registry/other:2"))
    thaw.store.tag("z", plain, replace=False)
    thaw.store.mark_shared(plain, True)
    used = thaw.store.path_of(plain) / "used"
    thaw.store.mark_used(plain)
    os.utime(used, (0, time.time() - 7200))
    size = f"{thaw.store.entries()[0].size / 1024:.1f} KiB"
    shown = thaw("ls").out.replace(plain, "0" * 16).replace(other, "1" * 16)
    assert shown.replace(size, "12.0 KiB") == GOLDEN.read_text()
    assert thaw("ls", "-q").lines == ["a-long-name", "b", "z"]
    assert thaw("ls", "-q", "-o", "json").json == ["a-long-name", "b", "z"]


def test_those_without_a_name(thaw: Thaw) -> None:
    id = make(thaw.store, None)
    make(thaw.store, "one")
    assert thaw("ls", "-q").lines == ["one"]
    assert thaw("ls", "-q", "--all").lines == ["one", id]
    assert thaw("ls", "--all").lines[2].split()[:3] == ["-", id, "-"]


def test_artifacts_by_what_they_are_called(thaw: Thaw) -> None:
    make(thaw.store, "registry.local:5000/team/Worker:V1".lower())
    assert thaw("ls", "-q").lines == ["registry.local:5000/team/worker:v1"]


def test_several_stores(thaw: Thaw) -> None:
    make(thaw.store, "one")
    assert thaw("ls").lines[0].split()[-1] == "IMAGE"
    make(thaw.second, "two")
    lines = thaw("ls").lines
    assert [line.split()[-1] for line in lines] == [
        "STORE",
        str(thaw.store.folder),
        str(thaw.second.folder),
    ]


def test_one_that_cannot_be_read_hides_no_other(thaw: Thaw) -> None:
    make(thaw.store, "good")
    bad = make(thaw.store, "bad")
    (thaw.store.path_of(bad) / "config.json").write_text("{")
    thaw.store.tag("lost", bad)
    (thaw.store.folder / "names" / "lost").write_text("0123456789abcdef\n")
    said = thaw("ls")
    assert (said.status, said.err) == (0, "")
    assert [line.split()[0] for line in said.lines[1:]] == ["bad", "good", "lost"]
    assert "damaged: " in said.lines[1]
    assert "config.json" in said.lines[1]
    assert "damaged: there is no snapshot 0123456789abcdef any more" in said.lines[3]
    found = {line["name"]: line for line in thaw("ls", "-o", "json").json}
    assert "config.json" in found["bad"]["error"]
    assert found["good"]["error"] == ""
    assert found["good"]["created"] == 1785585600.0


def test_words_from_a_document_stay_on_their_line(thaw: Thaw) -> None:
    """An image's name comes from whoever made the pod: it must not steer the terminal."""
    make(thaw.store, "odd", config(image="a\nb\x1b[2J"))
    lines = thaw("ls").lines
    assert len(lines) == 2
    assert lines[1].isprintable()
    assert lines[1].endswith("a\\nb\\x1b[2J")
