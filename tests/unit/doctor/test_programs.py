"""CRIU and runc: there, working, new enough, or not."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.nodes import FakeNode, states
from fakes.work import fake_criu

from shim.doctor import programs
from shim.errors import Unavailable

LOCK = "criu check --feature network_lock_nftables"


@pytest.mark.parametrize(("tmpfs", "state"), [(True, "ok"), (False, "bad")])
def test_where_criu_keeps_what_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmpfs: bool, state: str
) -> None:
    run = {str(tmp_path / "run")} if tmpfs else set()
    monkeypatch.setattr(programs, "on_tmpfs", run.__contains__)
    assert states(programs.criu_cache(FakeNode(tmp_path))) == [state]


def test_root(tmp_path: Path) -> None:
    assert states(programs.root(FakeNode(tmp_path))) == ["ok"]
    assert states(programs.root(FakeNode(tmp_path, user=1000))) == ["bad"]


def test_criu(tmp_path: Path) -> None:
    path = fake_criu(tmp_path)
    (found,) = programs.criu(FakeNode(tmp_path, settings={"criu": path}))
    assert found.said == f"4.2.1 at {path}"


@pytest.mark.parametrize(("says", "status"), [("Version: 4.1", 0), ("Version: 4.2", 1), ("hi", 0)])
def test_no_criu_for_us(tmp_path: Path, says: str, status: int) -> None:
    node = FakeNode(tmp_path, settings={"criu": fake_criu(tmp_path, says, status)})
    with pytest.raises(Unavailable, match="is "):
        list(programs.criu(node))


@pytest.mark.parametrize(
    ("said", "status", "state", "words"),
    [
        ("Looks good.", 0, "ok", "Looks good."),
        ("Warn (x.c:1): slow\nLooks good.", 0, "ok", "Looks good."),
        ("", 0, "ok", "no complaints"),
        ("(00.1) Error (criu/x.c:7): no timens\nLooks bad", 1, "bad", "no timens"),
        ("", 1, "bad", "ended with 1"),
    ],
)
def test_criu_check(tmp_path: Path, said: str, status: int, state: str, words: str) -> None:
    (found,) = programs.criu_check(FakeNode(tmp_path, {"criu check": (status, said)}))
    assert states([found]) == [state]
    assert words in found.said


def test_network_lock(tmp_path: Path) -> None:
    good = FakeNode(tmp_path, {LOCK: (0, "network_lock_nftables is supported")})
    assert states(programs.network_lock(good)) == ["ok"]
    (found,) = programs.network_lock(FakeNode(tmp_path, {LOCK: (1, "Error: Unknown feature")}))
    assert states([found]) == ["bad"]
    assert "Unknown feature" in found.said


def test_the_configured_criu_is_asked(tmp_path: Path) -> None:
    node = FakeNode(tmp_path, {"/x/criu check": (0, "")}, settings={"criu": "/x/criu"})
    assert states(programs.criu_check(node)) == ["ok"]


def test_runc(tmp_path: Path) -> None:
    answers = {"runc --version": (0, "runc version 1.1.5\nspec: 1"), "runc restore --help": (0, "")}
    (found,) = programs.runc(FakeNode(tmp_path, answers))
    assert states([found]) == ["bad"]
    assert "no `restore`" in found.said
    answers["runc restore --help"] = (0, "  --image-path value  path")
    (found,) = programs.runc(FakeNode(tmp_path, answers))
    assert states([found]) == ["ok"]
    assert found.said.startswith("runc version 1.1.5 at ")
    answers["runc --version"] = (1, "error: exec format")
    (found,) = programs.runc(FakeNode(tmp_path, answers))
    assert states([found]) == ["bad"]


def test_programs_that_are_not_there(tmp_path: Path) -> None:
    node = FakeNode(tmp_path, settings={"BinaryName": "other-runc"})
    for check in (programs.criu_check, programs.network_lock, programs.runc):
        (found,) = check(node)
        assert states([found]) == ["bad"]
        assert found.said.endswith("No such file or directory")
