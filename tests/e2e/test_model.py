"""The product in one test: a model server that comes back warm in another pod and address, and is
registered there once it has said what it said before."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable

import pytest
from bed.lane import CRI_NAMESPACE, Lane
from bed.model import Answer, ask, model_server, wait_until_healthy
from bed.pod import Container, Pod
from serving import Recorder, annotated, gateway

pytestmark = [pytest.mark.timeout(900), pytest.mark.one_lane]

PROMPT = "Once upon a time, a container"
TOKENS = 12  # each takes its time on a small machine
BODY = {"prompt": PROMPT, "max_tokens": TOKENS}
RESTORED = annotated(snapshot="model", on_failure="fail")


def snapshot(lane: Lane, container: Container, name: str) -> None:
    lane.thaw("checkpoint", container.id, name, "--namespace", CRI_NAMESPACE)


def restored(lane: Lane, name: str, notes: dict[str, str]) -> tuple[Pod, Container]:
    pod = lane.run_pod(name, annotations=notes, handler="thaw")
    container = model_server(pod).start()
    wait_until_healthy(pod.ip)
    return pod, container


def said(pod: Pod, prompt: str) -> Answer:
    return ask(pod.ip, prompt, TOKENS)


def proven(answer: Answer) -> dict[str, str]:
    """A canary: nobody sees the worker that does not answer so."""
    tokens = re.escape(f'"token_ids": {answer.tokens}')
    return annotated(
        canary="http:8000/v1/completions",
        canary_body=json.dumps(BODY),
        canary_expect=f"status=200 match={tokens}",
        canary_timeout="60",
    )


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_model_server(lane: Lane) -> None:
    cold = lane.run_pod("cold", handler="thaw")
    server = model_server(cold).start()
    wait_until_healthy(cold.ip)
    wanted = said(cold, PROMPT)
    assert len(set(wanted.tokens)) > 4  # the model says something
    snapshot(lane, server, "model")
    assert said(cold, PROMPT) == wanted  # it runs on

    # Two restores beside the original, each on its own address, seen once they are proven.
    notes = {**RESTORED, **proven(wanted)}
    with Recorder() as registry:
        notes |= annotated(register=f"http://{gateway(cold)}:{registry.port}/{{pod}}")
        check_restores(lane, cold, registry, notes, wanted)


def check_restores(
    lane: Lane, cold: Pod, registry: Recorder, notes: dict[str, str], wanted: Answer
) -> None:
    first, one = restored(lane, "first", notes)
    second, other = restored(lane, "second", notes)
    until(lambda: len(registry.requests) == 2)
    assert {request.path for request in registry.requests} == {"/first", "/second"}
    assert len({cold.ip, first.ip, second.ip}) == 3
    assert said(first, PROMPT) == wanted
    assert said(second, PROMPT) == wanted
    other_prompt = "Another question"
    assert said(first, other_prompt) == said(cold, other_prompt)
    cold.remove()

    # It is the container: PID 1, exec, logs, stats, and later its exit status.
    assert "server.py" in one.exec(["/usr/bin/cat", "/proc/1/cmdline"]).stdout
    assert one.exec(["/usr/bin/hostname"]).stdout.strip() == "first"
    until(lambda: "/v1/completions" in one.log())
    assert one.stats().memory.working_set_bytes.value > 100 << 20

    # A restored server can be snapshotted and restored again.
    snapshot(lane, one, "model.again")
    first.remove()
    third, again = restored(lane, "third", {**RESTORED, "thaw.dev/snapshot": "model.again"})
    assert said(third, PROMPT) == wanted
    again.stop()  # uvicorn ends by itself when it is asked to
    assert again.wait() == 0
    assert not again.running
    assert said(second, PROMPT) == wanted
    other.stop(timeout=0)
    assert other.wait() == 137
    third.remove()
    second.remove()
