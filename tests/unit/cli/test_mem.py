"""`thaw mem`: where the bytes are."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import looked
from fakes.command import Thaw
from fakes.looked import KIB, SHARED_SIZE


@pytest.fixture
def one(thaw: Thaw) -> Thaw:
    looked.snapshot(thaw.store, "one")
    return thaw


def test_by_kind(one: Thaw) -> None:
    found = one("mem", "one", "-o", "json").json
    kinds = {line["kind"]: line["bytes"] for line in found["kinds"]}
    assert [line["kind"] for line in found["kinds"]][:2] == ["anonymous", "memfd"], "largest first"
    assert kinds["anonymous"] == {
        "size": 1024 * KIB, "resident": 1024 * KIB, "bulk": 512 * KIB, "left": 0, "zero": 512 * KIB
    }  # fmt: skip
    assert kinds["memfd"]["resident"] == SHARED_SIZE, "two processes map it, it is there once"
    total = found["memory"]
    assert total["resident"] == sum(k["resident"] for k in kinds.values())
    assert total["resident"] == total["bulk"] + total["left"] + total["zero"]


def test_by_process_and_mapping(one: Thaw) -> None:
    found = one("mem", "one", "-o", "json", "--top", "2").json
    assert [(line["process"], line["kind"]) for line in found["processes"]] == [
        ("1 server", "private"),
        ("1 7", "memfd"),
        ("7 worker", "private"),
        ("9 ", "private"),
    ]
    assert [line["kind"] for line in found["mappings"]] == ["anonymous", "memfd"]
    assert found["mappings"][1]["what"].endswith("rw-s weights")
    assert found["disk"]["pages"] > 800 * KIB
    assert found["disk"]["volumes"] > 0


def test_a_table(one: Thaw) -> None:
    said = one("mem", "one")
    assert (said.status, said.err) == (0, "")
    assert said.lines[0].split() == ["KIND", "MAPPED", "RESIDENT", "BULK", "CRIU", "ZERO"]
    assert said.lines[1].split()[:4] == ["anonymous", "1.0", "MiB", "1.0"]
    assert any(line.startswith("in memory: 1.4 MiB of ") for line in said.lines)
    assert said.lines[-1].startswith("on disk: pages ")
    assert "rw-p" not in one("mem", "one", "--top", "0").out


def test_a_folder_of_images(thaw: Thaw, tmp_path: Path) -> None:
    looked.images(tmp_path / "bare")
    said = thaw("mem", str(tmp_path / "bare"))
    assert said.lines[-2].startswith("on disk: images ")


def test_a_wrong_call(one: Thaw) -> None:
    said = one("mem", "one", "--top", "-1")
    assert (said.status, said.out) == (2, "")
    assert one("mem", "two").status == 3
