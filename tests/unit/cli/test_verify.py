"""`thaw verify`: the answer, for people, scripts and `&&`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fakes.command import Thaw
from fakes.snapshots import make

from shim.cli import exits


def spoilt(thaw: Thaw, name: str) -> Path:
    """A snapshot of which a byte is another one."""
    path = thaw.store.path_of(make(thaw.store, name)) / "rootfs.tar.0000"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    return path


def test_good(thaw: Thaw) -> None:
    id = make(thaw.store, "one")
    said = thaw("verify", "one")
    assert (said.status, said.err) == (exits.OK, "")
    assert re.fullmatch(r"one: good \(.* KiB in \d+\.\d+ s, .*B/s\)", said.lines[0])
    assert said.lines[1].startswith("one: pages have no checksums before it is sealed")
    (found,) = thaw("verify", id, "-o", "json").json
    assert (found["name"], found["id"], found["digest"], found["faults"]) == (id, id, "", [])


def test_sealing(thaw: Thaw) -> None:
    id = make(thaw.store, "one")
    (found,) = thaw("verify", "one", "--seal", "-o", "json", "-q").json
    assert found["digest"] == thaw.store.snapshot(id).digest != ""
    said = thaw("verify", f"one@{found['digest']}", "--threads", "2")
    assert said.status == exits.OK
    assert said.lines[0].endswith(f"  {found['digest']}")


def test_damaged(thaw: Thaw) -> None:
    make(thaw.store, "one")
    path = spoilt(thaw, "two")
    said = thaw("verify", "two", "one", "--seal")
    assert said.status == exits.UNFIT
    assert said.lines[0] == f"two: {path} has another checksum"
    assert said.lines[1].startswith("one: good")
    assert thaw.store.snapshot(thaw.store.names()["two"]).digest == "", "it is not sealed"


def test_all(thaw: Thaw) -> None:
    make(thaw.store, "one")
    nameless = make(thaw.store, None)
    elsewhere = make(thaw.second, "two")
    assert thaw("verify", "--all").status == exits.OK
    (thaw.second.path_of(elsewhere) / "config.json").write_text("{")
    said = thaw("verify", "--all", "-o", "json")
    assert said.status == exits.UNFIT
    found = {line["name"]: line["faults"] for line in said.json}
    assert (found["one"], found[nameless]) == ([], [])
    assert "config.json" in found["two"][0]


def test_one_that_is_not_there(thaw: Thaw) -> None:
    make(thaw.store, "one")
    said = thaw("verify", "none", "one")
    assert said.status == exits.MISSING
    assert "no snapshot named none" in said.err
    assert len([line for line in said.lines if "good" in line]) == 1
    spoilt(thaw, "two")
    assert thaw("verify", "none", "two").status == exits.UNFIT, "that counts more"


@pytest.mark.parametrize("words", [[], ["one", "--all"]])
def test_which(thaw: Thaw, words: list[str]) -> None:
    assert thaw("verify", *words).status == exits.USAGE


@pytest.mark.parametrize("number", ["-1", "2000", "x"])
def test_threads(thaw: Thaw, number: str) -> None:
    with pytest.raises(SystemExit) as caught:
        thaw("verify", "one", f"--threads={number}")
    assert caught.value.code == exits.USAGE
