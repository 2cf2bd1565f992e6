"""`thaw show`: the facts, and the document."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from fakes.command import Thaw
from fakes.snapshots import CONFIG, config, make

from shim.cli import exits
from shim.snapshot.artifact import seal
from shim.snapshot.config import Gpu

GOLDEN = Path(__file__).resolve().parents[2] / "data" / "cli" / "show.txt"
FULL = config(
    env=["HOME", "PATH"],
    namespace="team-a",
    service_account="worker",
    host=CONFIG.host.__class__(
        "x86_64", "6.1.0", "4.2", ["avx"], ["memfd"], 2, [Gpu("H100", 80 << 30, "550", 2)]
    ),
)


def test_the_facts(thaw: Thaw) -> None:
    id = make(thaw.store, "one", FULL)
    thaw.store.tag("two", id)
    said = thaw("show", "two")
    assert (said.status, said.err) == (0, "")
    shown = said.out.replace(id, "0123456789abcdef").replace(str(thaw.store.folder), "STORE")
    shown = shown.replace(str(thaw.store.stripes[0]), "STRIPE")
    size = next(line for line in shown.splitlines() if line.startswith("size "))
    assert shown.replace(size, "size             12.0 KiB") == GOLDEN.read_text()


@pytest.mark.parametrize(
    ("said", "shown"),
    [("restored", "restored beside its original"), ("not restored: a reason",) * 2],
)
def test_whether_it_was_tried(thaw: Thaw, said: str, shown: str) -> None:
    make(thaw.store, "tried", config(verified=said))
    assert f"verified         {shown}\n" in thaw("show", "tried").out


def test_the_document(thaw: Thaw) -> None:
    id = make(thaw.store, "one", FULL)
    digest = seal(thaw.store.snapshot(id))
    found = thaw("show", f"one@{digest}", "-o", "json").json
    wanted = asdict(thaw.store.snapshot(id).config)
    assert found["config"] == wanted
    assert {name: found[name] for name in ("id", "names", "digest", "shared", "used")} == {
        "id": id,
        "names": ["one"],
        "digest": digest,
        "shared": False,
        "used": 0.0,
    }
    assert found["path"] == str(thaw.store.path_of(id))


def test_without_a_name(thaw: Thaw) -> None:
    id = make(thaw.store, None)
    assert thaw("show", id).lines[0] == "name             -"


@pytest.mark.parametrize(
    ("name", "words", "status"),
    [
        ("two", "thaw show: no snapshot named two", exits.MISSING),
        ("../one", "bad snapshot reference", exits.USAGE),
        ("bad", "config.json", exits.UNFIT),
    ],
)
def test_there_is_none(thaw: Thaw, name: str, words: str, status: int) -> None:
    bad = make(thaw.store, "bad")
    (thaw.store.path_of(bad) / "config.json").write_text("{}")
    said = thaw("show", name)
    assert (said.status, said.out) == (status, "")
    assert words in said.err
