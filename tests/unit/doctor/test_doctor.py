"""The table of checks, and what becomes of their verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.nodes import FakeNode

from shim import doctor
from shim.doctor import Check, Finding, Node
from shim.doctor.verdict import Verdict, bad, ok
from shim.errors import Unavailable


def finding(grade: str, state: str) -> Finding:
    return Finding("x", grade, state, "said", "fix", "")


def test_every_check_has_a_name_and_a_grade() -> None:
    names = [check.name for check in doctor.CHECKS]
    assert len(set(names)) == len(names)
    grades = {doctor.REQUIRED, doctor.RECOMMENDED, doctor.OPTIONAL}
    assert {check.grade for check in doctor.CHECKS} == grades
    assert all(check.ask.__doc__ for check in doctor.CHECKS)


def test_a_node_with_nothing_gets_a_line_for_each_check(tmp_path: Path) -> None:
    """Nothing that is wrong keeps the other lines from being printed."""
    found = list(doctor.examine(FakeNode(tmp_path, settings={"criu": str(tmp_path / "criu")})))
    silent = {"hard links", "direct I/O", "space"}  # of a store that is not there
    assert {f.check for f in found} == {check.name for check in doctor.CHECKS} - silent
    assert all(f.fix for f in found if f.state != doctor.OK)
    assert not doctor.fit(found)


@pytest.mark.parametrize(
    ("error", "said", "fix"),
    [
        (OSError(5, "Input/output error"), "[Errno 5] Input/output error", "x could not be"),
        (ValueError("no number"), "no number", "x could not be"),
        (Unavailable("gone", hint="start it"), "gone", "start it"),
        (Unavailable("gone"), "gone", "README"),
    ],
)
def test_what_a_check_raises(tmp_path: Path, error: Exception, said: str, fix: str) -> None:
    def ask(_node: Node) -> Iterator[Verdict]:
        yield ok("first")
        raise error

    node = FakeNode(tmp_path)
    first, second = doctor.examine(node, (Check("x", doctor.REQUIRED, ask),))
    assert (first.state, second.state, second.said) == (doctor.OK, doctor.BAD, said)
    assert second.fix.startswith(fix) or fix in second.fix


def test_what_makes_a_node_unfit(tmp_path: Path) -> None:
    assert doctor.fit([])
    assert doctor.fit([finding(doctor.REQUIRED, doctor.OK)])
    assert doctor.fit([finding(doctor.RECOMMENDED, doctor.BAD)])
    assert doctor.fit([finding(doctor.OPTIONAL, doctor.ABSENT)])
    assert not doctor.fit([finding(doctor.REQUIRED, doctor.BAD)])
    node = FakeNode(tmp_path)
    checks = (Check("x", doctor.REQUIRED, lambda _: [bad("no", "do")]),)
    assert not doctor.fit(doctor.examine(node, checks))
