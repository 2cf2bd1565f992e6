"""`thaw doctor`: what it prints of a node, and its status."""

from __future__ import annotations

from pathlib import Path

import pytest

from shim import doctor
from shim.cli import main
from shim.doctor import Check, Node
from shim.doctor.verdict import Verdict, absent, bad, ok


def checks(*verdicts: tuple[str, str, Verdict]) -> tuple[Check, ...]:
    def ask(verdict: Verdict) -> list[Verdict]:
        return [verdict]

    return tuple(Check(n, g, lambda _, v=v: ask(v)) for n, g, v in verdicts)  # type: ignore[misc]


FINE = ("kernel", doctor.REQUIRED, ok("6.1"))
SLOW = ("memory", doctor.RECOMMENDED, bad("1 GiB is free", "buy more\x1b[2J"))
NO_GPU = ("GPU", doctor.OPTIONAL, absent("no GPU here", "plug one in"))
NO_CRIU = ("criu", doctor.REQUIRED, bad("none", "install it"))


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    def run(found: tuple[Check, ...], *words: str) -> tuple[int, str]:
        examine = doctor.examine
        monkeypatch.setattr(doctor, "examine", lambda node: examine(node, found))
        status = main(["doctor", *words])
        monkeypatch.setattr(doctor, "examine", examine)
        return status, capsys.readouterr().out

    return run


def test_a_good_node(node: object) -> None:
    assert callable(node)
    assert node(checks(FINE)) == (
        0,
        "required:\n  ok  kernel  6.1\nthis node is as it should be\n",
    )


def test_what_is_missing_comes_with_its_fix(node: object) -> None:
    assert callable(node)
    status, out = node(checks(FINE, NO_GPU, SLOW))
    assert status == 0, "nothing that is required"
    assert out.splitlines() == [
        "required:",
        "  ok  kernel  6.1",
        "recommended:",
        "  NO  memory  1 GiB is free",
        "              → buy more\\x1b[2J",
        "optional:",
        "  -   GPU     no GPU here",
        "              → plug one in",
        "missing: 1 recommended",
    ]
    status, out = node(checks(FINE, NO_CRIU, SLOW), "-q")
    assert status == 4
    assert [line.split()[0] for line in out.splitlines()] == [
        "required:", "NO", "→", "recommended:", "NO", "→"
    ]  # fmt: skip


def test_json(node: object) -> None:
    import json

    assert callable(node)
    status, out = node(checks(FINE, NO_CRIU), "-o", "json")
    assert status == 4
    assert json.loads(out) == {
        "fit": False,
        "findings": [
            {"check": "kernel", "grade": "required", "state": "ok", "said": "6.1", "fix": "",
             "subject": ""},
            {"check": "criu", "grade": "required", "state": "bad", "said": "none",
             "fix": "install it", "subject": ""},
        ],
    }  # fmt: skip


def test_a_configuration_that_cannot_be_read_is_a_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.toml"
    path.write_text("shapshots = 1\n")
    assert main(["doctor", "--config", str(path), "--address", str(tmp_path / "none")]) == 4
    said = capsys.readouterr()
    assert said.err == ""
    assert "unknown key 'shapshots'" in said.out


def test_options_reach_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Node] = []

    def examine(node: Node) -> list[doctor.Finding]:
        seen.append(node)
        return [doctor.Finding("x", doctor.REQUIRED, doctor.OK, "said", "", "")]

    monkeypatch.setattr(doctor, "examine", examine)
    path = tmp_path / "config.toml"
    path.write_text('BinaryName = "runc-2"\n')
    words = ["--config", str(path), "--address", "/x", "--containerd", "/y"]
    assert main(["doctor", *words]) == 0
    (node,) = seen
    assert (node.config.text("BinaryName"), node.address, node.containerd) == ("runc-2", "/x", "/y")
