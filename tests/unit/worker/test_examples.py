"""The example workers against the contract as it is written: one that waits, one that polls, and
one that knows nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from example.sleeping import server
from fakes.settled import PATIENCE, eventually
from fakes.talkers import refusal

from shim.conduct import Action, Canary, Expectation
from shim.errors import CanaryFailed
from shim.worker import control, identity
from shim.worker.actions import Worker, act
from shim.worker.canary import prove
from shim.worker.control import Control, User

EXAMPLES = Path(__file__).resolve().parents[3] / "runtimeclass" / "example"


@pytest.fixture
def there(tmp_path: Path) -> Control:
    made = Control(str(tmp_path), User(0, 0))
    made.clear()
    return made


def run(program: str, *arguments: str, name: str, folder: str) -> subprocess.Popen[str]:
    argv = [sys.executable, str(EXAMPLES / program), *arguments]
    env = {**os.environ, name: folder, "PORT": "0"}
    return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True)


def restored(there: Control) -> dict[str, Any]:
    """The lines that a waiting worker prints, once it was told that it is restored."""
    with run("worker.py", "--print", "2", name="SNAPSHOT_CONTROL_DIR", folder=there.path) as worker:
        eventually(there.ready)
        made = identity.make({}, container="c", hostname="", ips=[], restored=True)
        there.write(control.IDENTITY, identity.encode(made))
        there.tell(control.RESTORED)
        assert worker.stdout is not None
        first, *drawn = [json.loads(line) for line in worker.stdout]
    assert worker.returncode == 0
    assert first["generation"] == made["generation"]
    return {"drawn": drawn, "entropy": made["entropy"]}


def test_it_waits_and_becomes_somebody_else(there: Control, tmp_path: Path) -> None:
    one = restored(there)
    (tmp_path / control.READY).unlink()
    other = restored(there)
    for a, b in zip(one["drawn"], other["drawn"], strict=True):
        assert a["random"] != b["random"]
        assert uuid.UUID(a["uuid"]) != uuid.UUID(b["uuid"])
    assert one["entropy"] != other["entropy"]


def test_one_that_waits_exits(there: Control) -> None:
    with run("worker.py", name="SNAPSHOT_CONTROL_DIR", folder=there.path) as worker:
        eventually(there.ready)
        there.tell(control.SAVED)
        assert worker.wait(PATIENCE) == 0


@pytest.mark.parametrize("name", control.VARIABLES)
def test_one_that_polls_goes_on(there: Control, name: str) -> None:
    with run("polling.py", name=name, folder=there.path) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "warm\n"
        eventually(there.ready)
        there.tell(control.RESTORED)
        assert worker.stdout.readline() == "registered\n"
        worker.kill()


def test_one_that_polls_exits(there: Control) -> None:
    with run("polling.py", name=control.VARIABLES[0], folder=there.path) as worker:
        eventually(there.ready)
        there.tell(control.SAVED)
        assert worker.wait(PATIENCE) == 0


@pytest.fixture
def port() -> Iterator[int]:
    made = server(0)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made.server_address[1]
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.mark.parametrize("level", [1, 2])
def test_one_that_knows_nothing(worker: Worker, port: int, level: int) -> None:
    question = Action("http", f"{port}/v1/completions")
    right = Expectation(200, match='"text": "[0-9a-f]{16}"')

    def canary(seconds: float = PATIENCE) -> Canary:
        return Canary(question, '{"prompt": "a"}', right, seconds)

    prove(canary(), worker)
    act(Action("http", f"{port}/sleep?level={level}"), worker, PATIENCE)
    assert "503" in refusal(CanaryFailed, lambda seconds: prove(canary(seconds), worker))
    act(Action("http", f"{port}/wake_up"), worker, PATIENCE)
    prove(canary(), worker)
