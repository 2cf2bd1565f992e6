"""Canaries: the right answer in time, or the reason why not."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from typing import Any

import pytest
from fakes.settled import PATIENCE
from fakes.talkers import answer, refusal, silent, talker

from shim.annotations import CANARY_EXPECT
from shim.conduct import Action, Canary, Expectation
from shim.errors import BadAnnotation, CanaryFailed
from shim.worker.actions import Worker
from shim.worker.canary import check_pattern, prove

SAID = b'{"text": "forty-two"}'


def canary(
    port: int, body: str | None = None, seconds: float = PATIENCE, **expected: Any
) -> Canary:
    wanted = Expectation(**{"status": 200, **expected})
    return Canary(Action("http", f"{port}/v1"), body, wanted, seconds)


@pytest.mark.parametrize(
    "expected",
    [
        {},
        {"match": "forty-(two|three)"},
        {"match": r"(?s)^\{.*\}$"},
        {"sha256": hashlib.sha256(SAID).hexdigest()},
        {"sha256": hashlib.sha256(SAID).hexdigest(), "match": "text"},
    ],
)
def test_right(worker: Worker, expected: dict[str, Any]) -> None:
    with talker(answer(200, SAID)) as server:
        prove(canary(server.port, **expected), worker)
    assert server.heard[0].startswith(b"GET /v1 HTTP/1.1\r\n")


def test_a_body_is_posted(worker: Worker) -> None:
    with talker(answer(201)) as server:
        prove(canary(server.port, '{"prompt": "\u00fc"}', status=201), worker)
    head, _, body = server.heard[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1 HTTP/1.1\r\n")
    assert b"Content-Type: application/json" in head
    assert body.decode() == '{"prompt": "\u00fc"}'


@pytest.mark.parametrize(
    ("expected", "reason"),
    [
        ({"status": 204}, "status 200 instead of 204"),
        ({"match": "fifty"}, "does not match fifty"),
        ({"sha256": "0" * 64}, "instead of 0000"),
        ({"sha256": hashlib.sha256(SAID).hexdigest(), "match": "^x"}, "does not match"),
    ],
)
def test_wrong(worker: Worker, expected: dict[str, Any], reason: str) -> None:
    with talker(answer(200, SAID)) as server, pytest.raises(CanaryFailed, match=reason) as failed:
        prove(canary(server.port, **expected), worker)
    assert "forty-two" in failed.value.message
    assert failed.value.hint == f"see {CANARY_EXPECT}"


def test_late(worker: Worker) -> None:
    with (
        talker(silent) as server,
        pytest.raises(CanaryFailed, match=r"no answer within 0.1 s"),
    ):
        prove(canary(server.port, seconds=0.1, match="x"), worker)


def test_crashing(worker: Worker, process: subprocess.Popen[bytes]) -> None:
    def crash(*_: object) -> None:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    with (
        talker(crash) as server,
        pytest.raises(CanaryFailed, match="ended"),
    ):
        prove(canary(server.port), worker)


def test_crashed_in_the_middle(worker: Worker) -> None:
    with (
        talker(answer(200, b"half", length=10)) as server,
        pytest.raises(CanaryFailed, match="broke off"),
    ):
        prove(canary(server.port), worker)


def test_commands(worker: Worker) -> None:
    def ask(command: str, seconds: float = PATIENCE, **expected: Any) -> None:
        wanted = Expectation(**{"status": 0, **expected})
        prove(Canary(Action("exec", command), None, wanted, seconds), worker)

    ask("true")
    ask("echo forty-two; exit 7", status=7, match="two")
    with pytest.raises(CanaryFailed, match="status 1 instead of 0: because"):
        ask("echo because; exit 1")
    with pytest.raises(CanaryFailed, match=r"not done after 0.4 s"):
        ask("sleep 1000", 0.4)


def test_a_pattern_that_takes_for_ever(worker: Worker) -> None:
    began = time.monotonic()
    with talker(answer(200, b"a" * 64 + b"b")) as server:

        def compare(seconds: float) -> None:
            prove(canary(server.port, seconds=seconds, match="(a*)*$"), worker)

        said = refusal(CanaryFailed, compare)
    assert "not compared within" in said
    assert time.monotonic() - began < PATIENCE


def test_what_is_no_pattern() -> None:
    check_pattern(canary(1, match="a|b"))
    check_pattern(canary(1))
    for pattern in ("(", "*", "a{99999999999}", "(" * 5000):
        with pytest.raises(BadAnnotation, match=CANARY_EXPECT):
            check_pattern(canary(1, match=pattern))
