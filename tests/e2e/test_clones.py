"""One snapshot restored side by side: what must differ between clones does, once they reseed."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
from bed.images import HOST_IMAGE
from bed.lane import Lane
from bed.model import EXAMPLE, model_environment
from bed.pod import Container, Mount, Pod
from serving import annotated, control, identity_of
from workers import FAIL, SNAPSHOT, USR, checkpoint, outcome, wait_until

pytestmark = [pytest.mark.timeout(300), pytest.mark.one_lane]

# The example worker, with a model and every kind of generator that it knows of.
PROGRAM = """\
import json, random, ssl, sys
import numpy, torch
sys.path.insert(0, "/app")
import worker
torch.set_num_threads(1)
torch.manual_seed(1)
model = torch.nn.Sequential(torch.nn.Embedding(256, 32), torch.nn.Linear(32, 256))
def completion(token):
    said = []
    for _ in range(16):
        token = int(model(torch.tensor(token)).argmax())
        said.append(token)
    return said
torch.randn(3); numpy.random.random(); random.random(); ssl.RAND_bytes(8)
print(json.dumps({"completion": completion(7)}), flush=True)
worker.main(["--print", "3"])
print(json.dumps({"completion": completion(7), "numpy": numpy.random.random(),
    "tensor": torch.randn(2).tolist(), "tls": ssl.RAND_bytes(8).hex()}), flush=True)
import signal
signal.pause()
"""


class Clone(NamedTuple):
    """What one of them has said since it was woken."""

    first: dict[str, Any]  # who it is, and what it drew before it reseeded
    drawn: list[dict[str, Any]]
    last: dict[str, Any]


def created(pod: Pod, notes: dict[str, str]) -> Container:
    place = model_environment()
    mounts = [USR, Mount(place, str(place)), Mount(EXAMPLE, "/app")]
    args = [str(place / "bin/python"), "-Buc", PROGRAM]
    return pod.container("app", HOST_IMAGE, args, mounts=mounts, annotations=notes)


def woken(container: Container) -> Clone:
    """All it has to say: five lines after it was woken."""
    container.wait_for_log('"tls"')
    first, *drawn, last = map(json.loads, container.log().splitlines()[-5:])
    return Clone(first, drawn, last)


def test_clones_are_no_twins(lane: Lane) -> None:
    """Of a worker that waits for the FIFO; the original, which goes on, is a third one."""
    notes = {SNAPSHOT: "twins", **FAIL}
    with (
        lane.pod("original") as pod,
        lane.pod("one", annotations=notes) as first,
        lane.pod("other", annotations=notes) as second,
    ):
        original = created(pod, annotated(ready="contract"))
        original.start()
        ready = control(lane, original) / "ready-for-snapshot"
        wait_until(ready.exists, "a worker that is ready", seconds=120)
        completion = json.loads(original.wait_for_log("completion"))
        checkpoint(lane, original, "twins")
        containers = [created(each, {}) for each in (first, second)]
        for container in containers:
            container.start()
            assert outcome(lane, container).message == "restored"
        clones = [woken(container) for container in (original, *containers)]
        for clone, container in zip(clones[1:], containers, strict=True):
            assert clone.first["generation"] == identity_of(lane, container)["generation"]
    for clone in clones:
        assert clone.last["completion"] == completion["completion"]
    assert len({clone.first["before"] for clone in clones}) == 1, "what they have in common"
    differ([clone.first["generation"] for clone in clones])
    for key in ("uuid", "random", "token"):
        differ([str([drawn[key] for drawn in clone.drawn]) for clone in clones])
    for key in ("numpy", "tensor", "tls"):
        differ([str(clone.last[key]) for clone in clones])


def differ(values: list[Any]) -> None:
    assert len(set(values)) == len(values)
